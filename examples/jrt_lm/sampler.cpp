// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

namespace jrt_lm {

Sampler::Sampler(const SamplingOptions& options, std::uint64_t sequence)
    : options_(options), generator_(options.seed + 0x9e3779b97f4a7c15u * sequence) {
  if (options.top_k < 0) {
    throw std::invalid_argument("top-k is " + std::to_string(options.top_k) + ", but must be at least 0");
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    throw std::invalid_argument("top-p is " + std::to_string(options.top_p) + ", but must be above 0 and at most 1");
  }
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    throw std::invalid_argument("the temperature is " + std::to_string(options.temperature) + ", but must be at least 0");
  }
}

std::int32_t Sampler::draw(std::span<const double> logits) {
  const auto bad = std::find_if_not(logits.begin(), logits.end(), [](double logit) { return std::isfinite(logit); });
  if (bad != logits.end()) {
    throw std::invalid_argument("the logit of token " + std::to_string(bad - logits.begin()) + " is " +
                                std::to_string(*bad) + ", but must be finite");
  }
  if (options_.greedy()) {
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  const auto likelier = [&](std::int32_t a, std::int32_t b) {
    const double first = logits[static_cast<std::size_t>(a)];
    const double second = logits[static_cast<std::size_t>(b)];
    return first != second ? first > second : a < b;
  };
  const auto kept = options_.top_k == 0 ? std::ssize(order_) : std::min(std::ssize(order_), options_.top_k);
  std::partial_sort(order_.begin(), order_.begin() + kept, order_.end(), likelier);
  const double largest = logits[static_cast<std::size_t>(order_.front())];
  weights_.clear();
  double sum = 0;
  for (std::int64_t i = 0; i < kept; ++i) {
    const double logit = logits[static_cast<std::size_t>(order_[static_cast<std::size_t>(i)])];
    weights_.push_back(std::exp((logit - largest) / options_.temperature));
    sum += weights_.back();
  }
  // The nucleus of those k: probabilities are relative to them.
  double nucleus = 0;
  std::size_t count = 0;
  while (count < weights_.size() && nucleus < options_.top_p * sum) {
    nucleus += weights_[count++];
  }
  double rest = static_cast<double>(generator_() >> 11) * 0x1p-53 * nucleus;
  std::size_t chosen = 0;
  while (chosen + 1 < count && rest >= weights_[chosen]) {
    rest -= weights_[chosen++];
  }
  return order_[chosen];
}

}  // namespace jrt_lm
