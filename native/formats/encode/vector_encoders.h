// SPDX-License-Identifier: Apache-2.0
// Searched encoders of the codebook formats, a row at a time: groups in lanes, then blocks in
// lanes, then groups again. The meaning is the `encode` of src/lilliput/formats/codebook_vectors.py.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "formats/encode/row_lanes.h"
#include "formats/encode/vector_packing.h"
#include "formats/encode/vector_search.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

// Working memory of one row's search, reused from row to row.
struct VectorScratch {
  // Of every vector. Not a std::vector<int>, whose functions would be shared between instruction
  // sets.
  std::unique_ptr<std::int32_t[]> codes;
  std::int64_t n_codes = 0;
  // Per group, padded to whole lanes.
  std::vector<float> scale, curvature, along, across, scale_code, choice;
  // Per block.
  std::vector<float> outer;
};

// outer[b] = the fp16 number whose odd multiples suit the scales of block b's groups.
template <typename S>
inline void fit_first_scales(std::int64_t n_blocks, VectorScratch& scratch) {
  constexpr int groups = 256 / S::kGroup;
  for (std::int64_t first = 0; first < n_blocks; first += kLanes) {
    BlockLanes<groups> lanes;
    load_blocks(scratch.scale, scratch.curvature, n_blocks, first, lanes);
    for (Float& value : lanes.values) value = value * broadcast(1.0f / S::kFactor);
    simd::store(scratch.outer.data() + first, search_odd_halves_scale<S::kLastCode>(lanes));
  }
}

// outer[b] once more, by least squares for the codes that it has led to.
template <typename S>
inline void refit_scales(const RowWeights& row, VectorScratch& scratch) {
  constexpr int groups = 256 / S::kGroup;
  const std::int64_t n_groups = row.columns / S::kGroup, n_blocks = row.columns / 256;
  for (std::int64_t first = 0; first < n_groups; first += kLanes) {
    GroupLanes<S::kGroup> lanes;
    load_groups(row, first, lanes);
    const auto chosen = search_groups<S>(lanes, of_blocks<groups>(scratch.outer, n_blocks, first),
                                         simd::load(scratch.scale.data() + first));
    const LevelSums sums = level_sums(lanes, chosen.level);
    const Float multiple = (chosen.code + broadcast(0.5f)) * broadcast(S::kFactor);
    simd::store(scratch.along.data() + first, multiple * sums.along);
    simd::store(scratch.across.data() + first, (multiple * multiple) * sums.across);
  }
  for (std::int64_t first = 0; first < n_blocks; first += kLanes) {
    BlockLanes<groups> lanes;
    load_blocks(scratch.along, scratch.across, n_blocks, first, lanes);
    const Float along = ordered_sum(lanes.values), across = ordered_sum(lanes.curvature);
    const Float refit = half_rounded(along / (across > simd::zero() ? across : broadcast(1.0f)));
    const Float outer = simd::load(scratch.outer.data() + first);
    simd::store(scratch.outer.data() + first, refit > simd::zero() ? refit : outer);
  }
}

// Scale codes, choices and codes of the row's groups.
template <typename S>
inline void choose_codes(const RowWeights& row, VectorScratch& scratch) {
  constexpr int groups = 256 / S::kGroup, vectors = S::kGroup / S::kUnit;
  const std::int64_t n_groups = row.columns / S::kGroup, n_blocks = row.columns / 256;
  for (std::int64_t first = 0; first < n_groups; first += kLanes) {
    GroupLanes<S::kGroup> lanes;
    load_groups(row, first, lanes);
    const Float scale = of_blocks<groups>(scratch.outer, n_blocks, first);
    const auto chosen = search_groups<S>(lanes, scale, simd::load(scratch.scale.data() + first));
    simd::store(scratch.scale_code.data() + first, chosen.code);
    simd::store(scratch.choice.data() + first, chosen.choice);
    const Float step = (scale * (chosen.code + broadcast(0.5f))) * broadcast(S::kFactor);
    Float level[S::kGroup];
    Int codes[vectors];
    round_groups<S>(lanes, reciprocal(step), chosen.choice, level, codes);
    for (int vector = 0; vector < vectors; ++vector) {
      alignas(64) std::int32_t values[kLanes];
      simd::store_int(values, codes[vector]);
      for (int lane = 0; lane < kLanes && first + lane < n_groups; ++lane)
        scratch.codes[(first + lane) * vectors + vector] = values[lane];
    }
  }
}

template <typename Format, typename S, int n_anchors>
inline void encode_vectors(const RowWeights& row, const float (&anchors)[n_anchors],
                           VectorScratch& scratch, typename Format::Block* blocks) {
  constexpr int groups = 256 / S::kGroup;
  const std::int64_t n_groups = row.columns / S::kGroup, n_blocks = row.columns / 256;
  if (scratch.n_codes != row.columns / S::kUnit) {
    scratch.n_codes = row.columns / S::kUnit;
    scratch.codes.reset(new std::int32_t[static_cast<std::size_t>(scratch.n_codes)]);
  }
  for (auto* values : {&scratch.scale, &scratch.curvature, &scratch.along, &scratch.across,
                       &scratch.scale_code, &scratch.choice}) {
    resize_to_lanes(*values, n_groups);
  }
  resize_to_lanes(scratch.outer, n_blocks);
  for (std::int64_t first = 0; first < n_groups; first += kLanes) {
    GroupLanes<S::kGroup> lanes;
    load_groups(row, first, lanes);
    const ScaleFit fit = search_positive_scale<S>(lanes, anchors);
    simd::store(scratch.scale.data() + first, fit.scale);
    simd::store(scratch.curvature.data() + first, fit.curvature);
  }
  fit_first_scales<S>(n_blocks, scratch);
  refit_scales<S>(row, scratch);
  choose_codes<S>(row, scratch);
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    BlockParameters parameters;
    parameters.scale = half_bits(scratch.outer[b]);
    for (int g = 0; g < groups; ++g) {
      parameters.scale_codes[g] = static_cast<std::int16_t>(scratch.scale_code[b * groups + g]);
      parameters.minimum_codes[g] = static_cast<std::int16_t>(scratch.choice[b * groups + g]);
    }
    pack(blocks[b], scratch.codes.get() + b * (256 / S::kUnit), parameters);
  }
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
