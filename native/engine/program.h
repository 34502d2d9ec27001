// SPDX-License-Identifier: Apache-2.0
// A lowered Program: what src/lilliput/architectures/program.py means, with names turned into
// indices, rope frequencies resolved and linears of one input joined. Built once at load through
// the `add` functions, which check every index and width and throw std::invalid_argument; executed
// by Engine.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "engine/integer_matrix.h"
#include "kernels/integer_matmul.h"
#include "kernels/matmul.h"
#include "kernels/vector_kernels.h"

namespace lilliput::engine {

class Program;

// Indices into the lists of Program.
using BufferIndex = int;
using WeightIndex = int;
using IntegerIndex = int;  // of a matrix of integers
using VectorIndex = int;
using RopeIndex = int;
using BiasIndex = int;
inline constexpr int kNone = -1;

// What chooses the row of a table: the token's id, its position plus `offset`, or its segment.
enum class EmbedBy : std::uint8_t { token, position, segment };

struct Embed {
  BufferIndex out;
  WeightIndex weight;
  float scale;
  EmbedBy by;
  std::int64_t offset;
  bool is_integer = false;  // the weight is a matrix of integers
};

struct RmsNorm {
  BufferIndex out;
  BufferIndex x;
  VectorIndex weight;
  float epsilon;
  std::int64_t groups;
};

struct LayerNorm {
  BufferIndex out;
  BufferIndex x;
  VectorIndex weight;
  VectorIndex bias;  // or kNone
  float epsilon;
};

struct LinearPart {
  BufferIndex out;
  WeightIndex weight;
  VectorIndex bias;                                              // or kNone
  std::optional<kernels::Activation> activation = std::nullopt;  // of what it gives
};

// Linears that read one buffer: one preparation of the input, one parallel region.
struct LinearGroup {
  BufferIndex x;
  std::vector<LinearPart> parts;
};

// The same of matrices of integers, whose inputs become integers too. sums: of each part, see
// kernels::integer_sums.
struct IntegerGroup {
  BufferIndex x;
  kernels::IntegerInput input;
  std::vector<LinearPart> parts;
  std::vector<std::vector<std::int32_t>> sums = {};

  // Of the inputs' scales or of the weights', whichever are more; alike for all parts.
  std::int64_t groups(const Program& program) const;
};

struct Rope {
  BufferIndex x;
  std::int64_t heads;
  std::int64_t head_dim;
  RopeIndex frequencies;
  kernels::RopeStyle style;
};

struct Attention {
  BufferIndex out;
  BufferIndex q;
  BufferIndex k;  // kNone, as v: reads what the encoder shared, and layer is one of its states
  BufferIndex v;
  int layer;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  float scale;
  std::int64_t window;  // 0: none
  float softcap;        // 0: none
  bool causal = true;   // otherwise all tokens of a sequence come in one pass
  BiasIndex bias = kNone;

  bool reads_shared() const { return k == kNone; }
};

// Leaves keys and values of all tokens to a decoder.
struct Share {
  BufferIndex k;
  BufferIndex v;
  int layer;  // of the shared states
};

struct Glu {
  BufferIndex out;
  BufferIndex gate;
  BufferIndex up;
  kernels::Activation activation;
};

// One matrix of integers an expert, `first` and those after it, whose inputs become integers too.
// sums: of each, see kernels::integer_sums.
struct IntegerStack {
  IntegerIndex first;
  kernels::IntegerInput input;
  std::vector<std::vector<std::int32_t>> sums = {};
};

// Stacks of matrices, one an expert; the router's buffer has a logit for each.
struct Experts {
  BufferIndex out;
  BufferIndex x;
  BufferIndex router;
  WeightIndex gate;
  WeightIndex up;
  WeightIndex down;
  kernels::Activation activation;
  std::int64_t used;
  bool normalizes;
  // In place of the weights, which are kNone then: gate, up and down. The first two have inputs alike.
  std::vector<IntegerStack> integers = {};
};

struct Activate {
  BufferIndex out;
  BufferIndex x;
  kernels::Activation activation;
};

struct Scale {
  BufferIndex out;
  BufferIndex x;
  float factor;
};

struct Softcap {
  BufferIndex out;
  BufferIndex x;
  float limit;
};

struct Add {
  BufferIndex out;
  BufferIndex a;
  BufferIndex b;
};

struct SelectOutputRows {
  BufferIndex out;
  BufferIndex x;
};

using Operation =
    std::variant<Embed, RmsNorm, LayerNorm, LinearGroup, Rope, Attention, Glu, Activate, Scale,
                 Softcap, Add, SelectOutputRows, Share, Experts, IntegerGroup>;

// An operation runs on all tokens, or on the rows whose logits were asked for.
struct Step {
  Operation operation;
  bool on_selected_rows;
};

// Inverse frequencies in radians per position, [rotary_dim / 2], and the factor on cosine and sine.
struct RopeFrequencies {
  std::vector<double> inverse;
  double magnitude;
};

struct KvState {
  std::int64_t kv_heads;
  std::int64_t head_dim;

