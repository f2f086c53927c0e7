// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/measurement.hpp"

#include <algorithm>
#include <chrono>
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

}  // namespace

Measurement measure(LanguageModel& model, const MeasurementOptions& options) {
  std::mt19937 generator(1);
  std::vector<Request> requests(static_cast<std::size_t>(options.batch));
  for (Request& request : requests) {
    for (std::int64_t t = 0; t < options.tokens; ++t) {
      request.context.push_back(
          static_cast<std::int32_t>(generator() % static_cast<std::uint64_t>(model.config().vocabulary)));
    }
  }
  Measurement result;
  std::vector<double> prefill;
  std::vector<double> decode;
  std::vector<double> decoded_per_second;
  for (std::int64_t i = 0; i <= options.repeats; ++i) {
    // A device that is hot from the run before is slower: every run starts from the same rest.
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    const Generation run = generate(model, requests, options.generation, {});
    if (i > 0) {
      prefill.push_back(run.prefill_seconds);
      decode.push_back(run.milliseconds_per_round());
      decoded_per_second.push_back(run.decoded_per_second());
    }
    result.prefix = run.prefix_tokens / options.batch;
  }
  result.prefill_ms = median(prefill) * 1e3;
  result.prefill_tokens_per_s = static_cast<double>(options.batch * options.tokens) / median(prefill);
  result.decode_ms_per_token = median(decode);
  result.decode_tokens_per_s = median(decoded_per_second);
  return result;
}

}  // namespace jrt_lm
