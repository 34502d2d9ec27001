// SPDX-License-Identifier: Apache-2.0
// Mixtures of experts: routes tokens, and runs each expert on all of its tokens together.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "engine/pass.h"

namespace lilliput::engine {
namespace {

// As in operations.cpp: multiplications below which one thread ends sooner, chunks per thread, rows
// of a chunk at least.
constexpr std::int64_t kMultiplicationsWorthSharing = 300'000;
constexpr std::int64_t kChunksPerThread = 16;
constexpr std::int64_t kFewestRows = 16;

std::size_t cache_line_aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// The matrix of one expert.
kernels::Weight of_expert(const kernels::Weight& stack, std::int64_t expert, std::int64_t rows) {
  return {stack.format,    rows,
          stack.columns,   stack.blocks + expert * rows * stack.row_bytes,
          stack.row_bytes, stack.is_interleaved};
}

}  // namespace

// One Experts operation of one pass. An assignment is one of the experts of one token; assignments
// lie expert by expert, tokens in order, so that an expert's are neighbours.
struct Engine::ExpertsRun {
  // Assignments [first, first + count) belong to an expert.
  struct Group {
    std::int64_t expert;
    std::int64_t first;
    std::int64_t count;
  };
  // One product of a stack of matrices with the inputs of all groups.
  struct Product {
    WeightIndex weight;
    float* y;
  };
  // The same of matrices of integers.
  struct IntegerProduct {
    const IntegerStack* stack;
    float* y;
  };

  Engine& engine;
  Pass& pass;
  const Experts& operation;
  std::int64_t experts;
  std::int64_t hidden;
  std::int64_t ffn;
  std::vector<Group> groups;
  std::vector<std::int64_t> token_of;   // by assignment
  std::vector<std::int64_t> placed_at;  // assignment by token and rank
  std::vector<float> share;             // by token and rank

  ExpertsRun(Engine& engine, Pass& pass, const Experts& operation)
      : engine(engine), pass(pass), operation(operation) {
    const auto& buffers = engine.program_->buffers();
    experts = buffers[static_cast<std::size_t>(operation.router)];
    hidden = buffers[static_cast<std::size_t>(operation.x)];
    ffn = engine.program_->ffn_of(operation);
  }

  std::int64_t assignments() const { return pass.rows * operation.used; }

  // Chooses each token's experts. share = softmax over all logits, divided by its sum over the
  // chosen where the operation says so.
  void route() {
    const float* logits = engine.buffer(pass, operation.router);
    const auto total = static_cast<std::size_t>(assignments());
    std::vector<std::int64_t> chosen(total);
    share.resize(total);
    std::vector<std::int64_t> order(static_cast<std::size_t>(experts));
    for (std::int64_t row = 0; row < pass.rows; ++row) {
      choose(logits + row * experts, order, chosen.data() + row * operation.used,
             share.data() + row * operation.used);
    }
    place(chosen);
  }

  void choose(const float* logits, std::vector<std::int64_t>& order, std::int64_t* chosen,
              float* shares) const {
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + operation.used, order.end(),
                      [logits](std::int64_t a, std::int64_t b) {
                        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                      });
    const float top = logits[order[0]];
    const std::int64_t counted = operation.normalizes ? operation.used : experts;
    float sum = 0.0f;
    for (std::int64_t i = 0; i < counted; ++i) {
      sum += std::exp(logits[operation.normalizes ? order[static_cast<std::size_t>(i)] : i] - top);
    }
    for (std::int64_t i = 0; i < operation.used; ++i) {
      chosen[i] = order[static_cast<std::size_t>(i)];
      shares[i] = std::exp(logits[chosen[i]] - top) / sum;
    }
  }

