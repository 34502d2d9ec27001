// SPDX-License-Identifier: Apache-2.0
#include "engine/matrices.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "kernels/vector_kernels.h"

namespace lilliput::engine {
namespace {

constexpr std::int64_t kGroup = kernels::kMostLanes;

// Rows of the matrices that each weight is a stack of; 0: nothing multiplies with it.
std::vector<std::int64_t> rows_of_matrices(const Program& program) {
  std::vector<std::int64_t> rows(program.weights().size(), 0);
  const auto rows_of = [&](WeightIndex index) -> std::int64_t& {
    return rows[static_cast<std::size_t>(index)];
  };
  for (const Step& step : program.steps()) {
    if (const auto* linears = std::get_if<LinearGroup>(&step.operation)) {
      for (const LinearPart& part : linears->parts) {
        rows_of(part.weight) = program.weights()[static_cast<std::size_t>(part.weight)].rows;
      }
    } else if (const auto* experts = std::get_if<Experts>(&step.operation)) {
      const auto& buffers = program.buffers();
      const std::int64_t n = buffers[static_cast<std::size_t>(experts->router)];
      for (const WeightIndex index : {experts->gate, experts->up, experts->down}) {
        if (index == kNone) continue;  // of integers
        rows_of(index) = program.weights()[static_cast<std::size_t>(index)].rows / n;
      }
    }
  }
  return rows;
}

// Gives back the whole pages among some bytes of a mapped file: they stay in the page cache.
void release_pages(const std::uint8_t* bytes, std::int64_t n_bytes) {
  constexpr std::uintptr_t kPage = 4096;
  const auto begin = (reinterpret_cast<std::uintptr_t>(bytes) + kPage - 1) / kPage * kPage;
  const auto end =
      (reinterpret_cast<std::uintptr_t>(bytes) + static_cast<std::uintptr_t>(n_bytes)) / kPage *
      kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

// A multiple of 64: groups of rows of whole words.
std::size_t interleaved_size(const kernels::Weight& weight) {
  return static_cast<std::size_t>(kernels::round_up(weight.rows, kGroup) * weight.row_bytes);
}

}  // namespace

Matrices::Matrices(const Program& program, const MatrixOptions& options) {
  const std::vector<std::int64_t> matrix_rows = rows_of_matrices(program);
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < program.weights().size(); ++i) {
    const kernels::Weight& stored = program.weights()[i];
    const bool is_mapped = program.is_mapped(static_cast<WeightIndex>(i));
    const kernels::MatmulKernel* interleaved =
        options.repacks && !options.exact_input
            ? kernels::interleaved_kernel(stored.format, options.isa)
            : nullptr;
    // The matrices of a stack must each begin with a group of rows.
    const bool fits = matrix_rows[i] == stored.rows || matrix_rows[i] % kGroup == 0;
    if (interleaved == nullptr || matrix_rows[i] == 0 || !fits) {
      const kernels::MatmulKernel& kernel =
          kernels::matmul_kernel(stored.format, options.isa, options.exact_input);
      entries_.push_back({{stored, &kernel}, stored, is_mapped, true, nullptr});
      continue;
    }
    const std::int64_t row_bytes = interleaved->interleaved_row_bytes(stored.columns);
    const kernels::Weight repacked{stored.format, stored.rows, stored.columns,
                                   nullptr,       row_bytes,   true};
    entries_.push_back({{repacked, interleaved}, stored, is_mapped, false, nullptr});
    bytes += interleaved_size(repacked);
  }
  if (bytes == 0) return;
  memory_ = Memory(bytes + kernels::kInterleavedMargin);
  auto* free = memory_.as<std::uint8_t>();
  for (Entry& entry : entries_) {
    if (entry.is_ready) continue;
    entry.matrix.weight.blocks = entry.interleaved = free;
    free += interleaved_size(entry.matrix.weight);
  }
}

void Matrices::interleave(Entry& entry, ThreadPool::Lease& lease) {
  const kernels::Weight& stored = entry.stored;
  // Pages are given back as it goes: both copies of a large matrix are never in memory together.
  constexpr std::int64_t kRows = 16 * kGroup;
  lease.parallel_for((stored.rows + kRows - 1) / kRows, [&](std::int64_t chunk, int) {
    const std::int64_t begin = chunk * kRows;
    const std::int64_t end = std::min(stored.rows, begin + kRows);
    entry.matrix.kernel->interleave(stored, begin, end, entry.interleaved);
    if (entry.is_mapped) {
      release_pages(stored.blocks + begin * stored.row_bytes, (end - begin) * stored.row_bytes);
    }
  });
  if (entry.is_mapped) release_pages(stored.blocks, stored.rows * stored.row_bytes);
  entry.is_ready = true;
}

}  // namespace lilliput::engine
