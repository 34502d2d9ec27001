// SPDX-License-Identifier: Apache-2.0
#include "engine/kv_cache.h"

namespace lilliput::engine {

KvCache::KvCache(const std::vector<KvState>& states, std::int64_t context,
                 kernels::CacheFormat format)
    : format_(format) {
  const std::size_t element = format == kernels::CacheFormat::f16 ? 2 : 4;
  const auto keys = static_cast<std::size_t>(kernels::round_up(context, kernels::kKeyGroup));
  for (const KvState& state : states) {
    const auto head_dim = static_cast<std::size_t>(state.head_dim);
    const auto padded_dim =
        static_cast<std::size_t>(kernels::round_up(state.head_dim, kernels::kKeyGroup));
    Layer layer;
    layer.key_bytes = keys * head_dim * element;
    layer.value_bytes = keys * padded_dim * element;
    layer.memory =
        Memory(static_cast<std::size_t>(state.kv_heads) * (layer.key_bytes + layer.value_bytes));
    layers_.push_back(std::move(layer));
  }
}

kernels::HeadCache KvCache::head(int layer, std::int64_t kv_head) const {
  const Layer& state = layers_[static_cast<std::size_t>(layer)];
  std::uint8_t* keys = state.memory.as<std::uint8_t>() +
                       static_cast<std::size_t>(kv_head) * (state.key_bytes + state.value_bytes);
  return {keys, keys + state.key_bytes};
}

std::size_t KvCache::bytes() const {
  std::size_t total = 0;
  for (const Layer& layer : layers_) total += layer.memory.bytes();
  return total;
}

}  // namespace lilliput::engine
