// SPDX-License-Identifier: Apache-2.0
// Policies as a user would write them, in a file of their own that the library knows nothing of.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>

#include "support/backend.hpp"
#include "support/backward_problem.hpp"
#include "support/linear_problem.hpp"

// A policy that is to run on the GPU as well says so in CUDA's words; host compilers need not see them.
#if defined(__CUDACC__)
#define ENGINE_HOST_DEVICE __host__ __device__
#else
#define ENGINE_HOST_DEVICE
#endif

namespace engine {

/// φ(x) = [exp(x), exp(−x)], with a temperature known at run time only.
struct ExpPair {
  static constexpr int input_dim = 6;
  static constexpr int feature_dim = 12;
  static constexpr const char* name = "engine/exp-pair";
  static constexpr bool nonnegative_kernel = true;
  static constexpr bool has_closed_form = false;
  static constexpr bool needs_position = false;

  float temperature = 1;

  template <class T>
  ENGINE_HOST_DEVICE void expand(const T* x, T* features) const {
    for (int i = 0; i < input_dim; ++i) {
      features[i] = std::exp(x[i] / static_cast<T>(temperature));
      features[input_dim + i] = std::exp(-x[i] / static_cast<T>(temperature));
    }
  }
  template <class T>
  ENGINE_HOST_DEVICE void expand_vjp(const T* x, const T* features_gradient, T* x_gradient) const {
    const T scale = 1 / static_cast<T>(temperature);
    for (int i = 0; i < input_dim; ++i) {
      x_gradient[i] =
          (features_gradient[i] * std::exp(x[i] * scale) - features_gradient[input_dim + i] * std::exp(-x[i] * scale)) *
          scale;
    }
  }
};

/// A closed form, (1 + q·k)², whose queries and keys are expanded differently, for float and double by overloads.
struct Quadratic {
  static constexpr int input_dim = 2;
  static constexpr int feature_dim = 6;
  static constexpr const char* name = "engine/quadratic";
  static constexpr bool nonnegative_kernel = true;
  static constexpr bool has_closed_form = true;
  static constexpr bool needs_position = false;

  template <class T>
  ENGINE_HOST_DEVICE T kernel(T dot) const {
    return (1 + dot) * (1 + dot);
  }
  template <class T>
  ENGINE_HOST_DEVICE T kernel_derivative(T dot) const {
    return 2 * (1 + dot);
  }
  ENGINE_HOST_DEVICE void expand_query(const float* x, float* f) const { fill(x, f, 2.0F); }
  ENGINE_HOST_DEVICE void expand_query(const double* x, double* f) const { fill(x, f, 2.0); }
  ENGINE_HOST_DEVICE void expand_key(const float* x, float* f) const { fill(x, f, 1.0F); }
  ENGINE_HOST_DEVICE void expand_key(const double* x, double* f) const { fill(x, f, 1.0); }
  ENGINE_HOST_DEVICE void expand_query_vjp(const float* x, const float* g, float* dx) const { vjp(x, g, dx, 2.0F); }
  ENGINE_HOST_DEVICE void expand_query_vjp(const double* x, const double* g, double* dx) const { vjp(x, g, dx, 2.0); }
  ENGINE_HOST_DEVICE void expand_key_vjp(const float* x, const float* g, float* dx) const { vjp(x, g, dx, 1.0F); }
  ENGINE_HOST_DEVICE void expand_key_vjp(const double* x, const double* g, double* dx) const { vjp(x, g, dx, 1.0); }

 private:
  template <class T>
  ENGINE_HOST_DEVICE static void vjp(const T* x, const T* g, T* dx, T weight) {
    dx[0] = weight * (g[1] + g[5] * x[1]) + 2 * g[3] * x[0];
    dx[1] = weight * (g[2] + g[5] * x[0]) + 2 * g[4] * x[1];
  }
  template <class T>
  ENGINE_HOST_DEVICE static void fill(const T* x, T* f, T weight) {
    f[0] = 1;
    f[1] = weight * x[0];
    f[2] = weight * x[1];
    f[3] = x[0] * x[0];
    f[4] = x[1] * x[1];
    f[5] = weight * x[0] * x[1];
  }
};

/// Everything at once: an encoder region and the whole sequence.
struct PrefixAndAll {
  static constexpr bool reads_encoder = true;
  static constexpr bool reads_future = true;
};

/// Half of the mean.
struct HalfMean {
  static constexpr bool uses_denominator = true;
  static constexpr bool accepts_signed_kernel = false;

  template <class T>
  ENGINE_HOST_DEVICE static T factor(T denominator) {
    return denominator == 0 ? T(0) : T(0.5) / denominator;
  }
  template <class T>
  ENGINE_HOST_DEVICE static T factor_derivative(T denominator) {
    return denominator == 0 ? T(0) : T(-0.5) / (denominator * denominator);
  }
};

/// Always three segments.
struct ThreeSegments {
  ENGINE_HOST_DEVICE static std::int64_t segments(std::int64_t /*tokens*/, std::int64_t /*heads_in_batch*/,
                                                  std::int64_t /*workers*/) {
    return 3;
  }
};

struct Operator : jrt::PrefixLinearAttention<double, 6, 10> {
  using FeatureMap = ExpPair;
  using Mask = PrefixAndAll;
  using Normaliser = HalfMean;
  using Split = ThreeSegments;
};

struct QuadraticOperator : jrt::PrefixLinearAttention<double, 2, 9> {
  using FeatureMap = Quadratic;
};

}  // namespace engine

namespace jrt::test {
namespace {

TEST_CASE("a user's own map, mask, normaliser and split") {
  Problem<engine::Operator> problem({.batch = 2, .tokens = 170, .prefix = 100});
  problem.map.temperature = 1.5F;
  const auto results = run_prefill<Concurrent>(problem);
  CHECK(relative_error(results.output.values, reference_output(problem).values) <= 1e-12);
  check_against_reference<Concurrent>(problem);
}

TEST_CASE("a user's own closed form with different features for queries and keys") {
  const Problem<engine::QuadraticOperator> problem({.batch = 1, .tokens = 120, .prefix = 60});
  auto results = run_prefill<Simple>(problem);
  CHECK(relative_error(results.output.values, reference_output(problem).values) <= 1e-12);
  check_against_reference<Simple>(problem);
}

}  // namespace
}  // namespace jrt::test
