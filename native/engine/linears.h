// SPDX-License-Identifier: Apache-2.0
// Linear layers of one pass. What a pass does with each row before is done by the thread that
// prepares that row as input; private to the engine.
#pragma once

#include "engine/pass.h"

namespace lilliput::engine {

// Below so many multiplications a linear ends sooner on one thread (about 10 µs).
inline constexpr std::int64_t kMultiplicationsWorthSharing = 300'000;

// before(begin, end) makes rows of the input.
template <typename Before>
void Engine::run_linears(Pass& pass, const LinearGroup& operation, Before before) {
  for (const LinearPart& part : operation.parts) matrices_.make_ready(part.weight, pass.lease);
  const bool shares = shares_linears(pass, operation.x, operation.parts);
  const LinearPlan plan = plan_linears(operation, pass.rows, shares);
  const float* x = buffer(pass, operation.x);
  const std::int64_t columns = program_->buffers()[static_cast<std::size_t>(operation.x)];
  const std::int64_t tile = plan.preparations.front().kernel->token_tile;
  const auto prepare = [&](const LinearPlan::Preparation& preparation, std::int64_t begin,
                           std::int64_t end) {
    preparation.kernel->prepare(x, columns, pass.rows, columns, begin, end, preparation.memory);
  };
  pass.for_rows(kernels::round_up(kRowsTogether, tile), [&](std::int64_t begin, std::int64_t end) {
    before(begin, end);
    prepare(plan.preparations.front(), begin, end);
  });
  for (std::size_t i = 1; i < plan.preparations.size(); ++i) {
    const LinearPlan::Preparation& other = plan.preparations[i];
    pass.for_rows(kernels::round_up(kRowsTogether, other.kernel->token_tile),
                  [&](std::int64_t begin, std::int64_t end) { prepare(other, begin, end); });
  }
  multiply(pass, plan, shares);
}

template <typename Before>
void Engine::run_linears(Pass& pass, const IntegerGroup& operation, Before before) {
  const TokenShare all{0, pass.rows, prepared_.as<std::uint8_t>()};
  pass.for_rows(kernels::round_up(kRowsTogether, integer_kernel_.token_tile),
                [&](std::int64_t begin, std::int64_t end) {
                  for (; begin < end; begin += kRowsInCache) {
                    const std::int64_t stop = std::min(end, begin + kRowsInCache);
                    before(begin, stop);
                    prepare(pass, operation, all, begin, stop);
                  }
                });
  multiply(pass, operation, shares_linears(pass, operation.x, operation.parts));
}

}  // namespace lilliput::engine
