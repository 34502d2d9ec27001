// SPDX-License-Identifier: Apache-2.0
#include "formats/format.h"

#include <array>
#include <stdexcept>
#include <string>

#include "formats/all_formats.h"

namespace lilliput::formats {
namespace {

template <typename Format>
void decode_blocks(const std::uint8_t* blocks, float* values, std::int64_t n_blocks) {
  const auto* block = reinterpret_cast<const typename Format::Block*>(blocks);
  for (std::int64_t i = 0; i < n_blocks; ++i)
    Format::decode(block[i], values + i * Format::block_size);
}

template <typename Format>
constexpr FormatTraits make_traits(std::string_view name) {
  return {name, Format::block_size, sizeof(typename Format::Block), &decode_blocks<Format>};
}

constexpr std::array kTraits = {
#define LILLIPUT_TRAITS(name) make_traits<name>(#name),
    LILLIPUT_FORMATS(LILLIPUT_TRAITS)
#undef LILLIPUT_TRAITS
};

}  // namespace

const FormatTraits& traits(FormatId id) { return kTraits[static_cast<std::size_t>(id)]; }

FormatId format_by_name(std::string_view name) {
  std::string known;
  for (std::size_t i = 0; i < kTraits.size(); ++i) {
    if (kTraits[i].name == name) return static_cast<FormatId>(i);
    known += (i ? ", " : "") + std::string(kTraits[i].name);
  }
  throw std::invalid_argument("unknown number format '" + std::string(name) +
                              "'; the native core knows " + known);
}

}  // namespace lilliput::formats
