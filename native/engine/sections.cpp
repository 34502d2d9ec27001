// SPDX-License-Identifier: Apache-2.0
// Cutting a pass by tokens: where threads have enough of them, each takes its own through all steps
// that need no others', so that what one step leaves lies in the cache of the core that reads it,
// and threads wait for each other before and after attention alone. Weights are read by every thread
// then; with few tokens a thread, cutting their rows is better.
#include <algorithm>

#include "engine/linears.h"

namespace lilliput::engine {
namespace {

// Tokens of a thread from which reading all weights costs less than products take: 32 rows of 768
// columns are 24 KB, and 32 tokens keep a core busy with them for 3 µs.
constexpr std::int64_t kFewestTokens = 32;

}  // namespace

bool Engine::writes(const Run& run, BufferIndex buffer) const {
  for (std::size_t i = run.begin; i < run.end; ++i) {
    const bool found = std::visit(
        [&](const auto& operation) {
          if constexpr (requires { operation.parts; }) {
            return std::ranges::any_of(operation.parts,
                                       [&](const LinearPart& part) { return part.out == buffer; });
          } else if constexpr (requires { operation.out; }) {
            return operation.out == buffer;
          } else if constexpr (requires { operation.frequencies; }) {
            return operation.x == buffer;
          } else {
            return false;
          }
        },
        program_->steps()[i].operation);
    if (found) return true;
  }
  return false;
}

bool Engine::is_by_tokens(const Run& run) const {
  return run.end == run.rows_end ||
         std::holds_alternative<IntegerGroup>(program_->steps()[run.rows_end].operation);
}

// A section may begin with attention over the keys and values that the section before has left; it
// ends before they are written anew.
void Engine::find_sections() {
  const auto step = [&](std::size_t run) -> const Step& {
    return program_->steps()[runs_[run].end - 1];
  };
  for (std::size_t begin = 0; begin < runs_.size();) {
    const auto* attention = std::get_if<Attention>(&step(begin).operation);
    const auto goes_on = [&](std::size_t run) {
      return run < runs_.size() && is_by_tokens(runs_[run]) &&
             step(run).on_selected_rows == step(begin).on_selected_rows &&
             (attention == nullptr ||
              (!writes(runs_[run], attention->k) && !writes(runs_[run], attention->v)));
    };
    std::size_t end = begin + 1;
    if (attention != nullptr || is_by_tokens(runs_[begin])) {
      while (goes_on(end)) ++end;
    }
    sections_.push_back({begin, end});
    begin = end;
  }
}

// Bytes of the widest inputs of a thread's tokens as integers.
std::size_t Engine::share_bytes(int threads) const {
  constexpr std::size_t kPage = 4096;
  const std::int64_t tokens = (options_.batch + threads - 1) / threads;
  std::size_t bytes = 0;
  for (const Step& step : program_->steps()) {
    if (const auto* linears = std::get_if<IntegerGroup>(&step.operation)) {
      bytes = std::max(bytes, integer_input_bytes(*linears, tokens));
    }
  }
  return (bytes + kPage - 1) / kPage * kPage;
}

// All steps of a section on the tokens of one thread.
void Engine::run_share(const Pass& pass, const Section& section, const TokenShare& share,
                       int thread) {
  for (std::size_t index = section.begin; index < section.end; ++index) {
    const Run& run = runs_[index];
    const Operation& last = program_->steps()[run.end - 1].operation;
    if (const auto* attention = std::get_if<Attention>(&last)) {
      for (std::int64_t head = 0; head < attention->heads; ++head) {
        attend_whole(pass, *attention, head, share.begin, share.end, thread);
      }
      continue;
    }
    const auto* linears = std::get_if<IntegerGroup>(&last);
    for (std::int64_t begin = share.begin; begin < share.end; begin += kRowsInCache) {
      const std::int64_t end = std::min(share.end, begin + kRowsInCache);
      run_rows(pass, run, begin, end);
      if (linears != nullptr) prepare(pass, *linears, share, begin, end);
    }
    if (linears != nullptr) multiply_share(pass, *linears, share);
  }
}

void Engine::multiply_share(const Pass& pass, const IntegerGroup& group, const TokenShare& share) {
  for (std::size_t part = 0; part < group.parts.size(); ++part) {
    const std::int64_t rows = program_->buffers()[static_cast<std::size_t>(group.parts[part].out)];
    for (std::int64_t row = 0; row < rows; row += integer_kernel_.row_tile) {
      multiply_rows(pass, group, part, row, row + integer_kernel_.row_tile, share);
    }
  }
}

void Engine::run_section(Pass& pass, Section section) {
  const std::int64_t threads = pass.lease.threads();
  const bool is_cut = threads > 1 && pass.rows >= threads * kFewestTokens;
  const auto* attention =
      std::get_if<Attention>(&program_->steps()[runs_[section.begin].end - 1].operation);
  const bool begins_whole =
      attention == nullptr
          ? is_by_tokens(runs_[section.begin])
          : !pass.starts.empty() || whole_attention_keys(*attention, pass.rows) > 0;
  while (section.begin < section.end && !(is_cut && begins_whole)) {
    run_steps(pass, runs_[section.begin++]);
    if (is_cut) break;
  }
  if (section.begin == section.end) return;
  const std::int64_t tokens = (pass.rows + threads - 1) / threads;
  pass.lease.parallel_for(threads, [&](std::int64_t index, int thread) {
    const std::int64_t begin = std::min(pass.rows, index * tokens);
    run_share(pass, section,
              {begin, std::min(pass.rows, begin + tokens),
               prepared_.as<std::uint8_t>() + static_cast<std::size_t>(index) * share_bytes_},
              thread);
  });
}

}  // namespace lilliput::engine
