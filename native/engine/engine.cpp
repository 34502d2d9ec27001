// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/pass.h"

namespace lilliput::engine {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kPage = 4096;

std::size_t aligned(std::size_t bytes, std::size_t step) {
  return (bytes + step - 1) / step * step;
}

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

}  // namespace

Engine::Engine(std::shared_ptr<const Program> program, const EngineOptions& options,
               std::shared_ptr<SharedCache> shared)
    : program_(std::move(program)),
      options_(options),
      vector_kernels_(kernels::vector_kernels(options.isa)),
      integer_kernel_(kernels::integer_kernel(options.isa)),
      matrices_(*program_, {options.isa, options.exact_input, options.repacks}),
      cache_(program_->states(), options.context, options.cache_format, options.sequences),
      shared_(std::move(shared)) {
  if (program_->output() == kNone) refuse("the program has no output");
  if (options_.context < 1)
    refuse("context is " + std::to_string(options_.context) + ", must be at least 1");
  if (options_.batch < 1)
    refuse("batch is " + std::to_string(options_.batch) + ", must be at least 1");
  if (options_.context > program_->positions()) {
    refuse("context is " + std::to_string(options_.context) + ", but the table of positions has " +
           std::to_string(program_->positions()) + " rows for it");
  }
  if (options_.sequences < 1)
    refuse("sequences are " + std::to_string(options_.sequences) + ", must be at least 1");
  if (shared_ == nullptr ? !program_->shared_states().empty()
                         : shared_->states != program_->shared_states()) {
    refuse("the program's shared states are not those of the cache it is given");
  }
  if (shared_ != nullptr) {
    if (shared_->isa.value_or(options_.isa) != options_.isa)
      refuse("the shared cache is laid out for another instruction set");
    shared_->isa = options_.isa;
  }
  const auto batch = static_cast<std::size_t>(options_.batch);
  for (std::size_t i = 0; i < program_->buffers().size(); ++i) {
    const bool is_callers = static_cast<BufferIndex>(i) == program_->output();
    const auto width = static_cast<std::size_t>(program_->buffers()[i]);
    buffers_.emplace_back(is_callers ? 0 : batch * width * sizeof(float));
  }
  for (const RopeFrequencies& rope : program_->ropes()) {
    angles_.emplace_back(2 * batch * rope.inverse.size() * sizeof(float));
  }
  find_runs();
  find_sections();
  spread_biases();
  measure_scratch();
  set_threads(options_.threads);
}

// Sizes of the scratch that operations share, for the largest batch.
void Engine::measure_scratch() {
  std::size_t prepared_bytes = 0;
  std::size_t partial_floats = 0;
  for (const Step& step : program_->steps()) {
    if (const auto* linears = std::get_if<LinearGroup>(&step.operation)) {
      std::size_t bytes = 0;
      for (const LinearPart& part : linears->parts) {
        const std::int64_t columns = matrices_[part.weight].weight.columns;
        const kernels::MatmulKernel& kernel = *matrices_[part.weight].kernel;
        bytes += aligned(kernel.prepared_bytes(options_.batch, columns), kCacheLine);
        thread_scratch_bytes_ =
            std::max(thread_scratch_bytes_, kernel.scratch_bytes(columns, options_.batch));
      }
      prepared_bytes = std::max(prepared_bytes, bytes);
    }
    if (const auto* linears = std::get_if<IntegerGroup>(&step.operation)) {
      prepared_bytes = std::max(prepared_bytes, integer_input_bytes(*linears, options_.batch));
      rounds_inputs_ = !options_.exact_input;
    }
    if (const auto* attention = std::get_if<Attention>(&step.operation)) {
      const AttentionTiling tiling(*attention, options_.batch, {false});
      const AttentionTiling words(*attention, options_.batch,
                                  {takes_words(kernels::CacheFormat::f16)});
      thread_scratch_bytes_ =
          std::max({thread_scratch_bytes_, tiling.thread_scratch_floats() * sizeof(float),
                    words.thread_scratch_floats() * sizeof(float)});
      partial_floats = std::max(partial_floats, tiling.partial_floats(options_.batch));
      thread_scratch_bytes_ = std::max(thread_scratch_bytes_, whole_attention_bytes(*attention));
    }
  }
  std::size_t expert_floats = 0;
  for (const Step& step : program_->steps()) {
    const auto* experts = std::get_if<Experts>(&step.operation);
    if (experts == nullptr) continue;
    const std::int64_t hidden = program_->buffers()[static_cast<std::size_t>(experts->x)];
    const std::int64_t ffn = program_->ffn_of(*experts);
    for (const WeightIndex index : {experts->gate, experts->up, experts->down}) {
      if (index == kNone) continue;  // of integers
      const kernels::MatmulKernel& kernel = *matrices_[index].kernel;
      const std::int64_t columns = matrices_[index].weight.columns;
      thread_scratch_bytes_ =
          std::max(thread_scratch_bytes_, kernel.scratch_bytes(columns, options_.batch));
    }
    const std::int64_t floats = options_.batch * experts->used * (hidden + 2 * ffn);
    expert_floats = std::max(expert_floats, static_cast<std::size_t>(floats));
  }
  expert_values_ = Memory(expert_floats * sizeof(float));
  thread_scratch_bytes_ = aligned(thread_scratch_bytes_, kPage);
  prepared_bytes_ = prepared_bytes;
  attention_partials_ = Memory(partial_floats * sizeof(float));
}

