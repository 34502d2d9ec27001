// SPDX-License-Identifier: Apache-2.0
// The operations of a Program whose rows do not know each other, and the choice of rows.
#include <algorithm>
#include <type_traits>

#include "engine/linears.h"
#include "formats/format.h"

namespace lilliput::engine {
namespace {

template <typename T, typename... Ts>
constexpr bool is_one_of = (std::is_same_v<T, Ts> || ...);

// Whether the operation's rows do not know each other.
bool is_by_rows(const Operation& operation) {
  return std::visit(
      []<typename T>(const T&) {
        return is_one_of<T, Embed, RmsNorm, LayerNorm, Rope, Glu, Activate, Scale, Softcap, Add>;
      },
      operation);
}

}  // namespace

void Engine::find_runs() {
  const std::vector<Step>& steps = program_->steps();
  for (std::size_t begin = 0; begin < steps.size();) {
    const auto goes_on = [&](std::size_t i) {
      return i < steps.size() && steps[i].on_selected_rows == steps[begin].on_selected_rows &&
             !std::holds_alternative<SelectOutputRows>(steps[i].operation);
    };
    const auto is_linear = [&](std::size_t i) {
      return std::holds_alternative<LinearGroup>(steps[i].operation) ||
             std::holds_alternative<IntegerGroup>(steps[i].operation);
    };
    std::size_t rows_end = begin;
    while (goes_on(rows_end) && is_by_rows(steps[rows_end].operation)) ++rows_end;
    const bool takes_other = rows_end == begin || (goes_on(rows_end) && is_linear(rows_end));
    runs_.push_back({begin, rows_end, rows_end + (takes_other ? 1 : 0)});
    begin = runs_.back().end;
  }
}

void Engine::run_rows(const Pass& pass, const Run& steps, std::int64_t begin, std::int64_t end) {
  for (std::size_t i = steps.begin; i < steps.rows_end; ++i) {
    std::visit(
        [&](const auto& operation) {
          if constexpr (requires { run_rows(pass, operation, begin, end); }) {
            run_rows(pass, operation, begin, end);
          }
        },
        program_->steps()[i].operation);
  }
}

void Engine::run_steps(Pass& pass, const Run& steps) {
  const auto by_rows = [&](std::int64_t begin, std::int64_t end) {
    run_rows(pass, steps, begin, end);
  };
  if (steps.end == steps.rows_end) return pass.for_rows(kRowsTogether, by_rows);
  std::visit(
      [&](const auto& operation) {
        if constexpr (requires { run_linears(pass, operation, by_rows); }) {
          run_linears(pass, operation, by_rows);
        } else if constexpr (requires { run(pass, operation); }) {
          run(pass, operation);
        }
      },
      program_->steps()[steps.rows_end].operation);
}

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

void Engine::decode_row(const Embed& operation, std::int64_t row, float* values) const {
  const auto index = static_cast<std::size_t>(operation.weight);
  if (operation.is_integer) return program_->integers()[index].decode_row(row, values);
  const kernels::Weight& weight = program_->weights()[index];
  const formats::FormatTraits& traits = formats::traits(weight.format);
  traits.decode(weight.blocks + row * weight.row_bytes, values, weight.columns / traits.block_size);
}

// Calls body(x, floats, out) on whole rows.
template <typename Body>
void Engine::map_rows(const Pass& pass, BufferIndex out, BufferIndex x, std::int64_t begin,
                      std::int64_t end, Body body) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(x)];
  body(buffer(pass, x) + begin * width, (end - begin) * width, buffer(pass, out) + begin * width);
}

void Engine::run_rows(const Pass& pass, const Embed& operation, std::int64_t begin,
                      std::int64_t end) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.out)];
  float* out = buffer(pass, operation.out);
  for (std::int64_t row = begin; row < end; ++row) {
    float* values = out + row * width;
    decode_row(operation, table_row(pass, operation, row), values);
    if (operation.scale == 1.0f) continue;
    for (std::int64_t i = 0; i < width; ++i) values[i] *= operation.scale;
  }
}

