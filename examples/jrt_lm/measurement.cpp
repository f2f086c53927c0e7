// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/measurement.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace jrt_lm {

namespace {

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// A device that is hot from what it did before is slower: everything that is timed starts from the same rest.
void rest() {
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
}

std::vector<std::int32_t> all_slots(const LanguageModel& model) {
  std::vector<std::int32_t> slots(static_cast<std::size_t>(model.slots()));
  std::iota(slots.begin(), slots.end(), 0);
  return slots;
}

/// Milliseconds of a step of all slots, from the states that a prefill left. The first few are for the clocks to rise.
double milliseconds_per_step(LanguageModel& model, std::int64_t steps) {
  const std::vector<std::int32_t> slots = all_slots(model);
  std::vector<std::int32_t> tokens = model.greedy_steps(std::vector<std::int32_t>(slots.size()), slots, steps);
  tokens.erase(tokens.begin(), tokens.end() - std::ssize(slots));
  const auto start = std::chrono::steady_clock::now();
  static_cast<void>(model.greedy_steps(tokens, slots, steps));
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  return time.count() / static_cast<double>(steps);
}

/// Likewise of `step()`.
template <class Step>
double milliseconds_of(LanguageModel& model, std::int64_t steps, const Step& step) {
  std::chrono::steady_clock::time_point start;
  for (std::int64_t i = 0; i < 2 * steps; ++i) {
    if (i == steps) {
      model.synchronize();
      start = std::chrono::steady_clock::now();
    }
    step();
  }
  model.synchronize();
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  return time.count() / static_cast<double>(steps);
}

}  // namespace

Measurement measure(LanguageModel& model, const MeasurementOptions& options) {
  std::mt19937 generator(1);
  std::vector<Request> requests(static_cast<std::size_t>(model.slots()));
  for (Request& request : requests) {
    for (std::int64_t t = 0; t < options.tokens; ++t) {
      request.context.push_back(
          static_cast<std::int32_t>(generator() % static_cast<std::uint64_t>(model.config().vocabulary)));
    }
  }
  GenerationOptions one_token = options.generation;
  one_token.new_tokens = 1;
  Measurement result;
  std::vector<double> prefill;
  std::vector<double> step;
  std::vector<double> staged;
  std::vector<double> speculative;
  for (std::int64_t i = 0; i <= options.repeats; ++i) {
    rest();
    const Generation run = generate(model, requests, one_token, {});
    result.prefix = run.prefix_tokens / model.slots();
    if (i > 0) {
      prefill.push_back(run.prefill_seconds * 1e3);
      rest();
      const std::int64_t steps = std::max<std::int64_t>(1, options.generation.new_tokens);
      step.push_back(milliseconds_per_step(model, steps));
      if (options.generation.speculate != 0) {
        const std::vector<std::int32_t> slots = all_slots(model);
        const std::vector<std::int32_t> tokens(slots.size() * static_cast<std::size_t>(options.generation.speculate));
        rest();
        staged.push_back(milliseconds_of(model, steps, [&] { model.staged_step(tokens, slots); }));
        rest();
        speculative.push_back(
            milliseconds_of(model, steps, [&] { static_cast<void>(model.speculative_step(tokens, slots)); }));
      }
    }
  }
  const double per_second = 1e3 * static_cast<double>(model.slots());
  result.prefill_ms = median(prefill);
  result.prefill_tokens_per_s = per_second * static_cast<double>(options.tokens) / result.prefill_ms;
  result.decode_ms_per_token = median(step);
  result.decode_tokens_per_s = per_second / result.decode_ms_per_token;
  if (!staged.empty()) {
    result.staged_ms = median(staged);
    result.speculative_ms = median(speculative);
  }
  result.read_weights_ms = model.seconds_to_read_weights() * 1e3;
  return result;
}

}  // namespace jrt_lm