void Engine::set_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    refuse("threads is " + std::to_string(threads) + ", must be 1 to " +
           std::to_string(kMaxThreads));
  }
  options_.threads = threads;
  share_bytes_ = share_bytes(threads);
  prepared_ = Memory(std::max(prepared_bytes_, static_cast<std::size_t>(threads) * share_bytes_));
  thread_scratch_ = Memory(static_cast<std::size_t>(threads) * thread_scratch_bytes_);
}

std::int64_t Engine::output_width() const {
  return program_->buffers()[static_cast<std::size_t>(program_->output())];
}

void Engine::truncate(std::int64_t length) {
  if (length < 0 || length > length_) {
    refuse("cannot truncate to " + std::to_string(length) + " tokens: the cache holds " +
           std::to_string(length_));
  }
  length_ = length;
}

void Engine::reorder(std::span<const std::int32_t> sources) {
  if (static_cast<std::int64_t>(sources.size()) > cache_.sequences()) {
    refuse(std::to_string(sources.size()) + " sequences, but the cache has room for " +
           std::to_string(cache_.sequences()));
  }
  for (const std::int32_t source : sources) {
    if (source < 0 || source >= cache_.sequences()) {
      refuse("sequence " + std::to_string(source) + " is none of the cache's " +
             std::to_string(cache_.sequences()));
    }
  }
  cache_.reorder(sources, length_);
}

std::int64_t Engine::longest_of_several() const {
  if (program_->is_causal() || program_->shares()) return 0;
  std::int64_t longest = options_.context;
  for (const Step& step : program_->steps()) {
    const auto* attention = std::get_if<Attention>(&step.operation);
    while (attention != nullptr && longest > 0 && whole_attention_keys(*attention, longest) == 0) {
      longest /= 2;
    }
  }
  return longest;
}

void Engine::check_lengths(std::size_t tokens, std::span<const std::int32_t> lengths) const {
  const std::int64_t longest = longest_of_several();
  if (longest == 0) refuse("a pass of this model takes one sequence");
  std::int64_t sum = 0;
  for (const std::int32_t length : lengths) {
    if (length < 1 || length > longest) {
      refuse("a sequence of " + std::to_string(length) + " tokens among several; 1 to " +
             std::to_string(longest) + " are allowed");
    }
    sum += length;
  }
  if (sum != static_cast<std::int64_t>(tokens)) {
    refuse("sequences of " + std::to_string(sum) + " tokens in all, but there are " +
           std::to_string(tokens));
  }
}

void Engine::check_sequences(std::size_t tokens, std::int64_t n_past,
                             const Arrangement& arrangement) const {
  const bool abreast = arrangement.abreast;
  if (!arrangement.lengths.empty()) check_lengths(tokens, arrangement.lengths);
  if (arrangement.lengths.empty() &&
      n_past + static_cast<std::int64_t>(tokens) > options_.context) {
    refuse(std::to_string(n_past + static_cast<std::int64_t>(tokens)) +
           " tokens do not fit the context of " + std::to_string(options_.context));
  }
  if (abreast && static_cast<std::int64_t>(tokens) > cache_.sequences()) {
    refuse(std::to_string(tokens) + " tokens abreast, but the cache has room for " +
           std::to_string(cache_.sequences()) + " sequences");
  }
  if (!program_->is_causal() && (n_past != 0 || abreast)) {
    refuse("every token of this model sees all others: a sequence takes one pass from its start");
  }
  if (program_->shared_states().empty()) return;
  if (!program_->shares() && shared_->length == 0) refuse("the encoder has not run yet");
  if (program_->shares() && (n_past != 0 || static_cast<std::int64_t>(tokens) > shared_->context)) {
    refuse(std::to_string(tokens) + " tokens from position " + std::to_string(n_past) +
           "; the shared cache takes 1 to " + std::to_string(shared_->context) + " from the start");
  }
}

