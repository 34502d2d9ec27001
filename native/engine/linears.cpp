// SPDX-License-Identifier: Apache-2.0
// Linear layers: which rows of which weight a thread takes, and what is done with what it gives.
#include "engine/linears.h"

#include <algorithm>

namespace lilliput::engine {
namespace {

// Chunks per thread of a linear: the last one ends within the pool's spinning time (decode of 1B:
// 20-40 µs).
constexpr std::int64_t kChunksPerThread = 16;
// Rows below which a chunk reads its input more often than its weights are worth.
constexpr std::int64_t kFewestRows = 16;
constexpr std::int64_t kFewestRowsOfManyTokens = 64;
constexpr std::int64_t kManyTokens = 16;
// Up to so many tokens a linear of integers ends when its weights are read.
constexpr std::int64_t kTokensOfStreams = 4;

std::size_t cache_line_aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

void add_bias(const std::vector<float>& bias, std::int64_t row_begin, std::int64_t row_end,
              std::int64_t tokens, std::int64_t stride, float* y) {
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      y[token * stride + row] += bias[static_cast<std::size_t>(row)];
    }
  }
}

// What the kernel of integers does with its results itself.
kernels::Finish finish_of(std::optional<kernels::Activation> activation) {
  if (activation == kernels::Activation::gelu) return kernels::Finish::gelu;
  if (activation == kernels::Activation::relu) return kernels::Finish::relu;
  return kernels::Finish::none;
}

}  // namespace

bool Engine::shares_linears(const Pass& pass, BufferIndex x,
                            const std::vector<LinearPart>& parts) const {
  const auto width = [&](BufferIndex index) {
    return program_->buffers()[static_cast<std::size_t>(index)];
  };
  std::int64_t outputs = 0;
  for (const LinearPart& part : parts) outputs += width(part.out);
  return pass.lease.threads() > 1 && pass.rows * width(x) * outputs >= kMultiplicationsWorthSharing;
}

Engine::LinearPlan Engine::plan_linears(const LinearGroup& group, std::int64_t tokens,
                                        bool shares) const {
  LinearPlan plan;
  std::uint8_t* memory = prepared_.as<std::uint8_t>();
  const std::int64_t wanted_chunks = shares ? options_.threads * kChunksPerThread : 1;
  const std::int64_t fewest_rows = tokens < kManyTokens ? kFewestRows : kFewestRowsOfManyTokens;
  for (const LinearPart& part : group.parts) {
    const auto& [weight, kernel_of_weight] = matrices_[part.weight];
    const kernels::MatmulKernel& kernel = *kernel_of_weight;
    const auto same = std::find_if(
        plan.preparations.begin(), plan.preparations.end(),
        [&](const LinearPlan::Preparation& p) { return p.kernel->prepare == kernel.prepare; });
    const auto index = static_cast<std::size_t>(same - plan.preparations.begin());
    if (same == plan.preparations.end()) {
      plan.preparations.push_back({&kernel, memory});
      memory += cache_line_aligned(kernel.prepared_bytes(tokens, weight.columns));
    }
    const std::int64_t even_rows = (weight.rows + wanted_chunks - 1) / wanted_chunks;
    const std::int64_t chunk_rows =
        kernels::round_up(kernels::round_up(even_rows, fewest_rows), kernel.row_tile);
    plan.parts.push_back({&part, &weight, &kernel, index, plan.chunks, chunk_rows});
    plan.chunks += (weight.rows + chunk_rows - 1) / chunk_rows;
  }
  return plan;
}

// What follows the product of rows [begin, end) of a weight, while they are in cache.
void Engine::finish_part(const Pass& pass, const LinearPart& part, std::int64_t begin,
                         std::int64_t end, const TokenShare& share, bool has_bias) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(part.out)];
  float* y = buffer(pass, part.out) + share.begin * width;
  if (part.bias != kNone && !has_bias) {
    add_bias(program_->vectors()[static_cast<std::size_t>(part.bias)], begin, end, share.tokens(),
             width, y);
  }
  if (!part.activation) return;
  for (std::int64_t token = 0; token < share.tokens(); ++token) {
    float* values = y + token * width + begin;
    vector_kernels_.activate(values, *part.activation, end - begin, values);
  }
}

