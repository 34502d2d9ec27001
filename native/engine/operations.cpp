// SPDX-License-Identifier: Apache-2.0
// The operations of a Program but attention.
#include <algorithm>

#include "engine/pass.h"
#include "formats/format.h"

namespace lilliput::engine {
namespace {

// From so many rows on, elementwise work outweighs waking the other threads (about 2 µs).
constexpr std::int64_t kRowsWorthSharing = 8;
// Below so many multiplications a linear ends sooner on one thread (about 10 µs).
constexpr std::int64_t kMultiplicationsWorthSharing = 300'000;
// Chunks per thread of a linear: the last one ends within the pool's spinning time (decode of 1B:
// 20-40 µs).
constexpr std::int64_t kChunksPerThread = 16;
// Rows below which a chunk reads its input more often than its weights are worth.
constexpr std::int64_t kFewestRows = 16;
constexpr std::int64_t kFewestRowsOfManyTokens = 64;
constexpr std::int64_t kManyTokens = 16;

std::size_t cache_line_aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

void add_bias(const std::vector<float>& bias, std::int64_t row_begin, std::int64_t row_end,
              std::int64_t tokens, std::int64_t stride, float* y) {
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      y[token * stride + row] += bias[static_cast<std::size_t>(row)];
    }
  }
}

}  // namespace

// The row of the table that row `row` of the batch takes.
std::int64_t Engine::table_row(const Pass& pass, const Embed& operation, std::int64_t row) const {
  const auto index = static_cast<std::size_t>(row);
  switch (operation.by) {
    case EmbedBy::position:
      return pass.position(row) + operation.offset;
    case EmbedBy::segment:
      return pass.segments.empty() ? 0 : pass.segments[index];
    case EmbedBy::token:
      break;
  }
  return pass.tokens[index];
}

// Calls body(x, floats, out) on runs of whole rows.
template <typename Body>
void Engine::run_elementwise(const Pass& pass, BufferIndex out, BufferIndex x, Body body) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(x)];
  const float* from = buffer(pass, x);
  float* to = buffer(pass, out);
  pass.for_rows(kRowsWorthSharing, [&](std::int64_t begin, std::int64_t end) {
    body(from + begin * width, (end - begin) * width, to + begin * width);
  });
}

void Engine::run(Pass& pass, const Embed& operation) {
  const kernels::Weight& weight = program_->weights()[static_cast<std::size_t>(operation.weight)];
  const formats::FormatTraits& traits = formats::traits(weight.format);
  float* out = buffer(pass, operation.out);
  pass.for_rows(kRowsWorthSharing, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      float* values = out + row * weight.columns;
      const std::int64_t chosen = table_row(pass, operation, row);
      traits.decode(weight.blocks + chosen * weight.row_bytes, values,
                    weight.columns / traits.block_size);
      if (operation.scale == 1.0f) continue;
      for (std::int64_t i = 0; i < weight.columns; ++i) values[i] *= operation.scale;
    }
  });
}

void Engine::run(Pass& pass, const RmsNorm& operation) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.x)];
  const std::int64_t part = width / operation.groups;
  const float* weight = program_->vectors()[static_cast<std::size_t>(operation.weight)].data();
  const float* x = buffer(pass, operation.x);
  float* out = buffer(pass, operation.out);
  pass.for_rows(kRowsWorthSharing, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin * operation.groups; i < end * operation.groups; ++i) {
      vector_kernels_.rms_norm(x + i * part, weight, operation.epsilon, part, out + i * part);
    }
  });
}

void Engine::run(Pass& pass, const LayerNorm& operation) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.x)];
  const auto vector = [&](VectorIndex index) {
    return index == kNone ? nullptr : program_->vectors()[static_cast<std::size_t>(index)].data();
  };
  const float* weight = vector(operation.weight);
  const float* bias = vector(operation.bias);
  const float* x = buffer(pass, operation.x);
  float* out = buffer(pass, operation.out);
  pass.for_rows(kRowsWorthSharing, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      vector_kernels_.layer_norm(x + row * width, weight, bias, operation.epsilon, width,
                                 out + row * width);
    }
  });
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

