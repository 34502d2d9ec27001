// SPDX-License-Identifier: Apache-2.0
#include "engine/program.h"

#include <algorithm>
#include <stdexcept>

#include "formats/format.h"

namespace lilliput::engine {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

template <typename T>
const T& at(const std::vector<T>& items, int index, const char* what) {
  if (index < 0 || static_cast<std::size_t>(index) >= items.size()) {
    refuse(std::string(what) + " " + std::to_string(index) + " is not one of the program's " +
           std::to_string(items.size()));
  }
  return items[static_cast<std::size_t>(index)];
}

}  // namespace

std::int64_t IntegerGroup::groups(const Program& program) const {
  return std::max(input.groups,
                  program.integers()[static_cast<std::size_t>(parts.front().weight)].groups());
}

BufferIndex Program::add_buffer(std::int64_t width) {
  if (width < 1) refuse("buffer width is " + std::to_string(width) + ", must be at least 1");
  buffers_.push_back(width);
  written_.push_back(Rows::none);
  held_all_.push_back(false);
  return static_cast<BufferIndex>(buffers_.size()) - 1;
}

WeightIndex Program::add_weight(const std::string& name, const std::string& format,
                                std::int64_t rows, std::int64_t columns,
                                std::span<const std::uint8_t> blocks, bool is_mapped) {
  const formats::FormatId id = formats::format_by_name(format);
  const formats::FormatTraits& traits = formats::traits(id);
  if (traits.decode == nullptr) refuse(name + ": the native core cannot decode " + format);
  if (rows < 1 || columns < 1 || columns % traits.block_size != 0) {
    refuse(name + ": shape [" + std::to_string(rows) + ", " + std::to_string(columns) +
           "] does not divide into " + format + "'s blocks of " +
           std::to_string(traits.block_size));
  }
  const std::int64_t row_bytes = columns / traits.block_size * traits.block_bytes;
  if (static_cast<std::int64_t>(blocks.size()) != rows * row_bytes) {
    refuse(name + ": " + std::to_string(blocks.size()) + " bytes, but " + format +
           " of this shape takes " + std::to_string(rows * row_bytes));
  }
  weights_.push_back({id, rows, columns, blocks.data(), row_bytes});
  weight_names_.push_back(name);
  is_mapped_.push_back(is_mapped);
  return static_cast<WeightIndex>(weights_.size()) - 1;
}

IntegerIndex Program::add_integers(IntegerMatrix matrix) {
  integers_.push_back(std::move(matrix));
  return static_cast<IntegerIndex>(integers_.size()) - 1;
}

VectorIndex Program::add_vector(std::vector<float> values) {
  vectors_.push_back(std::move(values));
  return static_cast<VectorIndex>(vectors_.size()) - 1;
}

RopeIndex Program::add_rope(std::vector<double> inverse_frequencies, double magnitude) {
  ropes_.push_back({std::move(inverse_frequencies), magnitude});
  return static_cast<RopeIndex>(ropes_.size()) - 1;
}

int Program::add_state(std::int64_t kv_heads, std::int64_t head_dim) {
  if (kv_heads < 1 || head_dim < 1) refuse("a layer's cache needs at least one head of width 1");
  states_.push_back({kv_heads, head_dim});
  return static_cast<int>(states_.size()) - 1;
}

int Program::add_shared_state(std::int64_t kv_heads, std::int64_t head_dim) {
  if (kv_heads < 1 || head_dim < 1) refuse("a layer's cache needs at least one head of width 1");
  shared_states_.push_back({kv_heads, head_dim});
  return static_cast<int>(shared_states_.size()) - 1;
}

BiasIndex Program::add_bias(std::int64_t heads, std::vector<float> values) {
  const auto count = static_cast<std::int64_t>(values.size());
  if (heads < 1 || count % heads != 0 || count / heads % 2 != 1) {
    refuse("relative bias: " + std::to_string(count) +
           " values are not an odd number for each of " + std::to_string(heads) + " heads");
  }
  biases_.push_back({heads, count / heads / 2, std::move(values)});
  return static_cast<BiasIndex>(biases_.size()) - 1;
}

std::int64_t Program::width(BufferIndex buffer) const { return at(buffers_, buffer, "buffer"); }

Program::Rows Program::rows_of(BufferIndex buffer) const {
  const Rows rows = at(written_, buffer, "buffer");
  if (rows == Rows::none)
    refuse("buffer " + std::to_string(buffer) + " is read before it is written");
  return rows;
}

