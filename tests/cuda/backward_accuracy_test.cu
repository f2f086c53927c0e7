// SPDX-License-Identifier: Apache-2.0
// Errors of gradients beside those of the plainest implementation in the same precision: pairs one after the other, sums in
// float, and where elements have 16 bits, weights, their derivatives, outputs and gradients rounded to them.
#include <doctest/doctest.h>

#include <string>
#include <type_traits>
#include <vector>

#include "support/backend.hpp"
#include "support/backward_problem.hpp"
#include "support/configs.hpp"

namespace jrt::test {
namespace {

template <class E>
float rounded(float number) {
  return convert<float>(convert<E>(number));
}

/// The chain rule for one head of one sequence (reference/linear_attention_backward.hpp has the formula): every gradient in
/// the order query, key, value, key_encoder, value_encoder.
template <class Config>
class Naive {
 public:
  using E = typename Config::Element;
  using Numbers = std::vector<float>;
  static constexpr int d = Config::FeatureMap::input_dim;
  static constexpr int dv = Config::value_dim;

  Naive(const Problem<Config>& problem, const Loss<Config>& loss) : problem_(problem), loss_(loss) {
    const auto tokens = problem.query.shape.tokens;
    const auto prefix = problem.key_encoder.shape.tokens;
    query = Numbers(tokens * d);
    key = Numbers(tokens * d);
    value = Numbers(tokens * dv);
    key_encoder = Numbers(prefix * d);
    value_encoder = Numbers(prefix * dv);
    for (std::int64_t i = 0; i < tokens; ++i) {
      add_query(i, prefix);
    }
    for (Numbers* const gradient : {&query, &key, &value, &key_encoder, &value_encoder}) {
      for (float& number : *gradient) {
        number = rounded<E>(number);
      }
    }
  }

  Numbers query, key, value, key_encoder, value_encoder;

 private:
  static float dot(const E* a, const E* b, int count) {
    float sum = 0;
    for (int c = 0; c < count; ++c) {
      sum += convert<float>(a[c]) * convert<float>(b[c]);
    }
    return sum;
  }

  template <class Function>
  void for_keys(std::int64_t i, std::int64_t prefix, const Function& function) {
    for (std::int64_t j = 0; j < prefix; ++j) {
      function(&problem_.key_encoder.at(0, j, 0, 0), &problem_.value_encoder.at(0, j, 0, 0), &key_encoder[j * d],
               &value_encoder[j * dv]);
    }
    for (std::int64_t j = 0; j <= i; ++j) {
      function(&problem_.key.at(0, j, 0, 0), &problem_.value.at(0, j, 0, 0), &key[j * d], &value[j * dv]);
    }
  }

  void add_query(std::int64_t i, std::int64_t prefix) {
    const E* const q = &problem_.query.at(0, i, 0, 0);
    const E* const dy = &loss_.output_gradient.at(0, i, 0, 0);
    float sums[dv] = {};
    float weights = 0;
    for_keys(i, prefix, [&](const E* k, const E* v, float* /*dk*/, float* /*dv*/) {
      const float weight = rounded<E>(problem_.map.kernel(dot(q, k, d)));
      weights += weight;
      for (int c = 0; c < dv; ++c) {
        sums[c] += weight * convert<float>(v[c]);
      }
    });
    float along = 0;
    for (int c = 0; c < dv; ++c) {
      along += rounded<E>(sums[c] / weights) * convert<float>(dy[c]);
    }
    for_keys(i, prefix, [&](const E* k, const E* v, float* dk, float* dv_j) {
      const float score = dot(q, k, d);
      const float weight = rounded<E>(problem_.map.kernel(score) / weights);
      const float slope = rounded<E>((dot(dy, v, dv) - along) / weights * problem_.map.kernel_derivative(score));
      for (int c = 0; c < d; ++c) {
        query[i * d + c] += slope * convert<float>(k[c]);
        dk[c] += slope * convert<float>(q[c]);
      }
      for (int c = 0; c < dv; ++c) {
        dv_j[c] += weight * convert<float>(dy[c]);
      }
    });
  }

  const Problem<Config>& problem_;
  const Loss<Config>& loss_;
};

template <class Config>
void check_beside_naive(const Problem<Config>& problem, const std::string& name) {
  const Loss<Config> loss(problem);
  const auto exact = reference_gradients(problem, loss);
  const auto gradients = run_backward<Simple>(problem, loss);
  const Naive<Config> naive(problem, loss);
  const auto check = [&](const std::string& of, const auto& own, const auto& plain, const auto& expected) {
    const double error = relative_error(own.values, expected.values);
    const double naive_error = relative_error(plain, expected.values);
    MESSAGE(name << ", gradient of " << of << ": " << error << ", naive " << naive_error);
    CHECK(error <= 2 * naive_error);
    CHECK(error <= gradient_tolerance<typename Config::Element>());
  };
  check("query", gradients.query, naive.query, exact.query);
  check("key", gradients.key, naive.key, exact.key);
  check("value", gradients.value, naive.value, exact.value);
  check("key_encoder", gradients.key_encoder, naive.key_encoder, exact.key_encoder);
  check("value_encoder", gradients.value_encoder, naive.value_encoder, exact.value_encoder);
}

TEST_CASE_TEMPLATE("at most twice the error of a naive backward pass", E, float, BFloat16, Half) {
  using Config = Prefix<E, 16, 64>;
  for (const std::int64_t tokens : {64, 1000, 2000}) {
    for (const float mean : {0.0F, 1.0F}) {
      Problem<Config> problem({.batch = 1, .tokens = tokens, .prefix = tokens / 2, .heads = 1, .query_heads = 1});
      for (auto* const values : {&problem.value, &problem.value_encoder}) {
        for (E& value : values->values) {
          value = convert<E>(convert<float>(value) + mean);
        }
      }
      check_beside_naive(problem, std::string(element_name<E>()) + ", " + std::to_string(tokens) + " tokens, mean of v " +
                                      std::to_string(static_cast<int>(mean)));
    }
  }
}

}  // namespace
}  // namespace jrt::test
