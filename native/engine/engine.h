// SPDX-License-Identifier: Apache-2.0
// Executes a Program on one sequence: scratch buffers, the cache of keys and values, the order of
// parallel regions.
//
// Results do not depend on the number of threads: every float is computed by one thread in an order
// that follows from the shapes alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/matrices.h"
#include "engine/memory.h"
#include "engine/program.h"
#include "engine/thread_pool.h"

namespace lilliput::engine {

struct EngineOptions {
  std::int64_t context;  // positions that the cache holds
  std::int64_t batch;    // tokens of one forward pass at most
  int threads;
  kernels::Isa isa;
  bool exact_input;  // float32 activations for every weight
  kernels::CacheFormat cache_format;
  bool repacks = true;         // weights, into memory of its own, where that is faster
  std::int64_t sequences = 1;  // that one pass may step forward side by side
};

// How the tokens of a pass belong together, beside their order.
struct Arrangement {
  std::span<const std::int32_t> segments = {};  // of each token; none: all 0
  bool abreast = false;  // token i is the next one of sequence i, all at position n_past
  // Tokens of each of several whole sequences, one after the other; none: all are one sequence.
  std::span<const std::int32_t> lengths = {};
};

// The caller's own check between operations said stop.
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

class Engine {
 public:
  // shared: where an encoder's program leaves its keys and values, and a decoder's finds them; null
  // for programs without shared states.
  Engine(std::shared_ptr<const Program> program, const EngineOptions& options,
         std::shared_ptr<SharedCache> shared = nullptr);

  // Runs tokens at positions n_past, n_past + 1, …; what the cache held from n_past on is dropped.
  // output_rows: increasing indices into `tokens` whose logits are written to
  // logits[row][vocabulary]. should_stop is asked between operations. Throws std::invalid_argument
  // for bad input, Interrupted.
  void forward(std::span<const std::int32_t> tokens, std::int64_t n_past,
               std::span<const std::int32_t> output_rows, std::span<float> logits,
               const std::function<bool()>& should_stop, const Arrangement& arrangement = {});

  std::int64_t length() const { return length_; }
  void truncate(std::int64_t length);
  // Sequence i goes on from what sequence sources[i] was.
  void reorder(std::span<const std::int32_t> sources);
  int threads() const { return options_.threads; }
  void set_threads(int threads);
  const EngineOptions& options() const { return options_; }
  std::size_t cache_bytes() const { return cache_.bytes(); }
  std::size_t repacked_bytes() const {
    return matrices_.interleaved_bytes() + program_->integer_bytes();
  }
  std::int64_t output_width() const;
  // Tokens of each sequence at most that one pass takes several of; 0: it takes one sequence.
  std::int64_t longest_of_several() const;

 private:
  // One forward pass under way.
  struct Pass;
  struct LinearPlan;
  struct AttentionRun;
  struct ExpertsRun;
  // Steps that one parallel region may take together: operations on rows [begin, rows_end), then
  // one other or none up to `end`.
  struct Run {
    std::size_t begin;
    std::size_t rows_end;
    std::size_t end;
  };
  // Runs [begin, end) of which a thread that takes some tokens needs nothing of the others' tokens.
  struct Section {
    std::size_t begin;
    std::size_t end;
  };
  // Tokens [begin, end) of a pass, of the sequence that lies in [first, last).
  struct Queries {
    std::int64_t begin;
    std::int64_t end;
    std::int64_t first;
    std::int64_t last;
  };
  // Tokens [begin, end) of a pass and where their inputs lie as integers.
  struct TokenShare {
    std::int64_t begin;
    std::int64_t end;
    std::uint8_t* prepared;

    std::int64_t tokens() const { return end - begin; }
  };

  void decode_row(const Embed& operation, std::int64_t row, float* values) const;
  std::int64_t table_row(const Pass& pass, const Embed& operation, std::int64_t row) const;
  template <typename Body>
  void map_rows(const Pass& pass, BufferIndex out, BufferIndex x, std::int64_t begin,
                std::int64_t end, Body body);

  void check_input(std::span<const std::int32_t> tokens, std::int64_t n_past,
                   std::span<const std::int32_t> output_rows, std::span<float> logits) const;
  void measure_scratch();
  void check_segments(std::span<const std::int32_t> segments, std::size_t tokens) const;
  void check_sequences(std::size_t tokens, std::int64_t n_past,
                       const Arrangement& arrangement) const;
  void check_lengths(std::size_t tokens, std::span<const std::int32_t> lengths) const;
  void prepare_angles(const Pass& pass);
  void spread_biases();
  std::int64_t bias_stride() const;
  const float* bias_at_distance_0(BiasIndex bias, std::int64_t head) const;
  float* buffer(const Pass& pass, BufferIndex index) const;
  std::uint8_t* thread_scratch(int thread) const;
  std::uint8_t* expert_inputs(std::size_t bytes);

