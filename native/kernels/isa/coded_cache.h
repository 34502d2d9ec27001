// SPDX-License-Identifier: Apache-2.0
// Scores and weighted sums over keys and values that are codes of 8 or 4 bits with a scale per 32
// dimensions, in integers. Included only by attention.cpp.
//
// Queries become codes of 8 bits with a scale per 32 dimensions too (query_scale holds task.scale):
//   scores[row][key] = sum_g query_scale[row][g] * key_scale[key][g] * sum_{d in g} query * key
// Probabilities, here of a block's own softmax, take the scales of the values, for each group of 32
// dimensions, and become codes of 14 bits in two planes of 7, whose products fit every instruction
// set's dot product:
//   p[row][key] = e^(score - largest score of the row in the block)
//   step[g] = (largest value_scale of the group) / 16383
//   n[row][g][key] = round(p[row][key] * value_scale[key][g] / step[g]), at most 16383
//   weighted[row][dim] = correction * weighted + share[row] * step[g] * sum_key n[row][g][key] *
//   value
// So probabilities err by 2^-15 of a block's largest, far less than values do, and codes are the
// same however keys are cut into ranges.
#pragma once

#include "kernels/isa/attention_block.h"
#include "kernels/isa/cache_codes.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

template <int kBits>
class CodedCache {
 public:
  static constexpr bool kSharesOfBlock = true;

  CodedCache(const AttentionTask& task, CacheFormat format, const Block& shape,
             const Scratch& scratch)
      : task_(task),
        scratch_(scratch),
        keys_(static_cast<const std::uint8_t*>(task.cache.keys)),
        values_(static_cast<const std::uint8_t*>(task.cache.values)),
        padded_dim_(shape.padded_dim),
        groups_(scale_groups(shape.head_dim)),
        code_bytes_(code_bytes(kBits, shape.head_dim)),
        run_bytes_(coded_run_bytes(kBits, shape.head_dim)) {
    cut_codes(shape.rows);
    for (std::int64_t row = 0; row < shape.rows; ++row) encode_query(task, row, is_rotated(format));
  }

  // Keys past the block's own count within its last run of 16 are stale: their scores are masked.
  void score(const Block& block, std::int64_t key_begin) {
    const std::uint8_t* keys = keys_ + key_begin / kKeyGroup * run_bytes_;
    prefetch_scales(keys);
    ask_for_keys_after(keys);
    const std::int64_t vectors = round_up(block.keys, kKeyGroup) / kVector;
    for_row_tiles<kTileRows>(block.rows, [&](auto count, std::int64_t row) {
      constexpr int kRows = decltype(count)::value;
      std::int64_t v = 0;
      for (; v + kTileVectors <= vectors; v += kTileVectors)
        score_tile<kRows, kTileVectors>(row, v, keys);
      for (; v < vectors; ++v) score_tile<kRows, 1>(row, v, keys);
    });
  }

  void weigh(const Block& block, std::int64_t key_begin, float* weighted) {
    const std::uint8_t* values = values_ + key_begin / kKeyGroup * run_bytes_;
    prefetch_scales(values);
    std::int64_t loaded = -1;
    for (std::int64_t row = 0; row < block.rows; ++row) {
      const std::int64_t keys = keys_seen(row, block, key_begin);
      if (keys != loaded) load_value_scales(values, keys);
      loaded = keys;
      encode_probabilities(row);
      ask_for_more();
    }
    const std::int64_t vectors = padded_dim_ / kVector;
    for_row_tiles<kTileRows>(block.rows, [&](auto count, std::int64_t row) {
      constexpr int kRows = decltype(count)::value;
      std::int64_t v = 0;
      for (; v + kTileVectors <= vectors; v += kTileVectors)
        weigh_tile<kRows, kTileVectors>(row, v, values, block.keys, weighted);
      for (; v < vectors; ++v) weigh_tile<kRows, 1>(row, v, values, block.keys, weighted);
    });
  }

