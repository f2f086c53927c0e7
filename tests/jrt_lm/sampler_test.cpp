// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/sampler.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <vector>

namespace jrt_lm::test {
namespace {

const std::vector<double> logits{1.0, 3.0, -2.0, 3.0, 2.0};

/// How often each token comes in many draws.
std::map<std::int32_t, double> frequencies(const SamplingOptions& options) {
  Sampler sampler(options);
  std::map<std::int32_t, double> result;
  constexpr int draws = 40000;
  for (int i = 0; i < draws; ++i) {
    result[sampler.draw(logits)] += 1.0 / draws;
  }
  return result;
}

double weight(std::size_t token, double temperature) {
  return std::exp(logits[token] / temperature);
}

TEST_CASE("greedy: the likeliest, the first of several") {
  Sampler sampler({});
  CHECK(sampler.draw(logits) == 1);
}

TEST_CASE("draws have the probabilities of a softmax") {
  for (const double temperature : {0.5, 1.0, 3.0}) {
    const auto drawn = frequencies({.top_k = 0, .temperature = temperature, .seed = 9});
    double sum = 0;
    for (std::size_t t = 0; t < logits.size(); ++t) {
      sum += weight(t, temperature);
    }
    for (std::size_t t = 0; t < logits.size(); ++t) {
      const auto found = drawn.find(static_cast<std::int32_t>(t));
      CHECK((found == drawn.end() ? 0 : found->second) ==
            doctest::Approx(weight(t, temperature) / sum).epsilon(0.02).scale(1));
    }
  }
}

TEST_CASE("top-k and top-p leave the likeliest tokens, relative to one another") {
  const auto three = frequencies({.top_k = 3});
  CHECK(three.size() == 3);
  const double sum = weight(1, 1) + weight(3, 1) + weight(4, 1);
  CHECK(three.at(4) == doctest::Approx(weight(4, 1) / sum).epsilon(0.02).scale(1));
  // 0.39 of the probability is less than token 1 has alone; 0.5 takes token 3 as well.
  CHECK(frequencies({.top_k = 0, .top_p = 0.39}).size() == 1);
  CHECK(frequencies({.top_k = 0, .top_p = 0.5}).size() == 2);
  CHECK(frequencies({.top_k = 0, .top_p = 1}).size() == 5);
  CHECK(frequencies({.top_k = 2, .top_p = 0.999}).size() == 2);
  CHECK(frequencies({.top_k = 100}).size() == 5);
}

TEST_CASE("the same seed gives the same tokens, another sequence or seed others") {
  const auto tokens = [](std::uint64_t seed, std::uint64_t sequence) {
    Sampler sampler({.top_k = 0, .seed = seed}, sequence);
    std::vector<std::int32_t> result;
    for (int i = 0; i < 50; ++i) {
      result.push_back(sampler.draw(logits));
    }
    return result;
  };
  CHECK(tokens(1, 0) == tokens(1, 0));
  CHECK(tokens(1, 0) != tokens(1, 1));
  CHECK(tokens(1, 0) != tokens(2, 0));
}

TEST_CASE("logits that are not finite give no token, in whatever way it is taken") {
  for (const double number : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    for (const SamplingOptions& options : {SamplingOptions{}, SamplingOptions{.top_k = 0}, SamplingOptions{.top_k = 2}}) {
      std::vector<double> spoilt = logits;
      spoilt[2] = number;
      Sampler sampler(options);
      CHECK_THROWS_WITH_AS(sampler.draw(spoilt), doctest::Contains("the logit of token 2 is"), std::invalid_argument);
    }
  }
}

TEST_CASE("options out of range") {
  CHECK_THROWS_WITH_AS(Sampler({.top_k = -1}), "top-k is -1, but must be at least 0", std::invalid_argument);
  CHECK_THROWS_WITH_AS(Sampler({.top_p = 0}), "top-p is 0.000000, but must be above 0 and at most 1",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(Sampler({.top_p = 1.5}), "top-p is 1.500000, but must be above 0 and at most 1",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(Sampler({.temperature = -1}), "the temperature is -1.000000, but must be at least 0",
                       std::invalid_argument);
}

}  // namespace
}  // namespace jrt_lm::test
