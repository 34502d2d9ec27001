// SPDX-License-Identifier: Apache-2.0
// The weights that a Program multiplies with, each with the kernel that runs it.
//
// Interleaved in memory, rows as lanes, a weight is one stream without transposition or sums across
// lanes: faster for every number of tokens. Each is interleaved when it is first multiplied with,
// after which the pages of its file are given back.
#pragma once

#include <vector>

#include "engine/memory.h"
#include "engine/program.h"
#include "engine/thread_pool.h"
#include "kernels/matmul.h"

namespace lilliput::engine {

// How weights are multiplied.
struct MatrixOptions {
  kernels::Isa isa;
  bool exact_input;
  bool repacks;
};

class Matrices {
 public:
  struct Matrix {
    kernels::Weight weight;
    const kernels::MatmulKernel* kernel;
  };

  Matrices(const Program& program, const MatrixOptions& options);

  // Its bytes may be read once `make_ready` has been called; shape and kernel are known before.
  const Matrix& operator[](WeightIndex index) const {
    return entries_[static_cast<std::size_t>(index)].matrix;
  }
  void make_ready(WeightIndex index, ThreadPool::Lease& lease) {
    Entry& entry = entries_[static_cast<std::size_t>(index)];
    if (!entry.is_ready) interleave(entry, lease);
  }
  // Bytes of interleaved weights once all have been used.
  std::size_t interleaved_bytes() const { return memory_.bytes(); }

 private:
  struct Entry {
    Matrix matrix;
    kernels::Weight stored;  // as the file has it
    bool is_mapped;
    bool is_ready;
    std::uint8_t* interleaved;
  };
  static void interleave(Entry& entry, ThreadPool::Lease& lease);

  std::vector<Entry> entries_;
  // Of all interleaved rows, one after the other: few of its pages are not huge.
  Memory memory_;
};

}  // namespace lilliput::engine