  // Asks for some of the next block's keys that score_tile has not asked for.
  void ask_for_more() {
    for (int line = 0; line < kLinesAtOnce && asked_ < asked_end_; ++line, asked_ += 64) {
      if (asked_ == asked_gap_) asked_ += run_bytes_;
      prefetch(asked_);
    }
  }

 private:
  static constexpr int kVector = simd::kLanes;
  // Whether a tile of two vectors is two runs of keys. Then only the first asks for its run of the
  // next block: a core's misses in flight are few, and asking for all of it while scores are
  // computed leaves memory idle while probabilities are.
  static constexpr bool kSpreads = kVector == kKeyGroup;
  static constexpr int kLinesAtOnce = 3;
  // Two accumulators for each row and vector of a tile; vectors of a tile lie within 32 dimensions.
  // GCC keeps them in memory at the ends of its loops unless those are unrolled: 7 % of a block.
#if defined(__AVX512F__)
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 2;
#elif defined(__AVX2__)
  static constexpr int kTileRows = 4;
  static constexpr int kTileVectors = 1;
#elif defined(__ARM_FEATURE_DOTPROD)
  static constexpr int kTileRows = 4;
  static constexpr int kTileVectors = 2;
#else
  static constexpr int kTileRows = 2;
  static constexpr int kTileVectors = 1;
#endif
  // Dimensions of a key, and positions of a value, in one line of 64 bytes per sixteen.
  static constexpr std::int64_t kDimsOfStep = 32 / kBits;
  static constexpr std::int64_t kKeysOfStep = 32 / kBits;
  // What a product with a stored code holds too much, in sums of the other factor.
  // Codes of 4 bits less 7.5 are counted in halves.
  static constexpr std::int32_t kKeyBias = kBits == 8 ? simd::kSignedBias : 15;
  static constexpr float kCodeUnit = kBits == 8 ? 1.0f : 0.5f;
  static constexpr float kMostProbability = 16383.0f;  // two planes of 7 bits

  void cut_codes(std::int64_t rows) {
    query_scale_ = scratch_.codes;
    step_ = query_scale_ + rows * groups_;
    value_factor_ = step_ + rows * groups_;
    value_step_ = value_factor_ + groups_ * kKeyBlock;
    query_bias_ = reinterpret_cast<std::int32_t*>(value_step_ + groups_);
    value_bias_ = query_bias_ + rows * groups_;
    query_ = reinterpret_cast<std::int8_t*>(value_bias_ + rows * groups_);
    planes_ = reinterpret_cast<std::uint8_t*>(query_ + rows * padded_dim_);
  }

  void encode_query(const AttentionTask& task, std::int64_t row, bool is_rotated) {
    float* q = scratch_.q + row * padded_dim_;
    const float* from =
        task.q + row / task.group * task.q_stride + row % task.group * task.head_dim;
    for (std::int64_t d = 0; d < task.head_dim; ++d) q[d] = from[d];
    for (std::int64_t d = task.head_dim; d < padded_dim_; ++d) q[d] = 0.0f;
    if (is_rotated) rotate(q, task.head_dim, q);
    for (std::int64_t group = 0; group < groups_; ++group) {
      const std::int64_t first = group * kScaleGroup;
      const std::int64_t count = group_dims(group);
      std::int8_t* codes = query_ + row * padded_dim_ + first;
      const Extremes found = extremes(q + first, count);
      float scale = found.magnitude() / 127.0f;
      if (scale < 0x1p-120f) scale = 0.0f;
      encode_group(q + first, count, scale, kSignedBytes, codes);
      std::int32_t total = 0;
      for (std::int64_t i = 0; i < count; ++i) total += codes[i];
      query_scale_[row * groups_ + group] = kCodeUnit * scale * task.scale + found.poison;
      query_bias_[row * groups_ + group] = kKeyBias * total;
    }
  }

