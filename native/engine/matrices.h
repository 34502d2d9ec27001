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

  // What run on this one says before `make_ready` holds of sizes; its bytes are there after it.
  const Matrix& operator[](WeightIndex index) const {
    return matrices_[static_cast<std::size_t>(index)];
  }
  void make_ready(WeightIndex index, ThreadPool::Lease& lease) {
    if (!stored_[static_cast<std::size_t>(index)].is_ready) interleave(index, lease);
  }
  // Bytes of interleaved weights once all have been used.
  std::size_t interleaved_bytes() const;

 private:
  struct Stored {
    kernels::Weight weight;
    bool is_ready;
  };
  void interleave(WeightIndex index, ThreadPool::Lease& lease);

  const Program& program_;
  std::vector<Matrix> matrices_;
  std::vector<Stored> stored_;
  std::vector<Memory> memory_;
};

}  // namespace lilliput::engine
