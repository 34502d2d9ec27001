// SPDX-License-Identifier: Apache-2.0
// The searched encoders, once per instruction set.
#include "formats/encode/row_encoders.h"
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

}  // namespace

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