void Program::check_width(const char* what, BufferIndex buffer, std::int64_t expected) const {
  if (width(buffer) != expected) {
    refuse(std::string(what) + ": buffer " + std::to_string(buffer) + " has width " +
           std::to_string(width(buffer)) + ", must be " + std::to_string(expected));
  }
}

void Program::check_vector(const char* what, VectorIndex vector, std::int64_t expected) const {
  const auto size = static_cast<std::int64_t>(at(vectors_, vector, "vector").size());
  if (size != expected) {
    refuse(std::string(what) + " has " + std::to_string(size) + " values, must have " +
           std::to_string(expected));
  }
}

void Program::append(Operation operation, Rows rows, BufferIndex out) {
  if (output_ != kNone) refuse("operation after the program's output was set");
  steps_.push_back({std::move(operation), rows == Rows::selected});
  mark_written(out, rows);
}

// An operation of one input that makes as many values of each row.
void Program::append_elementwise(const char* what, const Operation& operation, BufferIndex out,
                                 BufferIndex x) {
  check_width(what, out, width(x));
  append(operation, rows_of(x), out);
}

void Program::mark_written(BufferIndex buffer, Rows rows) {
  written_[static_cast<std::size_t>(buffer)] = rows;
  if (rows == Rows::all) held_all_[static_cast<std::size_t>(buffer)] = true;
}

void Program::add(const Embed& operation) {
  std::int64_t rows;
  if (operation.is_integer) {
    const IntegerMatrix& matrix = at(integers_, operation.weight, "matrix of integers");
    check_width("embed", operation.out, matrix.columns());
    rows = matrix.rows();
  } else {
    const kernels::Weight& weight = at(weights_, operation.weight, "weight");
    check_width("embed", operation.out, weight.columns);
    rows = weight.rows;
  }
  switch (operation.by) {
    case EmbedBy::token:
      vocabulary_ = vocabulary_ == 0 ? rows : std::min(vocabulary_, rows);
      break;
    case EmbedBy::position:
      if (operation.offset < 0 || operation.offset >= rows) {
        refuse("embed: offset " + std::to_string(operation.offset) + " leaves no position of " +
               std::to_string(rows));
      }
      positions_ = std::min(positions_, rows - operation.offset);
      break;
    case EmbedBy::segment:
      segments_ = segments_ == 1 ? rows : std::min(segments_, rows);
      break;
  }
  append(operation, Rows::all, operation.out);
}

void Program::add(const RmsNorm& operation) {
  check_width("rms_norm", operation.out, width(operation.x));
  if (operation.groups < 1 || width(operation.x) % operation.groups != 0) {
    refuse("rms_norm: width " + std::to_string(width(operation.x)) + " does not divide into " +
           std::to_string(operation.groups) + " groups");
  }
  check_vector("rms_norm: weight", operation.weight, width(operation.x) / operation.groups);
  append(operation, rows_of(operation.x), operation.out);
}

void Program::add(const LayerNorm& operation) {
  check_vector("layer_norm: weight", operation.weight, width(operation.x));
  if (operation.bias != kNone) {
    check_vector("layer_norm: bias", operation.bias, width(operation.x));
  }
  append_elementwise("layer_norm", operation, operation.out, operation.x);
}

void Program::check_part(const std::string& name, BufferIndex x, const LinearPart& part,
                         std::int64_t rows, std::int64_t columns) const {
  check_width((name + " input").c_str(), x, columns);
  check_width((name + " output").c_str(), part.out, rows);
  if (part.bias != kNone) check_vector((name + " bias").c_str(), part.bias, rows);
  if (part.out == x) refuse(name + ": output buffer is its input");
}

void Program::append_linears(Operation operation, BufferIndex x,
                             const std::vector<LinearPart>& parts) {
  const Rows rows = rows_of(x);
  append(std::move(operation), rows, parts.front().out);
  for (const LinearPart& part : parts) mark_written(part.out, rows);
}

void Program::add(const LinearGroup& operation) {
  if (operation.parts.empty()) refuse("linear: no weights");
  for (const LinearPart& part : operation.parts) {
    const kernels::Weight& weight = at(weights_, part.weight, "weight");
    const std::string& name = weight_names_[static_cast<std::size_t>(part.weight)];
    check_part(name, operation.x, part, weight.rows, weight.columns);
  }
  append_linears(operation, operation.x, operation.parts);
}

