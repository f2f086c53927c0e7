// SPDX-License-Identifier: Apache-2.0
// Gradients of operators other than the published ones: dimensions, feature maps, normaliser, padding.
#include <doctest/doctest.h>

#include <jrt/backward.hpp>
#include <jrt/policy/cosformer.hpp>
#include <jrt/policy/favor.hpp>
#include <jrt/policy/softmax_halves.hpp>

#include "support/backend.hpp"
#include "support/backward_problem.hpp"
#include "support/configs.hpp"

namespace jrt::test {
namespace {

TEST_CASE_TEMPLATE("gradients of published and odd dimensions", Config, Prefix<float, 16, 112>, Prefix<float, 5, 7>,
                   Prefix<float, 1, 1>, Prefix<float, 60, 16>) {
  check_against_reference<Simple>(Problem<Config>({.tokens = 101, .prefix = 50}));
}

template <class Base, class Scalar>
struct StoredIn : Base {
  using StateScalar = Scalar;
};

TEST_CASE_TEMPLATE("gradients from states in a type of their own, whose gradients are in the compute type", Config,
                   StoredIn<Prefix<float>, BFloat16>, StoredIn<Causal<BFloat16>, Half>) {
  const Problem<Config> problem({.tokens = 70, .prefix = Config::Mask::reads_encoder ? 33 : 0});
  check_against_reference<Simple>(problem, loss_with_states(problem));
}

TEST_CASE_TEMPLATE("gradients without normaliser", Config, WithoutNormaliser<Prefix<double>>,
                   WithoutNormaliser<Full<double>>) {
  const std::int64_t prefix = Config::Mask::reads_encoder ? 33 : 0;
  const Problem<Config> problem({.tokens = 70, .prefix = prefix});
  check_against_reference<Simple>(problem);
  check_against_reference<Simple>(problem, loss_with_states(problem));
}

template <class Map, class Normaliser_ = SumNormaliser<>>
struct WithMap : PrefixLinearAttention<double, Map::input_dim, 12> {
  using FeatureMap = Map;
  using Normaliser = Normaliser_;
};

TEST_CASE_TEMPLATE("gradients through every feature map", Config, WithMap<Taylor2<6, DensePacking>>,
                   WithMap<Identity<6>, Unnormalised>, WithMap<Relu<6>>, WithMap<Square<6>>, WithMap<SoftmaxHalves<6>>) {
  const Problem<Config> problem({.tokens = 90, .prefix = 40, .heads = 1, .query_heads = 2});
  check_against_reference<Concurrent>(problem);
}

TEST_CASE("gradients through maps with data of their own") {
  using Performer = WithMap<FavorPlus<6, 16>>;
  const auto projection = random_tensor<float>({1, 1, 16, 6}, 9);
  Problem<Performer> random_features({.tokens = 70, .prefix = 20});
  random_features.map.projection = projection.values.data();
  check_against_reference<Simple>(random_features);

  using Positions = WithMap<CosFormer<6>>;
  Problem<Positions> positions({.tokens = 70, .prefix = 20});
  positions.map.horizon = 100;
  positions.sequences.first_positions = {5, 30};
  check_against_reference<Simple>(positions, loss_with_states(positions));
}

struct UpstreamPadding : Prefix<double> {
  using Padding = ZeroKeyPadding;
};

TEST_CASE("padded keys that are kept have no gradient of their own, but their values do") {
  auto problem = uneven_problem<UpstreamPadding>();
  check_against_reference<Simple>(problem);
  const auto gradients = run_backward<Simple>(problem, Loss<UpstreamPadding>(problem));
  CHECK(gradients.key.at(1, 29, 0, 0) == 0);
  CHECK(gradients.value.at(1, 29, 0, 0) != 0);
  CHECK(gradients.query.at(1, 29, 0, 0) != 0);
}

}  // namespace
}  // namespace jrt::test