  // Sorts assignments by expert, tokens in order.
  void place(const std::vector<std::int64_t>& chosen) {
    std::vector<std::int64_t> next(static_cast<std::size_t>(experts) + 1);
    for (const std::int64_t expert : chosen) ++next[static_cast<std::size_t>(expert) + 1];
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const auto index = static_cast<std::size_t>(expert);
      const std::int64_t count = next[index + 1];
      if (count > 0) groups.push_back({expert, next[index], count});
      next[index + 1] += next[index];
    }
    token_of.resize(chosen.size());
    placed_at.resize(chosen.size());
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const std::int64_t at = next[static_cast<std::size_t>(chosen[i])]++;
      token_of[static_cast<std::size_t>(at)] = static_cast<std::int64_t>(i) / operation.used;
      placed_at[i] = at;
    }
  }

  bool shares_work(std::int64_t columns, std::int64_t outputs) const {
    return pass.lease.threads() > 1 &&
           assignments() * columns * outputs >= kMultiplicationsWorthSharing;
  }

  // y[assignment] = matrix of its expert * x[assignment], for each product. x: [assignments] rows,
  // or one row for all of them (is_shared).
  void multiply(const float* x, std::int64_t columns, std::int64_t outputs, bool is_shared,
                std::span<const Product> products) {
    const bool shares = shares_work(columns, outputs * static_cast<std::int64_t>(products.size()));
    // Prepared inputs by kernel that prepares alike, then by group.
    std::vector<const kernels::MatmulKernel*> kernels;
    std::vector<std::size_t> kernel_of;
    for (const Product& product : products) {
      engine.matrices_.make_ready(product.weight, pass.lease);
      const auto* kernel = engine.matrices_[product.weight].kernel;
      const auto same = std::find_if(kernels.begin(), kernels.end(),
                                     [&](const auto* k) { return k->prepare == kernel->prepare; });
      kernel_of.push_back(static_cast<std::size_t>(same - kernels.begin()));
      if (same == kernels.end()) kernels.push_back(kernel);
    }
    const std::size_t inputs = is_shared ? 1 : groups.size();
    std::vector<std::size_t> offsets{0};
    for (const auto* kernel : kernels) {
      for (std::size_t i = 0; i < inputs; ++i) {
        offsets.push_back(offsets.back() +
                          cache_line_aligned(kernel->prepared_bytes(groups[i].count, columns)));
      }
    }
    std::uint8_t* memory = engine.expert_inputs(offsets.back());
    pass.for_chunks(static_cast<std::int64_t>(offsets.size()) - 1, shares && inputs > 1,
                    [&](std::int64_t chunk, int) {
                      const auto index = static_cast<std::size_t>(chunk);
                      const Group& group = groups[index % inputs];
                      const float* rows = is_shared ? x : x + group.first * columns;
                      kernels[index / inputs]->prepare(rows, columns, group.count, columns, 0,
                                                       group.count, memory + offsets[index]);
                    });
    const auto runs = static_cast<std::int64_t>(products.size() * groups.size());
    const std::int64_t row_tile = kernels.size() == 1 ? kernels[0]->row_tile : common_tile(kernels);
    const std::int64_t chunk_rows = rows_of_chunks(runs, outputs, row_tile, shares);
    const std::int64_t chunks = (outputs + chunk_rows - 1) / chunk_rows;
    pass.for_chunks(runs * chunks, shares, [&](std::int64_t chunk, int thread) {
      const auto run = static_cast<std::size_t>(chunk / chunks);
      const std::size_t product = run / groups.size();
      const std::size_t index = run % groups.size();
      const Group& group = groups[index];
      const auto& [stack, kernel] = engine.matrices_[products[product].weight];
      const std::size_t input = kernel_of[product] * inputs + (is_shared ? 0 : index);
      const std::int64_t begin = chunk % chunks * chunk_rows;
      kernel->multiply(of_expert(stack, group.expert, outputs), memory + offsets[input],
                       group.count, products[product].y + group.first * outputs, outputs, begin,
                       std::min(outputs, begin + chunk_rows), engine.thread_scratch(thread));
    });
  }

  // Rows that one chunk of a product takes, a multiple of `row_tile`, of `runs` such products.
  std::int64_t rows_of_chunks(std::int64_t runs, std::int64_t outputs, std::int64_t row_tile,
                              bool shares) const {
    const std::int64_t wanted = shares ? engine.options_.threads * kChunksPerThread : 1;
    const std::int64_t pieces = std::max<std::int64_t>(1, (wanted + runs - 1) / runs);
    const std::int64_t fewest = std::max(kFewestRows, (outputs + pieces - 1) / pieces);
    return kernels::round_up(fewest, row_tile);
  }

  const IntegerMatrix& matrix_of(const IntegerStack& stack, std::int64_t expert) const {
    return engine.program_->integers()[static_cast<std::size_t>(stack.first + expert)];
  }

  // As `multiply`; the products have inputs alike.
  void multiply_integers(const float* x, std::int64_t columns, std::int64_t outputs, bool is_shared,
                         std::span<const IntegerProduct> products) {
    const bool shares = shares_work(columns, outputs * static_cast<std::int64_t>(products.size()));
    const kernels::IntegerKernel& kernel = engine.integer_kernel_;
    const kernels::IntegerInput& input = products[0].stack->input;
    const std::int64_t scales = std::max(matrix_of(*products[0].stack, 0).groups(), input.groups);
    const std::size_t inputs = is_shared ? 1 : groups.size();
    std::vector<std::size_t> offsets{0};
    for (std::size_t i = 0; i < inputs; ++i) {
      offsets.push_back(offsets.back() + cache_line_aligned(kernel.prepared_bytes(
                                             groups[i].count, columns, scales)));
    }
    std::uint8_t* memory = engine.expert_inputs(offsets.back());
    pass.for_chunks(
        static_cast<std::int64_t>(inputs), shares && inputs > 1, [&](std::int64_t chunk, int) {
          const auto index = static_cast<std::size_t>(chunk);
          const Group& group = groups[index];
          const kernels::Activations rows{is_shared ? x : x + group.first * columns,
                                          kernels::NumberType::f32, group.count, columns, columns};
          kernel.prepare(rows, input, scales, 0, group.count, memory + offsets[index]);
        });
    const auto runs = static_cast<std::int64_t>(products.size() * groups.size());
    const std::int64_t chunk_rows = rows_of_chunks(runs, outputs, kernel.row_tile, shares);
    const std::int64_t chunks = (outputs + chunk_rows - 1) / chunk_rows;
    pass.for_chunks(runs * chunks, shares, [&](std::int64_t chunk, int) {
      const auto run = static_cast<std::size_t>(chunk / chunks);
      const IntegerProduct& product = products[run / groups.size()];
      const std::size_t index = run % groups.size();
      const Group& group = groups[index];
      const kernels::Output y{product.y + group.first * outputs, kernels::NumberType::f32, outputs,
                              nullptr};
      const std::int64_t begin = chunk % chunks * chunk_rows;
      kernel.multiply(matrix_of(*product.stack, group.expert).weight(), input,
                      product.stack->sums[static_cast<std::size_t>(group.expert)].data(),
                      memory + offsets[is_shared ? 0 : index], group.count, y, begin,
                      std::min(outputs, begin + chunk_rows));
    });
  }

  // Gate and up of every assignment, and down.
  void multiply_up(const float* x, bool is_shared, float* gate, float* up) {
    if (operation.integers.empty()) {
      multiply(x, hidden, ffn, is_shared,
               std::array<Product, 2>{{{operation.gate, gate}, {operation.up, up}}});
      return;
    }
    multiply_integers(x, hidden, ffn, is_shared,
                      std::array<IntegerProduct, 2>{
                          {{&operation.integers[0], gate}, {&operation.integers[1], up}}});
  }
  void multiply_down(const float* x, float* y) {
    if (operation.integers.empty()) {
      multiply(x, ffn, hidden, false, std::array<Product, 1>{{{operation.down, y}}});
      return;
    }
    multiply_integers(x, ffn, hidden, false,
                      std::array<IntegerProduct, 1>{{{&operation.integers[2], y}}});
  }

  static std::int64_t common_tile(const std::vector<const kernels::MatmulKernel*>& kernels) {
    std::int64_t tile = 1;
    for (const auto* kernel : kernels) tile = std::lcm(tile, kernel->row_tile);
    return tile;
  }

  void run() {
    route();
    const std::int64_t total = assignments();
    float* rows = engine.expert_values_.as<float>();
    float* gate = rows + engine.options_.batch * operation.used * hidden;
    float* up = gate + engine.options_.batch * operation.used * ffn;
    const float* x = engine.buffer(pass, operation.x);
    const bool is_shared = pass.rows == 1;
    if (!is_shared) {
      for (std::int64_t i = 0; i < total; ++i) {
        std::copy_n(x + token_of[static_cast<std::size_t>(i)] * hidden, hidden, rows + i * hidden);
      }
    }
    multiply_up(is_shared ? x : rows, is_shared, gate, up);
    constexpr std::int64_t kStep = 8;
    pass.for_chunks((total + kStep - 1) / kStep, total > kStep && pass.lease.threads() > 1,
                    [&](std::int64_t chunk, int) {
                      const std::int64_t first = chunk * kStep;
                      const std::int64_t floats = (std::min(total, first + kStep) - first) * ffn;
                      engine.vector_kernels_.glu(gate + first * ffn, up + first * ffn,
                                                 operation.activation, floats, gate + first * ffn);
                    });
    // Gathered inputs are used up: their memory takes the outputs.
    multiply_down(gate, rows);
    join(rows);
  }

  // out[token] = sum over its experts, the likeliest first, of share * y
  void join(const float* y) const {
    float* out = engine.buffer(pass, operation.out);
    pass.for_rows(8, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        float* sum = out + row * hidden;
        std::fill_n(sum, hidden, 0.0f);
        for (std::int64_t rank = 0; rank < operation.used; ++rank) {
          const auto index = static_cast<std::size_t>(row * operation.used + rank);
          const float* values = y + placed_at[index] * hidden;
          for (std::int64_t i = 0; i < hidden; ++i) sum[i] += share[index] * values[i];
        }
      }
    });
  }
};

// Memory for the prepared inputs of one product; it grows with the batch.
std::uint8_t* Engine::expert_inputs(std::size_t bytes) {
  if (expert_inputs_.bytes() < bytes) expert_inputs_ = Memory(bytes);
  return expert_inputs_.as<std::uint8_t>();
}

void Engine::run(Pass& pass, const Experts& operation) { ExpertsRun(*this, pass, operation).run(); }

}  // namespace lilliput::engine
