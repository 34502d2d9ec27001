// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/scaled_matmul.h"

#include <optional>

#include "formats/all_formats.h"
#include "kernels/isa/few_tokens.h"
#include "kernels/isa/int8_matmul.h"
#include "kernels/isa/scaled_scheme.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

template <typename Format>
std::size_t scaled_scratch_bytes(std::int64_t, std::int64_t tokens) {
  return tokens <= kMostFewScaled ? 0 : many_scratch_bytes<ScaledScheme<Format>>(tokens);
}

template <typename Format>
void scaled_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens,
                     float* y, std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                     std::uint8_t* scratch) {
  const Product product{weight, prepared, tokens, y, y_stride};
  if (!weight.is_interleaved && tokens <= kFewTokens) {
    int8_multiply(weight, prepared, tokens, y, y_stride, row_begin, row_end, scratch);
  } else if (tokens <= kMostFewScaled) {
    with_tile(tokens, [&]<int tile>() {
      using Lanes = LanesOf<Format, LaneProduct<kKindOf<Format>, tile>>;
      multiply_few<Format, Lanes,
                   ScaledTile<Format::group_size, tile, kInputHasStarts<kKindOf<Format>>>, tile,
                   kMostFewScaled>(product, row_begin, row_end);
    });
  } else {
    multiply_many<ScaledScheme<Format>>(product, row_begin, row_end, scratch);
  }
}

template <typename Format, bool is_interleaved>
constexpr std::optional<MatmulKernel> kernel_of() {
  if constexpr (is_interleaved && requires { typename Format::SpelledAs; }) {
    return spelled_kernel<Format>(kernel_of<typename Format::SpelledAs, true>());
  } else if constexpr (requires { Format::largest_code; } ||
                       (is_interleaved && kHasWideCodes<Format>)) {
    constexpr ScaledGrid kGrid = kGridOf<Format>;
    return MatmulKernel{InputLayout::int8_scaled,
                        scaled_prepared_bytes<kGrid, is_interleaved>,
                        scaled_prepare<kGrid, is_interleaved>,
                        scaled_multiply<Format>,
                        kScaledTile,
                        kRowBlock,
                        scaled_scratch_bytes<Format>,
                        is_interleaved ? interleaved_row_bytes<Format> : nullptr,
                        is_interleaved ? interleave<Format> : nullptr};
  } else {
    return std::nullopt;
  }
}

constexpr std::optional<MatmulKernel> kStored[] = {
#define LILLIPUT_KERNEL(name) kernel_of<formats::name, false>(),
    LILLIPUT_FORMATS(LILLIPUT_KERNEL)
#undef LILLIPUT_KERNEL
};
constexpr std::optional<MatmulKernel> kInterleaved[] = {
#define LILLIPUT_KERNEL(name) kernel_of<formats::name, true>(),
    LILLIPUT_FORMATS(LILLIPUT_KERNEL)
#undef LILLIPUT_KERNEL
};

}  // namespace

const MatmulKernel* scaled_kernel(formats::FormatId format, bool is_interleaved) {
  const auto& kernel = (is_interleaved ? kInterleaved : kStored)[static_cast<std::size_t>(format)];
  return kernel ? &*kernel : nullptr;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
