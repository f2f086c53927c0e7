// SPDX-License-Identifier: Apache-2.0
#include <jrt/policy/feature_map.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <jrt/policy/cosformer.hpp>
#include <jrt/policy/elementwise_maps.hpp>
#include <jrt/policy/favor.hpp>
#include <jrt/policy/softmax_halves.hpp>
#include <jrt/policy/taylor.hpp>
#include <numbers>
#include <numeric>
#include <random>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

constexpr int d = 16;
using Vector = std::vector<double>;

Vector random_vector(unsigned seed, double scale = 1) {
  return random_tensor<double>({1, 1, 1, d}, seed, scale).values;
}

double inner(const Vector& a, const Vector& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

template <class Map>
Vector query_features(const Map& map, const Vector& x, std::int64_t position = 1) {
  Vector features(Map::feature_dim);
  expand_query(map, x.data(), features.data(), position);
  return features;
}
template <class Map>
Vector key_features(const Map& map, const Vector& x, std::int64_t position = 1) {
  Vector features(Map::feature_dim);
  expand_key(map, x.data(), features.data(), position);
  return features;
}

/// R of FAVOR+: any matrix tells whether the formula is right.
const std::vector<float>& projection() {
  static const std::vector<float> matrix = random_tensor<float>({1, 1, 24, d}, 77).values;
  return matrix;
}

// The formulas once more, written from the definition.
Vector formula(const Identity<d>&, const Vector& x, std::int64_t) {
  return x;
}
Vector formula(const EluPlusOne<d>&, const Vector& x, std::int64_t) {
  Vector y;
  for (const double v : x) {
    y.push_back((v > 0 ? v : std::expm1(v)) + 1);
  }
  return y;
}
Vector formula(const Relu<d>&, const Vector& x, std::int64_t) {
  Vector y;
  for (const double v : x) {
    y.push_back(std::max(v, 1e-6));
  }
  return y;
}
Vector formula(const Square<d>&, const Vector& x, std::int64_t) {
  Vector y;
  for (const double v : x) {
    y.push_back(v * v);
  }
  return y;
}
Vector formula(const SoftmaxHalves<d>&, const Vector& x, std::int64_t) {
  Vector y;
  for (const double sign : {1.0, -1.0}) {
    double sum = 0;
    for (const double v : x) {
      sum += std::exp(sign * v);
    }
    for (const double v : x) {
      y.push_back(std::exp(sign * v) / sum);
    }
  }
  return y;
}
Vector formula(const FavorPlus<d, 24>& map, const Vector& x, std::int64_t) {
  Vector y;
  const double root = std::pow(d, 0.25);
  const double norm = inner(x, x) / (root * root);
  for (int f = 0; f < 24; ++f) {
    double dot = 0;
    for (int i = 0; i < d; ++i) {
      dot += static_cast<double>(map.projection[f * d + i]) * x[static_cast<std::size_t>(i)] / root;
    }
    y.push_back(std::exp(-norm / 2) / std::sqrt(24.0) * std::exp(dot));
  }
  return y;
}
Vector formula(const CosFormer<d>& map, const Vector& x, std::int64_t position) {
  Vector y;
  const double angle = std::numbers::pi * static_cast<double>(position) / (2 * static_cast<double>(map.horizon));
  for (const double factor : {std::sin(angle), std::cos(angle)}) {
    for (const double v : x) {
      y.push_back(std::max(v, 0.0) * factor);
    }
  }
  return y;
}

template <class Map>
Map make_map() {
  return {};
}
template <>
FavorPlus<d, 24> make_map() {
  return {projection().data()};
}
template <>
CosFormer<d> make_map() {
  return {200};
}

#define JRT_PLAIN_MAPS Identity<d>, EluPlusOne<d>, Relu<d>, Square<d>, SoftmaxHalves<d>, FavorPlus<d, 24>, CosFormer<d>

TEST_CASE_TEMPLATE("features follow the definition, for queries and keys alike", Map, JRT_PLAIN_MAPS) {
  static_assert(FeatureMap<Map>);
  const Map map = make_map<Map>();
  for (unsigned seed = 0; seed < 20; ++seed) {
    const Vector x = random_vector(seed, seed < 10 ? 1 : 5);
    const std::int64_t position = 1 + seed * 7;
    const Vector expected = formula(map, x, position);
    CHECK(relative_error(query_features(map, x, position), expected) <= 1e-14);
    CHECK(relative_error(key_features(map, x, position), expected) <= 1e-14);
    const std::vector<float> single(x.begin(), x.end());
    const Vector rounded(single.begin(), single.end());
    std::vector<float> features(Map::feature_dim);
    expand_key(map, single.data(), features.data(), position);
    CHECK(relative_error(features, formula(map, rounded, position)) <= 1e-5);
  }
}

TEST_CASE_TEMPLATE("a map that says its kernel is non-negative keeps its word", Map, JRT_PLAIN_MAPS, Taylor2<d>) {
  const Map map = make_map<Map>();
  bool negative = false;
  for (unsigned seed = 0; seed < 200; ++seed) {
    const double similarity =
        inner(query_features(map, random_vector(2 * seed), 3), key_features(map, random_vector(2 * seed + 1), 100));
    negative = negative || similarity < 0;
  }
  CHECK(negative != Map::nonnegative_kernel);
}

TEST_CASE_TEMPLATE("a closed form equals the expansion", Map, Identity<d>, Taylor2<d>, Taylor2<d, DensePacking>) {
  const Map map;
  for (unsigned seed = 0; seed < 50; ++seed) {
    const Vector q = random_vector(seed, 2);
    const Vector k = random_vector(seed + 500, 2);
    const double expected = inner(query_features(map, q), key_features(map, k));
    CHECK(std::abs(map.kernel(inner(q, k)) - expected) <= 1e-12 * std::max(1.0, std::abs(expected)));
  }
}

TEST_CASE("the softmax halves survive large inputs") {
  const Vector features = query_features(SoftmaxHalves<d>{}, random_vector(3, 1000));
  CHECK(std::accumulate(features.begin(), features.end(), 0.0) == doctest::Approx(2));
}

TEST_CASE("the cosFormer kernel is relu(q)·relu(k)·cos of the distance") {
  const CosFormer<d> map{128};
  const Vector q = random_vector(1);
  const Vector k = random_vector(2);
  double dot = 0;
  for (std::size_t i = 0; i < d; ++i) {
    dot += std::max(q[i], 0.0) * std::max(k[i], 0.0);
  }
  const double similarity = inner(query_features(map, q, 90), key_features(map, k, 20));
  CHECK(similarity == doctest::Approx(dot * std::cos(std::numbers::pi * 70 / 256)).epsilon(1e-12));
}

/// Each map in the operator, prefill and decode, against the formula.
template <class Map>
struct WithMap : PrefixLinearAttention<double, d, 24> {
  using FeatureMap = Map;
};
template <>
struct WithMap<Identity<d>> : PrefixLinearAttention<double, d, 24> {
  using FeatureMap = Identity<d>;
  using Normaliser = Unnormalised;
};

TEST_CASE_TEMPLATE("every map works in prefill and decoding", Map, JRT_PLAIN_MAPS) {
  using Config = WithMap<Map>;
  Problem<Config> problem({.batch = 2, .tokens = 75, .prefix = 40});
  problem.map = make_map<Map>();
  problem.sequences.left_pads = {0, 9};
  auto results = run_prefill<Concurrent>(problem);
  const auto expected = reference_output(problem);
  CHECK(relative_error(results.output.values, expected.values) <= 1e-12);

  // Without pads, decode the last tokens from the state of the first.
  problem.sequences = {};
  const auto whole = reference_output(problem);
  Problem<Config> beginning = problem;
  beginning.query = token_slice(problem.query, 0, 70);
  beginning.key = token_slice(problem.key, 0, 70);
  beginning.value = token_slice(problem.value, 0, 70);
  auto states = run_prefill<Simple>(beginning).states;
  const auto steps = run_decode<Simple>(problem, 70, 5, states, 2);
  CHECK(relative_error(steps.values, token_slice(whole, 70, 5).values) <= 1e-12);
}

TEST_CASE("pieces of a position-dependent map continue at their position") {
  using Config = WithMap<CosFormer<d>>;
  Problem<Config> problem({.batch = 2, .tokens = 60, .prefix = 10});
  problem.map = {100};
  // The whole by the definition, which knows nothing of first_positions; then in two pieces.
  const auto whole = reference_output(problem);
  Problem<Config> first = problem;
  first.query = token_slice(problem.query, 0, 33);
  first.key = token_slice(problem.key, 0, 33);
  first.value = token_slice(problem.value, 0, 33);
  Problem<Config> second;
  second.query = token_slice(problem.query, 33, 27);
  second.key = token_slice(problem.key, 33, 27);
  second.value = token_slice(problem.value, 33, 27);
  second.key_encoder = token_slice(problem.key_encoder, 0, 0);
  second.value_encoder = token_slice(problem.value_encoder, 0, 0);
  second.map = problem.map;
  second.sequences.first_positions = {33, 33};
  const auto a = run_prefill<Simple>(first);
  const auto b = run_prefill<Simple>(second, a.states);
  CHECK(relative_error(a.output.values, token_slice(whole, 0, 33).values) <= 1e-12);
  CHECK(relative_error(b.output.values, token_slice(whole, 33, 27).values) <= 1e-12);
}

}  // namespace
}  // namespace jrt::test
