// SPDX-License-Identifier: Apache-2.0
// Keys and values of every layer, of one sequence or several; the layout of one head is
// that of kernels/cache_layout.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/memory.h"
#include "engine/program.h"
#include "kernels/vector_kernels.h"

namespace lilliput::engine {

class KvCache {
 public:
  KvCache(const std::vector<KvState>& states, std::int64_t context, kernels::CacheFormat format,
          std::int64_t sequences = 1);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  kernels::HeadCache head(int layer, std::int64_t kv_head, std::int64_t sequence = 0) const;
  // Sequence i becomes what sequence sources[i] was, of `length` positions; those past the last
  // source are forgotten. Copies only what more than one sequence continues.
  void reorder(std::span<const std::int32_t> sources, std::int64_t length);
  std::int64_t sequences() const { return static_cast<std::int64_t>(slots_.size()); }
  kernels::CacheFormat format() const { return format_; }
  std::size_t bytes() const;

 private:
  struct Layer {
    std::int64_t kv_heads;
    kernels::RunBytes run_bytes;
    std::size_t key_bytes;    // of one head
    std::size_t value_bytes;  // of one head
    Memory memory;            // slots one after the other, in each its heads, each keys then values
  };
  kernels::HeadCache head_of_slot(const Layer& layer, std::int64_t kv_head,
                                  std::int64_t slot) const;
  void copy_slot(std::int64_t from, std::int64_t to, std::int64_t length);

  kernels::CacheFormat format_;
  std::vector<std::int64_t> slots_;  // where each sequence lies
  std::vector<Layer> layers_;
};

// What an encoder leaves to a decoder: keys and values that its attention reads and never changes.
struct SharedCache {
  SharedCache(const std::vector<KvState>& states, std::int64_t context, kernels::CacheFormat format)
      : states(states), context(context), cache(states, context, format) {}

  std::vector<KvState> states;
  std::int64_t context;
  KvCache cache;
  std::int64_t length = 0;
  // Of the engines that use it: codes of keys lie as their dot products want them.
  std::optional<kernels::Isa> isa;
};

}  // namespace lilliput::engine
