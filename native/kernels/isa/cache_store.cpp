// SPDX-License-Identifier: Apache-2.0
// Writes keys and values of one position into a cache; the layout is that of
// kernels/cache_layout.h. And the rotation of caches that want it.
#include <array>
#include <bit>
#include <cmath>

#include "kernels/isa/attention.h"
#include "kernels/isa/cache_codes.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

template <typename T>
T to_cache(float value);
template <>
inline float to_cache<float>(float value) {
  return value;
}
template <>
inline std::uint16_t to_cache<std::uint16_t>(float value) {
  return float_to_half(value);
}

template <typename T>
void store_floats(const HeadCache& cache, std::int64_t head_dim, std::int64_t position,
                  const float* key, const float* value) {
  const std::int64_t padded_dim = round_up(head_dim, kKeyGroup);
  T* keys = static_cast<T*>(cache.keys) + position / kKeyGroup * kKeyGroup * head_dim +
            position % kKeyGroup;
  T* values = static_cast<T*>(cache.values) + position * padded_dim;
  std::int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    T lanes[kLanes];
    store(lanes, load(key + d));
    for (int i = 0; i < kLanes; ++i) keys[(d + i) * kKeyGroup] = lanes[i];
    store(values + d, load(value + d));
  }
  for (; d < head_dim; ++d) {
    keys[d * kKeyGroup] = to_cache<T>(key[d]);
    values[d] = to_cache<T>(value[d]);
  }
  for (; d < padded_dim; ++d) values[d] = T{};
}

// The codes of one position's key or value, and their scales in F16.
struct Encoded {
  alignas(64) std::int8_t codes[kLargestCodedHead];  // 8 bits: signed; 4 bits: 0..15
  std::uint16_t scales[kLargestCodedHead / kScaleGroup];
};

// scale = largest magnitude / the furthest code's distance from 0
template <int kBits>
void encode(const float* x, std::int64_t padded_dim, Encoded& result) {
  constexpr CodeRange kRange = kBits == 8 ? kSignedBytes : kNibbles;
  for (std::int64_t first = 0, group = 0; first < padded_dim; first += kScaleGroup, ++group) {
    const std::int64_t count = padded_dim - first < kScaleGroup ? padded_dim - first : kScaleGroup;
    const Extremes found = extremes(x + first, count);
    // Codes belong to the scale as it is kept.
    result.scales[group] = float_to_half(found.magnitude() / kRange.reach() + found.poison);
    encode_group(x + first, count, half_to_float(result.scales[group]), kRange,
                 result.codes + first);
  }
}

// Copies, rotates if asked for, and pads with zeros.
const float* prepared(const float* x, std::int64_t head_dim, bool is_rotated, float* memory) {
  for (std::int64_t d = 0; d < head_dim; ++d) memory[d] = x[d];
  for (std::int64_t d = head_dim; d < round_up(head_dim, kKeyGroup); ++d) memory[d] = 0.0f;
  if (is_rotated) rotate(memory, head_dim, memory);
  return memory;
}

template <int kBits>
void put_key(const Encoded& from, std::int64_t padded_dim, std::int64_t lane, std::uint8_t* run) {
  std::uint8_t* to = run + 4 * lane;
  const auto* codes = reinterpret_cast<const std::uint8_t*>(from.codes);
  if constexpr (kBits == 8) {
    // Adding 128 to a byte and flipping its highest bit is the same.
    for (std::int64_t d = 0; d < padded_dim; ++d) {
      to[d / 4 * 64 + d % 4] = static_cast<std::uint8_t>(codes[d] ^ simd::kSignedBias);
    }
  } else {
    for (std::int64_t d = 0; d < padded_dim; d += 8) {
      for (std::int64_t t = 0; t < 4; ++t) {
        to[d / 8 * 64 + t] = static_cast<std::uint8_t>(codes[d + t] | codes[d + 4 + t] << 4);
      }
    }
  }
}

template <int kBits>
void put_value(const Encoded& from, std::int64_t padded_dim, std::int64_t lane, std::uint8_t* run) {
  const auto* codes = reinterpret_cast<const std::uint8_t*>(from.codes);
  if constexpr (kBits == 8) {
    std::uint8_t* to = run + lane / 4 * 4 * padded_dim + lane % 4;
    for (std::int64_t d = 0; d < padded_dim; ++d) to[4 * d] = codes[d];
  } else {
    std::uint8_t* to = run + lane / 8 * 4 * padded_dim + lane % 4;
    const int shift = lane % 8 / 4 * 4;
    for (std::int64_t d = 0; d < padded_dim; ++d) {
      to[4 * d] = static_cast<std::uint8_t>((to[4 * d] & (0xf0 >> shift)) | codes[d] << shift);
    }
  }
}