void Engine::run(Pass& pass, const LinearGroup& operation) {
  const float* x = buffer(pass, operation.x);
  const std::int64_t columns = program_->buffers()[static_cast<std::size_t>(operation.x)];
  std::int64_t outputs = 0;
  for (const LinearPart& part : operation.parts) {
    outputs += program_->buffers()[static_cast<std::size_t>(part.out)];
    matrices_.make_ready(part.weight, pass.lease);
  }
  const bool shares =
      pass.lease.threads() > 1 && pass.rows * columns * outputs >= kMultiplicationsWorthSharing;
  const LinearPlan plan = plan_linears(operation, pass.rows, shares);
  for (const LinearPlan::Preparation& preparation : plan.preparations) {
    const kernels::MatmulKernel& kernel = *preparation.kernel;
    const std::int64_t step = kernels::round_up(kRowsWorthSharing, kernel.token_tile);
    pass.for_chunks((pass.rows + step - 1) / step, shares && pass.rows > step,
                    [&](std::int64_t chunk, int) {
                      kernel.prepare(x, columns, pass.rows, columns, chunk * step,
                                     std::min(pass.rows, (chunk + 1) * step), preparation.memory);
                    });
  }
  pass.for_chunks(plan.chunks, shares, [&](std::int64_t chunk, int thread) {
    std::size_t index = plan.parts.size() - 1;
    while (plan.parts[index].first_chunk > chunk) --index;
    const LinearPlan::Part& part = plan.parts[index];
    const std::int64_t begin = (chunk - part.first_chunk) * part.chunk_rows;
    const std::int64_t end = std::min(part.weight->rows, begin + part.chunk_rows);
    float* y = buffer(pass, part.linear->out);
    part.kernel->multiply(*part.weight, plan.preparations[part.preparation].memory, pass.rows, y,
                          part.weight->rows, begin, end, thread_scratch(thread));
    if (part.linear->bias != kNone) {
      add_bias(program_->vectors()[static_cast<std::size_t>(part.linear->bias)], begin, end,
               pass.rows, part.weight->rows, y);
    }
  });
}

void Engine::run(Pass& pass, const Rope& operation) {
  const auto index = static_cast<std::size_t>(operation.frequencies);
  const auto pairs = static_cast<std::int64_t>(program_->ropes()[index].inverse.size());
  const float* cosine = angles_[index].as<float>();
  const float* sine = cosine + options_.batch * pairs;
  float* x = buffer(pass, operation.x);
  pass.for_rows(kRowsWorthSharing, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      vector_kernels_.rope(x + row * operation.heads * operation.head_dim, operation.heads,
                           operation.head_dim, cosine + row * pairs, sine + row * pairs, pairs,
                           operation.style);
    }
  });
}

void Engine::run(Pass& pass, const Glu& operation) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.up)];
  const float* gate = buffer(pass, operation.gate);
  const float* up = buffer(pass, operation.up);
  float* out = buffer(pass, operation.out);
  pass.for_rows(kRowsWorthSharing, [&](std::int64_t begin, std::int64_t end) {
    vector_kernels_.glu(gate + begin * width, up + begin * width, operation.activation,
                        (end - begin) * width, out + begin * width);
  });
}

void Engine::run(Pass& pass, const Activate& operation) {
  run_elementwise(pass, operation.out, operation.x,
                  [&](const float* x, std::int64_t floats, float* out) {
                    vector_kernels_.activate(x, operation.activation, floats, out);
                  });
}

void Engine::run(Pass& pass, const Scale& operation) {
  run_elementwise(pass, operation.out, operation.x,
                  [&](const float* x, std::int64_t floats, float* out) {
                    vector_kernels_.scale(x, operation.factor, floats, out);
                  });
}

void Engine::run(Pass& pass, const Softcap& operation) {
  run_elementwise(pass, operation.out, operation.x,
                  [&](const float* x, std::int64_t floats, float* out) {
                    vector_kernels_.softcap(x, operation.limit, floats, out);
                  });
}

void Engine::run(Pass& pass, const Add& operation) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.b)];
  const float* a = buffer(pass, operation.a);
  const float* b = buffer(pass, operation.b);
  float* out = buffer(pass, operation.out);
  pass.for_rows(kRowsWorthSharing, [&](std::int64_t begin, std::int64_t end) {
    vector_kernels_.add(a + begin * width, b + begin * width, (end - begin) * width,
                        out + begin * width);
  });
}

void Engine::run(Pass& pass, const SelectOutputRows& operation) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.x)];
  const float* x = buffer(pass, operation.x);
  float* out = buffer(pass, operation.out);
  for (std::int64_t row = 0; row < pass.rows; ++row) {
    const std::int64_t source = pass.output_rows[static_cast<std::size_t>(row)];
    std::copy_n(x + source * width, width, out + row * width);
  }
}

}  // namespace lilliput::engine