  bool operator==(const KvState&) const = default;
};

// Added to scores by the key's position less the query's: values [heads][2 * reach + 1], the middle
// one for distance 0; what lies farther counts as `reach`.
struct RelativeBias {
  std::int64_t heads;
  std::int64_t reach;
  std::vector<float> values;
};

class Program {
 public:
  BufferIndex add_buffer(std::int64_t width);
  // `blocks` stays owned by the caller and must outlive every engine of this program.
  // is_mapped: they lie in a mapped file, whose pages may be given back and read again.
  WeightIndex add_weight(const std::string& name, const std::string& format, std::int64_t rows,
                         std::int64_t columns, std::span<const std::uint8_t> blocks,
                         bool is_mapped = false);
  // Codes stay owned by the caller, as blocks do.
  IntegerIndex add_integers(IntegerMatrix matrix);
  VectorIndex add_vector(std::vector<float> values);
  RopeIndex add_rope(std::vector<double> inverse_frequencies, double magnitude);
  int add_state(std::int64_t kv_heads, std::int64_t head_dim);
  int add_shared_state(std::int64_t kv_heads, std::int64_t head_dim);
  BiasIndex add_bias(std::int64_t heads, std::vector<float> values);

  void add(const Embed& operation);
  void add(const RmsNorm& operation);
  void add(const LayerNorm& operation);
  void add(const LinearGroup& operation);
  void add(IntegerGroup operation);
  void add(const Rope& operation);
  void add(const Attention& operation);
  void add(const Glu& operation);
  void add(Experts operation);
  void add(const Activate& operation);
  void add(const Scale& operation);
  void add(const Softcap& operation);
  void add(const Add& operation);
  void add(const SelectOutputRows& operation);
  void add(const Share& operation);
  // The buffer of the logits. Ends the program.
  void set_output(BufferIndex buffer);

  const std::vector<std::int64_t>& buffers() const { return buffers_; }
  const std::vector<kernels::Weight>& weights() const { return weights_; }
  const std::vector<IntegerMatrix>& integers() const { return integers_; }
  // Columns of the matrices that lead back from the inside of a mixture's experts.
  std::int64_t ffn_of(const Experts& operation) const;
  // Of integers as the kernel has them.
  std::size_t integer_bytes() const { return arena_.bytes(); }
  bool is_mapped(WeightIndex weight) const { return is_mapped_[static_cast<std::size_t>(weight)]; }
  const std::vector<std::vector<float>>& vectors() const { return vectors_; }
  const std::vector<RopeFrequencies>& ropes() const { return ropes_; }
  const std::vector<KvState>& states() const { return states_; }
  const std::vector<KvState>& shared_states() const { return shared_states_; }
  const std::vector<RelativeBias>& biases() const { return biases_; }
  // Whether a sequence may come in several passes.
  bool is_causal() const { return is_causal_; }
  // Whether it leaves keys and values to another program.
  bool shares() const { return shares_; }
  const std::vector<Step>& steps() const { return steps_; }
  BufferIndex output() const { return output_; }
  // Token ids are below this, segments below that.
  std::int64_t vocabulary() const { return vocabulary_; }
  std::int64_t segments() const { return segments_; }
  // Positions that the tables of learned positions have rows for.
  std::int64_t positions() const { return positions_; }

 private:
  enum class Rows : std::uint8_t { none, all, selected };

  std::int64_t width(BufferIndex buffer) const;
  Rows rows_of(BufferIndex buffer) const;
  void check_width(const char* what, BufferIndex buffer, std::int64_t expected) const;
  void append_elementwise(const char* what, const Operation& operation, BufferIndex out,
                          BufferIndex x);
  void check_part(const std::string& name, BufferIndex x, const LinearPart& part, std::int64_t rows,
                  std::int64_t columns) const;
  void check_stacks(const Experts& operation) const;
  void check_integers(Experts& operation);
  void append_linears(Operation operation, BufferIndex x, const std::vector<LinearPart>& parts);
  void check_vector(const char* what, VectorIndex vector, std::int64_t expected) const;
  void append(Operation operation, Rows rows, BufferIndex out);
  void mark_written(BufferIndex buffer, Rows rows);

  std::vector<std::int64_t> buffers_;
  std::vector<Rows> written_;   // what each buffer holds after the steps so far
  std::vector<bool> held_all_;  // whether it ever held all tokens
  std::vector<kernels::Weight> weights_;
  std::vector<std::string> weight_names_;
  std::vector<bool> is_mapped_;
  std::vector<IntegerMatrix> integers_;
  Arena arena_;
  std::vector<std::vector<float>> vectors_;
  std::vector<RopeFrequencies> ropes_;
  std::vector<KvState> states_;
  std::vector<KvState> shared_states_;
  std::vector<RelativeBias> biases_;
  bool is_causal_ = true;
  bool shares_ = false;
  std::vector<Step> steps_;
  BufferIndex output_ = kNone;
  std::int64_t vocabulary_ = 0;
  std::int64_t segments_ = 1;
  std::int64_t positions_ = std::numeric_limits<std::int64_t>::max();
};

}  // namespace lilliput::engine