void Program::add(IntegerGroup operation) {
  if (operation.parts.empty()) refuse("integer linear: no weights");
  operation.sums.clear();
  for (const LinearPart& part : operation.parts) {
    at(integers_, part.weight, "matrix of integers");
    IntegerMatrix& matrix = integers_[static_cast<std::size_t>(part.weight)];
    check_part(matrix.name(), operation.x, part, matrix.rows(), matrix.columns());
    operation.sums.push_back(matrix.sums_for(operation.input, arena_));
    if (std::max(matrix.groups(), operation.input.groups) != operation.groups(*this)) {
      refuse(matrix.name() + ": integer linears of one input need the same groups");
    }
  }
  const BufferIndex x = operation.x;
  const std::vector<LinearPart> parts = operation.parts;
  append_linears(std::move(operation), x, parts);
}

void Program::add(const Rope& operation) {
  check_width("rope", operation.x, operation.heads * operation.head_dim);
  const auto pairs =
      static_cast<std::int64_t>(at(ropes_, operation.frequencies, "rope").inverse.size());
  if (2 * pairs > operation.head_dim) {
    refuse("rope: rotary dimension " + std::to_string(2 * pairs) + " exceeds the head's " +
           std::to_string(operation.head_dim));
  }
  if (rows_of(operation.x) != Rows::all) refuse("rope: positions of selected rows are not kept");
  append(operation, Rows::all, operation.x);
}

void Program::add(const Attention& operation) {
  const KvState& state =
      at(operation.reads_shared() ? shared_states_ : states_, operation.layer, "layer");
  if (state.kv_heads != operation.kv_heads || state.head_dim != operation.head_dim) {
    refuse("attention: heads differ from those of the cache of layer " +
           std::to_string(operation.layer));
  }
  if (operation.kv_heads < 1 || operation.heads % operation.kv_heads != 0) {
    refuse("attention: " + std::to_string(operation.heads) + " heads do not divide among " +
           std::to_string(operation.kv_heads) + " kv heads");
  }
  check_width("attention q", operation.q, operation.heads * operation.head_dim);
  check_width("attention out", operation.out, operation.heads * operation.head_dim);
  std::vector<BufferIndex> inputs{operation.q};
  if (operation.reads_shared()) {
    if (operation.causal || operation.v != kNone) refuse("attention: shared keys have no order");
  } else {
    check_width("attention k", operation.k, operation.kv_heads * operation.head_dim);
    check_width("attention v", operation.v, operation.kv_heads * operation.head_dim);
    inputs.insert(inputs.end(), {operation.k, operation.v});
    is_causal_ = is_causal_ && operation.causal;
  }
  if (!operation.causal && operation.window > 0) refuse("attention: a window needs a causal mask");
  if (operation.bias != kNone && at(biases_, operation.bias, "bias").heads != operation.heads) {
    refuse("attention: the relative bias is for another number of heads");
  }
  for (const BufferIndex buffer : inputs) {
    if (rows_of(buffer) != Rows::all) refuse("attention: q, k and v must hold all tokens");
    if (buffer == operation.out) refuse("attention: output buffer is one of its inputs");
  }
  append(operation, Rows::all, operation.out);
}

void Program::add(const Glu& operation) {
  check_width("glu", operation.gate, width(operation.up));
  check_width("glu", operation.out, width(operation.up));
  if (rows_of(operation.gate) != rows_of(operation.up)) refuse("glu: inputs hold different rows");
  append(operation, rows_of(operation.up), operation.out);
}

void Program::add(Experts operation) {
  const std::int64_t experts = width(operation.router);
  if (operation.used < 1 || operation.used > experts) {
    refuse("experts: " + std::to_string(operation.used) + " of " + std::to_string(experts) +
           " cannot be used");
  }
  check_width("experts", operation.out, width(operation.x));
  if (operation.integers.empty()) {
    check_stacks(operation);
  } else {
    check_integers(operation);
  }
  if (rows_of(operation.x) != rows_of(operation.router)) {
    refuse("experts: inputs hold different rows");
  }
  if (operation.out == operation.x || operation.out == operation.router) {
    refuse("experts: output buffer is one of its inputs");
  }
  const BufferIndex x = operation.x;
  const BufferIndex out = operation.out;
  append(std::move(operation), rows_of(x), out);
}