void Engine::multiply(Pass& pass, const LinearPlan& plan, bool shares) {
  pass.for_chunks(plan.chunks, shares, [&](std::int64_t chunk, int thread) {
    std::size_t index = plan.parts.size() - 1;
    while (plan.parts[index].first_chunk > chunk) --index;
    const LinearPlan::Part& part = plan.parts[index];
    const std::int64_t begin = (chunk - part.first_chunk) * part.chunk_rows;
    const std::int64_t end = std::min(part.weight->rows, begin + part.chunk_rows);
    part.kernel->multiply(*part.weight, plan.preparations[part.preparation].memory, pass.rows,
                          buffer(pass, part.linear->out), part.weight->rows, begin, end,
                          thread_scratch(thread));
    finish_part(pass, *part.linear, begin, end, {0, pass.rows, nullptr}, false);
  });
}

std::size_t Engine::integer_input_bytes(const IntegerGroup& group, std::int64_t tokens) const {
  const std::int64_t columns = program_->buffers()[static_cast<std::size_t>(group.x)];
  return integer_kernel_.prepared_bytes(tokens, columns, group.groups(*program_));
}

// Tokens [begin, end) of a share as integers.
void Engine::prepare(const Pass& pass, const IntegerGroup& group, const TokenShare& share,
                     std::int64_t begin, std::int64_t end) {
  const std::int64_t columns = program_->buffers()[static_cast<std::size_t>(group.x)];
  const kernels::Activations x{buffer(pass, group.x) + share.begin * columns,
                               kernels::NumberType::f32, share.tokens(), columns, columns};
  integer_kernel_.prepare(x, group.input, group.groups(*program_), begin - share.begin,
                          end - share.begin, share.prepared);
}

void Engine::multiply(Pass& pass, const IntegerGroup& group, bool shares) {
  // Small chunks, so that threads end together; of one thread too, so that what follows finds its
  // rows in cache. Of few tokens larger ones, which are read like a stream.
  std::int64_t chunk_rows = integer_kernel_.row_tile;
  if (pass.rows <= kTokensOfStreams) {
    std::int64_t rows = 0;
    for (const LinearPart& part : group.parts) {
      rows += program_->buffers()[static_cast<std::size_t>(part.out)];
    }
    const std::int64_t wanted = shares ? pass.lease.threads() * kChunksPerThread : 1;
    chunk_rows = kernels::round_up((rows + wanted - 1) / wanted, chunk_rows);
  }
  const auto chunks_of = [&](const LinearPart& part) {
    const std::int64_t rows = program_->buffers()[static_cast<std::size_t>(part.out)];
    return (rows + chunk_rows - 1) / chunk_rows;
  };
  std::int64_t chunks = 0;
  for (const LinearPart& part : group.parts) chunks += chunks_of(part);
  const TokenShare all{0, pass.rows, prepared_.as<std::uint8_t>()};
  pass.for_chunks(chunks, shares, [&](std::int64_t chunk, int) {
    std::size_t index = 0;
    while (chunk >= chunks_of(group.parts[index])) chunk -= chunks_of(group.parts[index++]);
    multiply_rows(pass, group, index, chunk * chunk_rows, (chunk + 1) * chunk_rows, all);
  });
}

// Rows [begin, end) of a part's weight, or as far as it has them, with the tokens of a share.
void Engine::multiply_rows(const Pass& pass, const IntegerGroup& group, std::size_t index,
                           std::int64_t begin, std::int64_t end, const TokenShare& share) {
  const LinearPart& part = group.parts[index];
  const kernels::IntegerWeight& weight =
      program_->integers()[static_cast<std::size_t>(part.weight)].weight();
  end = std::min(weight.rows, end);
  const float* bias = part.bias == kNone
                          ? nullptr
                          : program_->vectors()[static_cast<std::size_t>(part.bias)].data();
  const kernels::Output y{buffer(pass, part.out) + share.begin * weight.rows,
                          kernels::NumberType::f32, weight.rows, bias, finish_of(part.activation)};
  integer_kernel_.multiply(weight, group.input, group.sums[index].data(), share.prepared,
                           share.tokens(), y, begin, end);
  if (y.finish == kernels::Finish::none) finish_part(pass, part, begin, end, share, true);
}

}  // namespace lilliput::engine