void Engine::check_input(std::span<const std::int32_t> tokens, std::int64_t n_past,
                         std::span<const std::int32_t> output_rows, std::span<float> logits) const {
  const auto n_tokens = static_cast<std::int64_t>(tokens.size());
  if (n_tokens < 1 || n_tokens > options_.batch) {
    refuse(std::to_string(n_tokens) + " tokens in one batch; 1 to " +
           std::to_string(options_.batch) + " are allowed");
  }
  if (n_past < 0 || n_past > length_) {
    refuse("n_past is " + std::to_string(n_past) + ", but the cache holds " +
           std::to_string(length_));
  }
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= program_->vocabulary()) {
      refuse("token id " + std::to_string(token) + " is outside the vocabulary of " +
             std::to_string(program_->vocabulary()));
    }
  }
  std::int32_t previous = -1;
  for (const std::int32_t row : output_rows) {
    if (row <= previous || row >= n_tokens) {
      refuse("output row " + std::to_string(row) + " of " + std::to_string(n_tokens) +
             " tokens: rows must increase and exist");
    }
    previous = row;
  }
  if (static_cast<std::int64_t>(logits.size()) !=
      static_cast<std::int64_t>(output_rows.size()) * output_width()) {
    refuse("logits have room for " + std::to_string(logits.size()) + " floats, not for " +
           std::to_string(output_rows.size()) + " rows of " + std::to_string(output_width()));
  }
}

void Engine::check_segments(std::span<const std::int32_t> segments, std::size_t tokens) const {
  if (!segments.empty() && segments.size() != tokens) {
    refuse(std::to_string(segments.size()) + " segments for " + std::to_string(tokens) + " tokens");
  }
  for (const std::int32_t segment : segments) {
    if (segment < 0 || segment >= program_->segments()) {
      refuse("segment " + std::to_string(segment) + " is none of the model's " +
             std::to_string(program_->segments()));
    }
  }
}

// Cosine and sine of position * frequency, in double precision: float32 angles lose 2^-11 at
// position 8192.
void Engine::prepare_angles(const Pass& pass) {
  const auto tokens = static_cast<std::int64_t>(pass.tokens.size());
  for (std::size_t i = 0; i < angles_.size(); ++i) {
    const RopeFrequencies& rope = program_->ropes()[i];
    const std::size_t pairs = rope.inverse.size();
    float* cosine = angles_[i].as<float>();
    float* sine = cosine + static_cast<std::size_t>(options_.batch) * pairs;
    for (std::int64_t token = 0; token < tokens; ++token) {
      for (std::size_t pair = 0; pair < pairs; ++pair) {
        const double angle = static_cast<double>(pass.position(token)) * rope.inverse[pair];
        *cosine++ = static_cast<float>(std::cos(angle) * rope.magnitude);
        *sine++ = static_cast<float>(std::sin(angle) * rope.magnitude);
      }
    }
  }
}

void Engine::forward(std::span<const std::int32_t> tokens, std::int64_t n_past,
                     std::span<const std::int32_t> output_rows, std::span<float> logits,
                     const std::function<bool()>& should_stop, const Arrangement& arrangement) {
  check_input(tokens, n_past, output_rows, logits);
  check_segments(arrangement.segments, tokens.size());
  check_sequences(tokens.size(), n_past, arrangement);
  std::vector<std::int64_t> starts;
  if (!arrangement.lengths.empty()) starts.push_back(0);
  for (const std::int32_t length : arrangement.lengths) starts.push_back(starts.back() + length);
  const auto n_tokens = static_cast<std::int64_t>(tokens.size());
  ThreadPool::Lease lease(ThreadPool::shared(), options_.threads);
  length_ = n_past;
  Pass pass{
      tokens, arrangement.segments, n_past, output_rows, logits, lease, arrangement.abreast, starts,
      0};
  prepare_angles(pass);
  for (const Section& section : sections_) {
    if (should_stop && should_stop()) throw Interrupted();
    const bool is_selected = program_->steps()[runs_[section.begin].begin].on_selected_rows;
    pass.rows = is_selected ? static_cast<std::int64_t>(output_rows.size()) : n_tokens;
    if (pass.rows != 0) run_section(pass, section);
  }
  length_ = n_past + (arrangement.abreast ? 1 : n_tokens);
}

float* Engine::buffer(const Pass& pass, BufferIndex index) const {
  if (index == program_->output()) return pass.logits.data();
  return buffers_[static_cast<std::size_t>(index)].as<float>();
}

std::uint8_t* Engine::thread_scratch(int thread) const {
  return thread_scratch_.as<std::uint8_t>() +
         static_cast<std::size_t>(thread) * thread_scratch_bytes_;
}

}  // namespace lilliput::engine