  std::int64_t group_dims(std::int64_t group) const {
    const std::int64_t left = padded_dim_ - group * kScaleGroup;
    return left < kScaleGroup ? left : kScaleGroup;
  }

  // Where the lanes of vector v lie among runs of sixteen times four bytes.
  static std::int64_t lanes_of(std::int64_t v) { return v * kVector % kKeyGroup; }

  static simd::Int four_codes(const void* codes) {
    std::int32_t four;
    std::memcpy(&four, codes, 4);
    return simd::broadcast(four);
  }

  static simd::Int low_halves(simd::Int a) { return a & simd::broadcast(0x0f0f0f0f); }
  static simd::Int high_halves(simd::Int a) { return low_halves(simd::shift_right_logical<4>(a)); }

  // A sum of products with stored codes -> with the codes themselves, in units of kCodeUnit.
  static simd::Int unbiased(simd::Int sum, simd::Int bias) {
    return (kBits == 8 ? sum : sum + sum) - bias;
  }

  // Rows from `row` on, keys of `kVectors` vectors from v on.
  template <int kRows, int kVectors>
  [[gnu::noinline]] void score_tile(std::int64_t row, std::int64_t v,
                                    const std::uint8_t* keys) const {
    const std::uint8_t* runs[kVectors];
#pragma GCC unroll 2
    for (int k = 0; k < kVectors; ++k) runs[k] = keys + (v + k) * kVector / kKeyGroup * run_bytes_;
    const std::int8_t* query = query_ + row * padded_dim_;
    simd::Float sums[kRows][kVectors];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int k = 0; k < kVectors; ++k) sums[r][k] = simd::zero();
    }
    std::int64_t line = 0;
    for (std::int64_t group = 0; group < groups_; ++group) {
      simd::Int dots[kRows][kVectors];
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int k = 0; k < kVectors; ++k) dots[r][k] = simd::broadcast(0);
      }
      const std::int64_t end = line + group_dims(group) / kDimsOfStep;
      for (; line < end; ++line) {
#pragma GCC unroll 2
        for (int k = 0; k < kVectors; ++k) {
          const std::uint8_t* codes_of_keys = runs[k] + line * 64 + 4 * lanes_of(v + k);
          if (!kSpreads || k == 0) prefetch(codes_of_keys + kKeyBlock / kKeyGroup * run_bytes_);
          const simd::Int key = simd::load_int(codes_of_keys);
#pragma GCC unroll 6
          for (int r = 0; r < kRows; ++r) {
            const std::int8_t* codes = query + r * padded_dim_ + line * kDimsOfStep;
            if constexpr (kBits == 8) {
              dots[r][k] = simd::dot_signed(dots[r][k], key, four_codes(codes));
            } else {
              dots[r][k] = simd::dot_unsigned(dots[r][k], low_halves(key), four_codes(codes),
                                              high_halves(key), four_codes(codes + 4));
            }
          }
        }
      }