template <int kBits>
void store_codes(const HeadCache& cache, CacheFormat format, std::int64_t head_dim,
                 std::int64_t position, const float* key, const float* value) {
  alignas(64) float memory[kLargestCodedHead];
  Encoded encoded;
  const std::int64_t padded_dim = round_up(head_dim, kKeyGroup);
  const std::int64_t lane = position % kKeyGroup;
  const std::int64_t run_offset = position / kKeyGroup * coded_run_bytes(kBits, head_dim);
  for (const bool is_key : {true, false}) {
    std::uint8_t* run = static_cast<std::uint8_t*>(is_key ? cache.keys : cache.values) + run_offset;
    encode<kBits>(prepared(is_key ? key : value, head_dim, is_rotated(format), memory), padded_dim,
                  encoded);
    if (is_key) {
      put_key<kBits>(encoded, padded_dim, lane, run);
    } else {
      put_value<kBits>(encoded, padded_dim, lane, run);
    }
    std::uint8_t* scales = run + code_bytes(kBits, head_dim) + 2 * lane;
    for (std::int64_t group = 0; group < scale_groups(head_dim); ++group) {
      std::memcpy(scales + group * kKeyGroup * 2, &encoded.scales[group], 2);
    }
  }
}

// Sixteen rows of the block-diagonal matrix of Hadamard matrices of `size`, a power of two up to
// 16: its sign is the parity of the bits that row and column share.
using SmallHadamard = std::array<std::array<float, kLanes>, kLanes>;
constexpr SmallHadamard small_hadamard(unsigned size) {
  SmallHadamard rows{};
  for (unsigned i = 0; i < kLanes; ++i) {
    for (unsigned j = 0; j < kLanes; ++j) {
      if (i / size != j / size) continue;
      rows[i][j] = std::popcount(i & j & (size - 1)) % 2 == 0 ? 1.0f : -1.0f;
    }
  }
  return rows;
}
constexpr std::array<SmallHadamard, 5> kSmallHadamards{
    small_hadamard(1), small_hadamard(2), small_hadamard(4), small_hadamard(8), small_hadamard(16)};

}  // namespace

void rotate(const float* x, std::int64_t head_dim, float* y) {
  const std::int64_t size = head_dim & -head_dim;
  const int logarithm = std::countr_zero(static_cast<std::uint64_t>(size));
  const SmallHadamard& small =
      kSmallHadamards[static_cast<std::size_t>(logarithm < 4 ? logarithm : 4)];
  const Lanes scale = broadcast(1.0f / std::sqrt(static_cast<float>(size)));
  for (std::int64_t d = 0; d < head_dim; d += kLanes) {
    const int count = head_dim - d < kLanes ? static_cast<int>(head_dim - d) : kLanes;
    Lanes sums = zero();
    for (int i = 0; i < count; ++i) {
      sums =
          multiply_add(broadcast(x[d + i]), load(small[static_cast<std::size_t>(i)].data()), sums);
    }
    float values[kLanes];
    store(values, multiply(sums, scale));
    for (int i = 0; i < count; ++i) y[d + i] = values[i];
  }
  for (std::int64_t step = kLanes; step < size; step *= 2) {
    for (std::int64_t d = 0; d < head_dim; d += kLanes) {
      if ((d & step) != 0) continue;
      const Lanes a = load(y + d);
      const Lanes b = load(y + d + step);
      store(y + d, add(a, b));
      store(y + d + step, subtract(a, b));
    }
  }
}

void store_key_value(const HeadCache& cache, CacheFormat format, std::int64_t head_dim,
                     std::int64_t position, const float* key, const float* value) {
  switch (format) {
    case CacheFormat::f16:
      return store_floats<std::uint16_t>(cache, head_dim, position, key, value);
    case CacheFormat::f32:
      return store_floats<float>(cache, head_dim, position, key, value);
    case CacheFormat::q8_0_plain:
    case CacheFormat::q8_0:
      return store_codes<8>(cache, format, head_dim, position, key, value);
    case CacheFormat::q4_0:
    case CacheFormat::q4_0_plain:
      return store_codes<4>(cache, format, head_dim, position, key, value);
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
