// SPDX-License-Identifier: Apache-2.0
// Errors beside those of the plainest implementation in the same precision: pairs one after the other, sums in float, and
// where elements have 16 bits, weights and outputs rounded to them.
#include <doctest/doctest.h>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

template <class Config>
std::vector<typename Config::Element> naive(const Problem<Config>& problem) {
  using E = typename Config::Element;
  constexpr int d = Config::FeatureMap::input_dim;
  constexpr int dv = Config::value_dim;
  const TensorShape shape = problem.output_shape();
  Tensor<E> output{shape, std::vector<E>(element_count(shape))};
  const auto dot = [&](const Tensor<E>& key, std::int64_t b, std::int64_t i, std::int64_t j, std::int64_t h) {
    float sum = 0;
    for (int c = 0; c < d; ++c) {
      sum += convert<float>(problem.query.at(b, i, h, c)) * convert<float>(key.at(b, j, h, c));
    }
    return convert<float>(convert<E>(problem.map.kernel(sum)));
  };
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t i = 0; i < shape.tokens; ++i) {
        float sums[dv] = {};
        float weights = 0;
        const auto add = [&](float weight, const E* value) {
          weights += weight;
          for (int c = 0; c < dv; ++c) {
            sums[c] += weight * convert<float>(value[c]);
          }
        };
        for (std::int64_t j = 0; j < problem.key_encoder.shape.tokens; ++j) {
          add(dot(problem.key_encoder, b, i, j, h), &problem.value_encoder.at(b, j, h, 0));
        }
        for (std::int64_t j = 0; j <= i; ++j) {
          add(dot(problem.key, b, i, j, h), &problem.value.at(b, j, h, 0));
        }
        for (int c = 0; c < dv; ++c) {
          output.at(b, i, h, c) = convert<E>(sums[c] / weights);
        }
      }
    }
  }
  return output.values;
}

TEST_CASE_TEMPLATE("at most twice the error of a naive implementation", E, float, BFloat16, Half) {
  using Config = Prefix<E, 16, 64>;
  for (const std::int64_t tokens : {64, 1000, 4000}) {
    const Problem<Config> problem({.batch = 1, .tokens = tokens, .prefix = tokens / 2, .heads = 1, .query_heads = 1});
    const auto expected = reference_output(problem).values;
    const double error = relative_error(run_prefill<Simple>(problem).output.values, expected);
    const double naive_error = relative_error(naive(problem), expected);
    MESSAGE(std::string(element_name<E>()) << ", " << tokens << " tokens: " << error << ", naive " << naive_error);
    CHECK(error <= 2 * naive_error);
    CHECK(error <= tolerance<E>());
  }
}

TEST_CASE("the state of a long sequence counts its tokens") {
  // z's constant row is the number of tokens, exactly, as long as float can count.
  using Config = Causal<BFloat16, 16, 16>;
  const Problem<Config> problem({.batch = 1, .tokens = 300'000, .heads = 1, .query_heads = 1});
  const auto states = run_prefill<Concurrent>(problem).states;
  CHECK(states[StateFormatOf<Config>::normaliser_offset + 152] == 300'000.0F);
}

}  // namespace
}  // namespace jrt::test
