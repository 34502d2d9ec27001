// SPDX-License-Identifier: Apache-2.0
#include "engine/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace lilliput::engine {
KvCache::KvCache(const std::vector<KvState>& states, std::int64_t context,
                 kernels::CacheFormat format, std::int64_t sequences)
    : format_(format), slots_(static_cast<std::size_t>(sequences)) {
  std::iota(slots_.begin(), slots_.end(), 0);
  const auto runs =
      static_cast<std::size_t>(kernels::round_up(context, kernels::kKeyGroup) / kernels::kKeyGroup);
  for (const KvState& state : states) {
    if (kernels::code_bits(format) != 0 && state.head_dim > kernels::kLargestCodedHead) {
      throw std::invalid_argument("heads are " + std::to_string(state.head_dim) +
                                  " wide; a cache of 8 or 4 bits takes heads of up to " +
                                  std::to_string(kernels::kLargestCodedHead) +
                                  ": use kv format f16");
    }
    Layer layer;
    layer.kv_heads = state.kv_heads;
    layer.run_bytes = kernels::run_bytes(format, state.head_dim);
    layer.key_bytes = runs * layer.run_bytes.keys;
    layer.value_bytes = runs * layer.run_bytes.values;
    layer.memory = Memory(static_cast<std::size_t>(sequences * state.kv_heads) *
                          (layer.key_bytes + layer.value_bytes));
    layers_.push_back(std::move(layer));
  }
}

kernels::HeadCache KvCache::head(int layer, std::int64_t kv_head, std::int64_t sequence) const {
  return head_of_slot(layers_[static_cast<std::size_t>(layer)], kv_head,
                      slots_[static_cast<std::size_t>(sequence)]);
}

kernels::HeadCache KvCache::head_of_slot(const Layer& layer, std::int64_t kv_head,
                                         std::int64_t slot) const {
  std::uint8_t* keys =
      layer.memory.as<std::uint8_t>() + static_cast<std::size_t>(slot * layer.kv_heads + kv_head) *
                                            (layer.key_bytes + layer.value_bytes);
  return {keys, keys + layer.key_bytes};
}

void KvCache::reorder(std::span<const std::int32_t> sources, std::int64_t length) {
  // The first that continues a sequence takes its slot over; every other one gets a copy in a slot
  // that nobody continues.
  std::vector<std::int64_t> slots(sources.size(), -1);
  std::vector<bool> is_taken(slots_.size(), false);
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const std::int64_t slot = slots_[static_cast<std::size_t>(sources[i])];
    if (is_taken[static_cast<std::size_t>(slot)]) continue;
    is_taken[static_cast<std::size_t>(slot)] = true;
    slots[i] = slot;
  }
  std::vector<std::int64_t> free;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (!is_taken[slot]) free.push_back(static_cast<std::int64_t>(slot));
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (slots[i] >= 0) continue;
    slots[i] = free.back();
    free.pop_back();
    copy_slot(slots_[static_cast<std::size_t>(sources[i])], slots[i], length);
  }
  slots.insert(slots.end(), free.begin(), free.end());
  slots_ = std::move(slots);
}

void KvCache::copy_slot(std::int64_t from, std::int64_t to, std::int64_t length) {
  const auto runs =
      static_cast<std::size_t>(kernels::round_up(length, kernels::kKeyGroup) / kernels::kKeyGroup);
  for (const Layer& layer : layers_) {
    for (std::int64_t kv_head = 0; kv_head < layer.kv_heads; ++kv_head) {
      const kernels::HeadCache source = head_of_slot(layer, kv_head, from);
      const kernels::HeadCache target = head_of_slot(layer, kv_head, to);
      std::memcpy(target.keys, source.keys, runs * layer.run_bytes.keys);
      std::memcpy(target.values, source.values, runs * layer.run_bytes.values);
    }
  }
}

std::size_t KvCache::bytes() const {
  std::size_t total = 0;
  for (const Layer& layer : layers_) total += layer.memory.bytes();
  return total;
}

}  // namespace lilliput::engine