void Engine::run_rows(const Pass& pass, const RmsNorm& operation, std::int64_t begin,
                      std::int64_t end) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.x)];
  const std::int64_t part = width / operation.groups;
  const float* weight = program_->vectors()[static_cast<std::size_t>(operation.weight)].data();
  const float* x = buffer(pass, operation.x);
  float* out = buffer(pass, operation.out);
  for (std::int64_t i = begin * operation.groups; i < end * operation.groups; ++i) {
    vector_kernels_.rms_norm(x + i * part, weight, operation.epsilon, part, out + i * part);
  }
}

void Engine::run_rows(const Pass& pass, const LayerNorm& operation, std::int64_t begin,
                      std::int64_t end) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.x)];
  const auto vector = [&](VectorIndex index) {
    return index == kNone ? nullptr : program_->vectors()[static_cast<std::size_t>(index)].data();
  };
  const float* weight = vector(operation.weight);
  const float* bias = vector(operation.bias);
  const float* x = buffer(pass, operation.x);
  float* out = buffer(pass, operation.out);
  for (std::int64_t row = begin; row < end; ++row) {
    vector_kernels_.layer_norm(x + row * width, weight, bias, operation.epsilon, width,
                               out + row * width);
  }
}

void Engine::run_rows(const Pass& pass, const Rope& operation, std::int64_t begin,
                      std::int64_t end) {
  const auto index = static_cast<std::size_t>(operation.frequencies);
  const auto pairs = static_cast<std::int64_t>(program_->ropes()[index].inverse.size());
  const float* cosine = angles_[index].as<float>();
  const float* sine = cosine + options_.batch * pairs;
  float* x = buffer(pass, operation.x);
  for (std::int64_t row = begin; row < end; ++row) {
    vector_kernels_.rope(x + row * operation.heads * operation.head_dim, operation.heads,
                         operation.head_dim, cosine + row * pairs, sine + row * pairs, pairs,
                         operation.style);
  }
}

void Engine::run_rows(const Pass& pass, const Glu& operation, std::int64_t begin,
                      std::int64_t end) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.up)];
  const float* gate = buffer(pass, operation.gate);
  const float* up = buffer(pass, operation.up);
  float* out = buffer(pass, operation.out);
  vector_kernels_.glu(gate + begin * width, up + begin * width, operation.activation,
                      (end - begin) * width, out + begin * width);
}

void Engine::run_rows(const Pass& pass, const Activate& operation, std::int64_t begin,
                      std::int64_t end) {
  map_rows(pass, operation.out, operation.x, begin, end,
           [&](const float* x, std::int64_t floats, float* out) {
             vector_kernels_.activate(x, operation.activation, floats, out);
           });
}

void Engine::run_rows(const Pass& pass, const Scale& operation, std::int64_t begin,
                      std::int64_t end) {
  map_rows(pass, operation.out, operation.x, begin, end,
           [&](const float* x, std::int64_t floats, float* out) {
             vector_kernels_.scale(x, operation.factor, floats, out);
           });
}

void Engine::run_rows(const Pass& pass, const Softcap& operation, std::int64_t begin,
                      std::int64_t end) {
  map_rows(pass, operation.out, operation.x, begin, end,
           [&](const float* x, std::int64_t floats, float* out) {
             vector_kernels_.softcap(x, operation.limit, floats, out);
           });
}

void Engine::run_rows(const Pass& pass, const Add& operation, std::int64_t begin,
                      std::int64_t end) {
  const std::int64_t width = program_->buffers()[static_cast<std::size_t>(operation.b)];
  const float* a = buffer(pass, operation.a);
  const float* b = buffer(pass, operation.b);
  float* out = buffer(pass, operation.out);
  vector_kernels_.add(a + begin * width, b + begin * width, (end - begin) * width,
                      out + begin * width);
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
