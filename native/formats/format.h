// SPDX-License-Identifier: Apache-2.0
// The list of number formats and the table of what the native core knows about each.
// The meaning of a format is its Python file, src/lilliput/formats/<name>.py; here is the fast
// path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lilliput::formats {

// To add a format: one line here and one header native/formats/<name>.h.
// clang-format off
#define LILLIPUT_FORMATS(X) \
  X(f32) X(f16) X(bf16) X(q4_0) X(q4_1) X(q5_0) X(q5_1) X(q8_0) X(q2_k) X(q3_k) X(q4_k) X(q5_k) \
  X(q6_k) X(iq1_s) X(iq1_m) X(iq2_xxs) X(iq2_xs) X(iq2_s) X(iq3_xxs) X(iq3_s) X(iq4_nl) X(iq4_xs) \
  X(tq1_0) X(tq2_0) X(mxfp4) X(nvfp4)
// clang-format on

enum class FormatId : std::uint8_t {
#define LILLIPUT_ENUM(name) name,
  LILLIPUT_FORMATS(LILLIPUT_ENUM)
#undef LILLIPUT_ENUM
};

struct FormatTraits {
  std::string_view name;
  std::int64_t block_size;   // weights per block
  std::int64_t block_bytes;  // bytes per block
  // Decodes n_blocks blocks to float32; bit for bit what the Python file computes. Null: not in the
  // native core yet.
  void (*decode)(const std::uint8_t* blocks, float* values, std::int64_t n_blocks);
};

const FormatTraits& traits(FormatId id);
// Throws std::invalid_argument naming the known formats.
FormatId format_by_name(std::string_view name);

}  // namespace lilliput::formats
