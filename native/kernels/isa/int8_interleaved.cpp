// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "formats/all_formats.h"
#include "kernels/isa/few_tokens.h"
#include "kernels/isa/int8_matmul.h"
#include "kernels/isa/int8_tile.h"
#include "kernels/isa/scaled_scheme.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// Many tokens with float scales.
template <typename FormatType>
struct FloatScheme {
  using Format = FormatType;
  using Panel = kernels::LILLIPUT_ISA::Panel;
  using Input = TileInput<kTokenTile>;
  static constexpr std::int64_t kTile = kTokenTile;
  static constexpr std::int64_t kChunkTokens = kTokenChunk;
  static constexpr std::int64_t kTogether = kPanelTile;

  static void unpack(const Int* words, int, Panel& panel) { Format::unpack_rows(words, panel); }
  static void multiply(const Panel* panels, int used, const Input& input, Size size, float* sums) {
    multiply_panels<grid_of_rows<Format>()>(panels, used, input, size.tokens, size.columns / 32,
                                            sums);
  }
};

template <typename Format>
void multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens, float* y,
              std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
              std::uint8_t* scratch) {
  const Product product{weight, prepared, tokens, y, y_stride};
  if (tokens > kMostFewTokens) {
    multiply_many<FloatScheme<Format>>(product, row_begin, row_end, scratch);
    return;
  }
  with_input_tile<true>(tokens, [&]<int tile>() {
    multiply_few<Format, FloatLaneProduct<grid_of_rows<Format>(), tile>, TileInput<tile>, tile,
                 kMostFewTokens + kTokenTile>(product, row_begin, row_end);
  });
}

template <typename Format>
std::size_t scratch_bytes(std::int64_t, std::int64_t tokens) {
  return tokens <= kMostFewTokens ? 0 : many_scratch_bytes<FloatScheme<Format>>(tokens);
}

template <typename Format>
constexpr std::optional<MatmulKernel> kernel_of() {
  // Others multiply with integer scales (scaled_matmul.h).
  if constexpr (requires { typename Format::SpelledAs; }) {
    return spelled_kernel<Format>(kernel_of<typename Format::SpelledAs>());
  } else if constexpr (requires { &Format::template unpack_rows<Panel>; } &&
                       !kHasIntegerScales<Format>) {
    return MatmulKernel{InputLayout::int8_32,
                        int8_prepared_bytes<true>,
                        int8_prepare<true>,
                        multiply<Format>,
                        kTokenTile,
                        kRowBlock,
                        scratch_bytes<Format>,
                        interleaved_row_bytes<Format>,
                        interleave<Format>};
  } else {
    return std::nullopt;
  }
}

constexpr std::optional<MatmulKernel> kKernels[] = {
#define LILLIPUT_KERNEL(name) kernel_of<formats::name>(),
    LILLIPUT_FORMATS(LILLIPUT_KERNEL)
#undef LILLIPUT_KERNEL
};

}  // namespace

const MatmulKernel* int8_interleaved_kernel(formats::FormatId format) {
  const std::optional<MatmulKernel>& kernel = kKernels[static_cast<std::size_t>(format)];
  return kernel ? &*kernel : nullptr;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
