// SPDX-License-Identifier: Apache-2.0
// Keys and values of every layer; the layout of one head is kernels::HeadCache.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/memory.h"
#include "engine/program.h"
#include "kernels/vector_kernels.h"

namespace lilliput::engine {

class KvCache {
 public:
  KvCache(const std::vector<KvState>& states, std::int64_t context, kernels::CacheFormat format);

  kernels::HeadCache head(int layer, std::int64_t kv_head) const;
  kernels::CacheFormat format() const { return format_; }
  std::size_t bytes() const;

 private:
  struct Layer {
    std::size_t key_bytes;    // of one head
    std::size_t value_bytes;  // of one head
    Memory memory;            // heads one after the other, each keys then values
  };
  kernels::CacheFormat format_;
  std::vector<Layer> layers_;
};

}  // namespace lilliput::engine
