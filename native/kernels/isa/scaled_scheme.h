// SPDX-License-Identifier: Apache-2.0
// Many tokens times weights whose group scales are integers (scaled_input.h).
#pragma once

#include "kernels/isa/many_tokens.h"
#include "kernels/isa/scaled_prepare.h"
#include "kernels/isa/scaled_tile.h"

namespace lilliput::kernels::LILLIPUT_ISA {

template <typename Format>
inline constexpr bool kHasSpelledValues = requires { Format::spelled_values; };

// The largest magnitude of a code less its zero point.
template <typename Format>
constexpr int largest_magnitude() {
  if constexpr (kHasSpelledValues<Format>) {
    int largest = 0;
    for (const std::int8_t value : Format::spelled_values) {
      largest = std::max(largest, value < 0 ? -value : +value);
    }
    return largest;
  } else if constexpr (requires { Format::largest_magnitude; }) {
    return Format::largest_magnitude;
  } else {
    return Format::is_signed ? 128 : Format::zero_point;
  }
}

// Whether `unpack_rows` can give the scales of groups as integers.
template <typename Format>
inline constexpr bool kHasScaleCodes = requires { Format::largest_code; } || requires {
  Format::has_scale_codes;
} || kHasSpelledValues<Format>;

// Wide codes are worth it where dots of two groups share an instruction.
template <typename Format>
constexpr bool has_wide_codes() {
  if constexpr (requires { &Format::template unpack_rows<simd::RowLanes>; }) {
    return kPairsGroups && !requires { Format::largest_code; } && Format::group_size == 32 &&
           !Format::has_minimum;
  } else {
    return false;
  }
}
template <typename Format>
inline constexpr bool kHasWideCodes = has_wide_codes<Format>();
// Of interleaved rows.
template <typename Format>
inline constexpr bool kHasIntegerScales =
    requires { Format::largest_code; } || kHasWideCodes<Format>;

// Formats with `largest_code` have narrow codes; others wide ones.
template <typename Format>
constexpr ScaledGrid grid_of_scales() {
  if constexpr (requires { Format::largest_code; }) {
    ScaledGrid grid{Format::group_size, Format::zero_point, Format::largest_code};
    grid.has_minimum = Format::has_minimum;
    if constexpr (requires { Format::least_product; }) {
      grid.folds = true;
      grid.least_product = Format::least_product;
    }
    return grid;
  } else {
    const bool is_signed = Format::is_signed || kHasSpelledValues<Format>;
    constexpr int kMagnitude = largest_magnitude<Format>();
    ScaledGrid grid{Format::group_size, is_signed ? simd::kSignedBias : Format::zero_point,
                    kMagnitude};
    grid.scales_dots = true;
    // As few as half of the largest inputs leave room for: hardly any group has more.
    while (Format::group_size * 127 * kMagnitude >> grid.dropped_bits > 2 * 32700) {
      ++grid.dropped_bits;
    }
    return grid;
  }
}
template <typename Format>
constexpr ScaledGrid kGridOf = grid_of_scales<Format>();
template <typename Format>
constexpr ScaledKind kKindOf = {Format::group_size, kGridOf<Format>.zero_point != 0,
                                Format::has_minimum, kGridOf<Format>.scales_dots,
                                kGridOf<Format>.dropped_bits};

template <typename Format, typename Lanes>
using LanesOf = std::conditional_t<kHasScaleCodes<Format>, Lanes, RoundedScales<Lanes>>;

template <typename FormatType>
struct ScaledScheme {
  using Format = FormatType;
  static constexpr ScaledKind kKind = kKindOf<Format>;
  static constexpr Arrangement kArrangement = arrangement_of<kGridOf<Format>>(kMostFewScaled + 1);
  using Panel = std::conditional_t<
      kArrangement == Arrangement::folded, FoldedPanel,
      std::conditional_t<kArrangement == Arrangement::paired, PairedPanel, simd::RowLanes>>;
  using Input = ScaledTile<Format::group_size, kScaledTile, kInputHasStarts<kKind>>;
  static constexpr std::int64_t kTile = kScaledTile;
  static constexpr std::int64_t kChunkTokens = 512;
  static_assert(kChunkTokens % kTile == 0);
  static constexpr std::int64_t kTogether = 1;

  static void unpack(const Int* words, int, Panel& panel) {
    if constexpr (kArrangement == Arrangement::paired) {
      LanesOf<Format, PairingLanes<kKind>> lanes(panel);
      Format::unpack_rows(words, lanes);
      lanes.finish();
    } else if constexpr (kArrangement == Arrangement::folded) {
      FoldingLanes<kGridOf<Format>, Format::has_minimum> lanes(panel);
      Format::unpack_rows(words, lanes);
      lanes.finish();
    } else {
      Format::unpack_rows(words, panel);
      finish_lanes<kKind>(panel);
    }
  }

  static void multiply(const Panel* panels, int used, const Input& input, Size, float* sums) {
    for (int panel = 0; panel < used; ++panel) {
      float* tile = sums + panel * kLanes;
      if constexpr (kArrangement == Arrangement::folded) {
        const bool two = panel + 1 < used;
        for (int token = 0; token < kScaledTile; token += kFoldedTokens) {
          float* to = tile + token * kRowBlock;
          if (two) {
            multiply_folded<kKind, 2>(panels + panel, input, token, to, kRowBlock);
          } else {
            multiply_folded<kKind, 1>(panels + panel, input, token, to, kRowBlock);
          }
        }
        panel += two;
      } else if constexpr (kArrangement == Arrangement::paired) {
        multiply_paired<kKind>(panels[panel], input, tile, kRowBlock);
      } else {
        multiply_lanes<kKind>(panels[panel], input, tile, kRowBlock);
      }
    }
  }
};

}  // namespace lilliput::kernels::LILLIPUT_ISA