  std::size_t integer_input_bytes(const IntegerGroup& group, std::int64_t tokens) const;
  LinearPlan plan_linears(const LinearGroup& group, std::int64_t tokens, bool shares) const;
  bool shares_linears(const Pass& pass, BufferIndex x, const std::vector<LinearPart>& parts) const;
  void finish_part(const Pass& pass, const LinearPart& part, std::int64_t begin, std::int64_t end,
                   const TokenShare& share, bool has_bias);
  void multiply(Pass& pass, const LinearPlan& plan, bool shares);
  void multiply(Pass& pass, const IntegerGroup& group, bool shares);
  void prepare(const Pass& pass, const IntegerGroup& group, const TokenShare& share,
               std::int64_t begin, std::int64_t end);
  void multiply_rows(const Pass& pass, const IntegerGroup& group, std::size_t part,
                     std::int64_t begin, std::int64_t end, const TokenShare& share);

  void find_runs();
  void find_sections();
  bool writes(const Run& run, BufferIndex buffer) const;
  bool is_by_tokens(const Run& run) const;
  std::size_t share_bytes(int threads) const;
  void run_section(Pass& pass, Section section);
  void run_share(const Pass& pass, const Section& section, const TokenShare& share, int thread);
  void multiply_share(const Pass& pass, const IntegerGroup& group, const TokenShare& share);
  void run_rows(const Pass& pass, const Run& steps, std::int64_t begin, std::int64_t end);
  void run_steps(Pass& pass, const Run& steps);
  template <typename Before>
  void run_linears(Pass& pass, const LinearGroup& operation, Before before);
  template <typename Before>
  void run_linears(Pass& pass, const IntegerGroup& operation, Before before);

  std::int64_t whole_attention_keys(const Attention& operation, std::int64_t tokens) const;
  std::size_t whole_attention_bytes(const Attention& operation) const;
  bool takes_words(kernels::CacheFormat format) const;
  void run_whole(Pass& pass, const Attention& operation);
  void attend_whole(const Pass& pass, const Attention& operation, std::int64_t head,
                    std::int64_t begin, std::int64_t end, int thread);
  void attend_sequence(const Pass& pass, const Attention& operation, std::int64_t head,
                       const Queries& queries, int thread);
  void run(Pass& pass, const Attention& operation);
  void run(Pass& pass, const Experts& operation);
  void run(Pass& pass, const SelectOutputRows& operation);
  void run(Pass& pass, const Share& operation);

  // Operations whose rows do not know each other, on rows [begin, end).
  void run_rows(const Pass& pass, const Embed& operation, std::int64_t begin, std::int64_t end);
  void run_rows(const Pass& pass, const RmsNorm& operation, std::int64_t begin, std::int64_t end);
  void run_rows(const Pass& pass, const LayerNorm& operation, std::int64_t begin, std::int64_t end);
  void run_rows(const Pass& pass, const Rope& operation, std::int64_t begin, std::int64_t end);
  void run_rows(const Pass& pass, const Glu& operation, std::int64_t begin, std::int64_t end);
  void run_rows(const Pass& pass, const Activate& operation, std::int64_t begin, std::int64_t end);
  void run_rows(const Pass& pass, const Scale& operation, std::int64_t begin, std::int64_t end);
  void run_rows(const Pass& pass, const Softcap& operation, std::int64_t begin, std::int64_t end);
  void run_rows(const Pass& pass, const Add& operation, std::int64_t begin, std::int64_t end);

  std::shared_ptr<const Program> program_;
  EngineOptions options_;
  const kernels::VectorKernels& vector_kernels_;
  const kernels::IntegerKernel& integer_kernel_;
  Matrices matrices_;
  KvCache cache_;
  std::shared_ptr<SharedCache> shared_;
  std::int64_t length_ = 0;
  std::vector<Run> runs_;
  std::vector<Section> sections_;
  bool rounds_inputs_ = false;  // of linears, to integers
  std::size_t prepared_bytes_ = 0;
  std::size_t share_bytes_ = 0;  // of prepared_, for the tokens of each thread
  std::vector<Memory> buffers_;
  std::vector<Memory> angles_;  // by rope: cosines [batch][pairs], then sines
  std::vector<Memory> biases_;  // by bias: [heads][bias_stride()]
  std::size_t thread_scratch_bytes_ = 0;
  Memory thread_scratch_;
  Memory prepared_;            // inputs of a linear group as the kernels want them
  Memory attention_partials_;  // of key ranges, before they are joined
  Memory expert_values_;       // inputs or outputs of experts, gates, ups
  Memory expert_inputs_;       // inputs of experts as the kernels want them
};

}  // namespace lilliput::engine