#pragma GCC unroll 2
      for (int k = 0; k < kVectors; ++k) {
        const simd::Float scale =
            simd::load_half(runs[k] + code_bytes_ + group * kKeyGroup * 2 + 2 * lanes_of(v + k));
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const simd::Float factor =
              scale * simd::broadcast(query_scale_[(row + r) * groups_ + group]);
          const simd::Int bias = simd::broadcast(query_bias_[(row + r) * groups_ + group]);
          const simd::Int dot = unbiased(dots[r][k], bias);
          sums[r][k] = simd::fma(simd::to_float(dot), factor, sums[r][k]);
        }
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int k = 0; k < kVectors; ++k)
        simd::store(scratch_.scores + (row + r) * kKeyBlock + (v + k) * kVector, sums[r][k]);
    }
  }

  void prefetch_scales(const std::uint8_t* runs) const {
    constexpr std::int64_t kRuns = kKeyBlock / kKeyGroup;
    for (std::int64_t run = 0; run < kRuns; ++run) {
      const std::uint8_t* scales = runs + (kRuns + run) * run_bytes_ + code_bytes_;
      for (std::int64_t offset = 0; offset < run_bytes_ - code_bytes_; offset += 64)
        prefetch(scales + offset);
    }
  }

  // Of the four runs of the block after `keys`, the second and the fourth.
  void ask_for_keys_after(const std::uint8_t* keys) {
    if (!kSpreads) return;
    asked_ = keys + 5 * run_bytes_;
    asked_gap_ = keys + 6 * run_bytes_;
    asked_end_ = keys + 8 * run_bytes_;
  }

  // Scales of a block's values by group of dimensions, in steps of their largest / 16383; those of
  // keys that are not there are 0.
  [[gnu::noinline]] void load_value_scales(const std::uint8_t* values, std::int64_t keys) {
    const std::int64_t present = round_up(keys, kKeyGroup);
    for (std::int64_t group = 0; group < groups_; ++group) {
      float* scales = value_factor_ + group * kKeyBlock;
      for (std::int64_t key = 0; key < present; key += kVector) {
        simd::store(scales + key,
                    simd::load_half(values + key / kKeyGroup * run_bytes_ + code_bytes_ +
                                    group * kKeyGroup * 2 + 2 * (key % kKeyGroup)));
      }
      for (std::int64_t key = keys; key < kKeyBlock; ++key) scales[key] = 0.0f;
      simd::Float poison = simd::zero();  // NaN where a scale is no number
      simd::Float largest = simd::zero();
      for (std::int64_t key = 0; key < kKeyBlock; key += kVector) {
        const simd::Float scale = simd::load(scales + key);
        poison += scale * simd::zero();
        largest = simd::max(largest, scale);
      }
      const float most = simd::max_lane(largest);
      const simd::Float inverse = simd::broadcast(most > 0.0f ? kMostProbability / most : 0.0f);
      for (std::int64_t key = 0; key < kKeyBlock; key += kVector)
        simd::store(scales + key, simd::load(scales + key) * inverse);
      value_step_[group] = kCodeUnit * most / kMostProbability + simd::sum(poison);
    }
  }

  // Keys that a token does not see yet must not move its step: they are not there when it comes
  // alone.
  std::int64_t keys_seen(std::int64_t row, const Block& block, std::int64_t key_begin) const {
    const std::int64_t seen = task_.first_position + row / task_.group + 1 - key_begin;
    if (!task_.causal || seen > block.keys) return block.keys;
    return seen > 0 ? seen : 0;
  }

  // Planes of one row: [group][upper 7 bits, lower 7 bits][key].
  std::uint8_t* planes(std::int64_t row, std::int64_t group) const {
    return planes_ + (row * groups_ + group) * 2 * kKeyBlock;
  }

  [[gnu::noinline]] void encode_probabilities(std::int64_t row) {
    constexpr int kVectors = kKeyBlock / kVector;
    const float* p = scratch_.scores + row * kKeyBlock;
    for (std::int64_t group = 0; group < groups_; ++group) {
      const float* factors = value_factor_ + group * kKeyBlock;
      simd::Int upper[kVectors];
      simd::Int lower[kVectors];
      simd::Int total = simd::broadcast(0);
      for (int v = 0; v < kVectors; ++v) {
        const simd::Int n =
            simd::round_to_int(simd::load(p + v * kVector) * simd::load(factors + v * kVector));
        upper[v] = n >> 7;
        lower[v] = n & simd::broadcast(127);
        total += n;
      }
      simd::store_uint8_block(planes(row, group), upper);
      simd::store_uint8_block(planes(row, group) + kKeyBlock, lower);
      step_[row * groups_ + group] = scratch_.share[row] * value_step_[group];
      // Exact: at most 64 * 16383.
      value_bias_[row * groups_ + group] =
          kBits == 8 ? 0 : 15 * static_cast<std::int32_t>(simd::sum(simd::to_float(total)));
    }
  }

  template <int kRows, int kVectors>
  [[gnu::noinline]] void weigh_tile(std::int64_t row, std::int64_t v, const std::uint8_t* values,
                                    std::int64_t keys, float* weighted) const {
    const std::int64_t group = v * kVector / kScaleGroup;
    simd::Int upper[kRows][kVectors];
    simd::Int lower[kRows][kVectors];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int k = 0; k < kVectors; ++k) upper[r][k] = lower[r][k] = simd::broadcast(0);
    }
    const std::int64_t row_bytes = groups_ * 2 * kKeyBlock;
    const std::int64_t step_bytes = 4 * padded_dim_;
    const std::uint8_t* planes = this->planes(row, group);
    const std::uint8_t* run = values + 4 * v * kVector;
    // Steps past the last key multiply by 0.
    for (std::int64_t first = 0; first < keys; first += kKeyGroup, run += run_bytes_) {
      const std::uint8_t* line = run;
      for (int step = 0; step < kKeyGroup / kKeysOfStep; ++step, line += step_bytes) {
#pragma GCC unroll 2
        for (int k = 0; k < kVectors; ++k)
          prefetch(line + 4 * k * kVector + kKeyBlock / kKeyGroup * run_bytes_);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const std::uint8_t* p = planes + r * row_bytes;
#pragma GCC unroll 2
          for (int k = 0; k < kVectors; ++k) {
            const simd::Int value = simd::load_int(line + 4 * k * kVector);
            if constexpr (kBits == 8) {
              upper[r][k] = simd::dot_unsigned(upper[r][k], four_codes(p), value);
              lower[r][k] = simd::dot_unsigned(lower[r][k], four_codes(p + kKeyBlock), value);
            } else {
              upper[r][k] = simd::dot_unsigned(upper[r][k], low_halves(value), four_codes(p),
                                               high_halves(value), four_codes(p + 4));
              lower[r][k] =
                  simd::dot_unsigned(lower[r][k], low_halves(value), four_codes(p + kKeyBlock),
                                     high_halves(value), four_codes(p + kKeyBlock + 4));
            }
          }
        }
        planes += kKeysOfStep;
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const simd::Float step = simd::broadcast(step_[(row + r) * groups_ + group]);
      const simd::Float correction = simd::broadcast(scratch_.correction[row + r]);
      const simd::Int bias = simd::broadcast(value_bias_[(row + r) * groups_ + group]);
      float* to = weighted + (row + r) * padded_dim_ + v * kVector;
#pragma GCC unroll 2
      for (int k = 0; k < kVectors; ++k) {
        const simd::Int total = unbiased((upper[r][k] << 7) + lower[r][k], bias);
        const simd::Float before = simd::load(to + k * kVector) * correction;
        simd::store(to + k * kVector, simd::fma(simd::to_float(total), step, before));
      }
    }
  }

  const AttentionTask& task_;
  const Scratch& scratch_;
  const std::uint8_t* keys_;
  const std::uint8_t* values_;
  std::int64_t padded_dim_;
  std::int64_t groups_;
  std::int64_t code_bytes_;
  std::int64_t run_bytes_;
  const std::uint8_t* asked_ = nullptr;  // the next line to ask for
  const std::uint8_t* asked_gap_ = nullptr;
  const std::uint8_t* asked_end_ = nullptr;
  float* query_scale_;        // [rows][groups]
  float* step_;               // [rows][groups]
  float* value_factor_;       // [groups][kKeyBlock]: 0..16383
  float* value_step_;         // [groups]: what one of them is worth; NaN where a scale is
  std::int32_t* query_bias_;  // [rows][groups]
  std::int32_t* value_bias_;  // [rows][groups]
  std::int8_t* query_;        // [rows][padded_dim]
  std::uint8_t* planes_;      // [rows][groups][2][kKeyBlock]
};

}  // namespace
}  // namespace lilliput::kernels::LILLIPUT_ISA
