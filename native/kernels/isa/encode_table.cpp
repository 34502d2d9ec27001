// SPDX-License-Identifier: Apache-2.0
// The searched encoders, once per instruction set.
#include "formats/encode/row_encoders.h"
#include "formats/encode/vector_metric.h"
#include "kernels/encode.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

template <typename Format>
void encode_rows(const RowsToEncode& rows, std::uint8_t* blocks) {
  const std::int64_t row_bytes =
      rows.columns / Format::block_size * static_cast<std::int64_t>(sizeof(typename Format::Block));
  formats::RowSearch search;
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    search.set_row(rows.weights + row * rows.columns, rows.importance, rows.columns,
                   rows.mean_square_share);
    search.template encode<Format>(blocks + row * row_bytes);
  }
}

template <typename Format>
constexpr EncodeRows encoder_of() {
  if constexpr (requires { formats::Search<Format>::kGroup; }) return &encode_rows<Format>;
  return nullptr;
}

template <typename Format>
void round_vectors(const VectorsToRound& vectors, std::int64_t begin, std::int64_t end,
                   std::int32_t* codes) {
  formats::nearest_vectors<formats::Search<Format>>(vectors.y, vectors.n, begin, end,
                                                    vectors.metric, codes);
}

template <typename Format>
constexpr VectorRounder rounder_of() {
  if constexpr (requires { formats::Search<Format>::kUnit; }) {
    return {&round_vectors<Format>, formats::Search<Format>::kUnit};
  }
  return {nullptr, 0};
}

}  // namespace

VectorRounder vector_rounder(formats::FormatId format) {
  switch (format) {
#define LILLIPUT_ROUNDER(name)  \
  case formats::FormatId::name: \
    return rounder_of<formats::name>();
    LILLIPUT_FORMATS(LILLIPUT_ROUNDER)
#undef LILLIPUT_ROUNDER
  }
  return {nullptr, 0};
}

EncodeRows row_encoder(formats::FormatId format) {
  switch (format) {
#define LILLIPUT_ENCODER(name)  \
  case formats::FormatId::name: \
    return encoder_of<formats::name>();
    LILLIPUT_FORMATS(LILLIPUT_ENCODER)
#undef LILLIPUT_ENCODER
  }
  return nullptr;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