void Program::check_stacks(const Experts& operation) const {
  const std::int64_t experts = width(operation.router);
  const kernels::Weight& gate = at(weights_, operation.gate, "weight");
  const kernels::Weight& up = at(weights_, operation.up, "weight");
  const kernels::Weight& down = at(weights_, operation.down, "weight");
  const auto name = [&](WeightIndex index) {
    return weight_names_[static_cast<std::size_t>(index)];
  };
  check_width((name(operation.gate) + " input").c_str(), operation.x, gate.columns);
  check_width((name(operation.up) + " input").c_str(), operation.x, up.columns);
  if (gate.rows != experts * down.columns || up.rows != gate.rows) {
    refuse(name(operation.gate) + ": " + std::to_string(gate.rows) + " rows, must be " +
           std::to_string(experts) + " times the " + std::to_string(down.columns) + " columns of " +
           name(operation.down));
  }
  if (down.rows != experts * width(operation.out)) {
    refuse(name(operation.down) + ": " + std::to_string(down.rows) + " rows, must be " +
           std::to_string(experts * width(operation.out)));
  }
}

std::int64_t Program::ffn_of(const Experts& operation) const {
  return operation.integers.empty()
             ? weights_[static_cast<std::size_t>(operation.down)].columns
             : integers_[static_cast<std::size_t>(operation.integers.back().first)].columns();
}

// Lays the matrices out too.
void Program::check_integers(Experts& operation) {
  constexpr std::size_t kDown = 2;
  if (operation.integers.size() != kDown + 1) refuse("experts: gate, up and down are needed");
  const std::int64_t experts = width(operation.router);
  const IntegerIndex last = operation.integers[kDown].first;
  const std::int64_t ffn = at(integers_, last, "matrix of integers").columns();
  std::int64_t groups = 0;
  for (std::size_t which = 0; which <= kDown; ++which) {
    IntegerStack& stack = operation.integers[which];
    const std::int64_t rows = which == kDown ? width(operation.x) : ffn;
    const std::int64_t columns = which == kDown ? ffn : width(operation.x);
    stack.sums.clear();
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const IntegerIndex index = stack.first + static_cast<IntegerIndex>(expert);
      at(integers_, index, "matrix of integers");
      IntegerMatrix& matrix = integers_[static_cast<std::size_t>(index)];
      if (matrix.rows() != rows || matrix.columns() != columns) {
        refuse(matrix.name() + ": [" + std::to_string(matrix.rows()) + ", " +
               std::to_string(matrix.columns()) + "], must be [" + std::to_string(rows) + ", " +
               std::to_string(columns) + "]");
      }
      const std::int64_t own = std::max(matrix.groups(), stack.input.groups);
      if ((expert > 0 || which == 1) && own != groups) {
        refuse(matrix.name() + ": experts of one input need the same groups");
      }
      groups = own;
      stack.sums.push_back(matrix.sums_for(stack.input, arena_));
    }
  }
}

void Program::add(const Activate& operation) {
  append_elementwise("activate", operation, operation.out, operation.x);
}

void Program::add(const Scale& operation) {
  append_elementwise("scale", operation, operation.out, operation.x);
}

void Program::add(const Softcap& operation) {
  if (!(operation.limit > 0.0f)) refuse("softcap: the limit must be above 0");
  append_elementwise("softcap", operation, operation.out, operation.x);
}

void Program::add(const Add& operation) {
  check_width("add", operation.a, width(operation.b));
  check_width("add", operation.out, width(operation.b));
  if (rows_of(operation.a) != rows_of(operation.b)) refuse("add: inputs hold different rows");
  append(operation, rows_of(operation.a), operation.out);
}

void Program::add(const SelectOutputRows& operation) {
  check_width("select_output_rows", operation.out, width(operation.x));
  if (rows_of(operation.x) != Rows::all) refuse("select_output_rows: rows are already selected");
  if (operation.out == operation.x) refuse("select_output_rows: output buffer is its input");
  append(operation, Rows::selected, operation.out);
}

void Program::add(const Share& operation) {
  const KvState& state = at(shared_states_, operation.layer, "shared layer");
  for (const BufferIndex buffer : {operation.k, operation.v}) {
    check_width("share", buffer, state.kv_heads * state.head_dim);
    if (rows_of(buffer) != Rows::all) refuse("share: keys and values must hold all tokens");
  }
  shares_ = true;
  append(operation, Rows::all, operation.k);
}

void Program::set_output(BufferIndex buffer) {
  if (rows_of(buffer) != Rows::selected)
    refuse("the program selects no output rows before its output");
  if (held_all_[static_cast<std::size_t>(buffer)])
    refuse("the output buffer serves other operations too");
  if (vocabulary_ == 0) refuse("the program embeds no tokens");
  output_ = buffer;
}

}  // namespace lilliput::engine
