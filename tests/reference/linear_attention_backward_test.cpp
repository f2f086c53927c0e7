// SPDX-License-Identifier: Apache-2.0
// The oracle of gradients against finite differences of the oracle of outputs.
#include <jrt/reference/linear_attention_backward.hpp>

#include <doctest/doctest.h>

#include <jrt/policy/cosformer.hpp>
#include <jrt/policy/elementwise_maps.hpp>
#include <jrt/policy/favor.hpp>
#include <jrt/policy/softmax_halves.hpp>
#include <vector>

#include "support/backend.hpp"
#include "support/backward_problem.hpp"
#include "support/configs.hpp"
#include "support/finite_differences.hpp"

namespace jrt::test {
namespace {

template <class Map, class NormaliserT = SumNormaliser<>>
struct WithMap : PrefixLinearAttention<double, Map::input_dim, 3> {
  using FeatureMap = Map;
  using Normaliser = NormaliserT;
};

template <class Config>
void check_differences(Problem<Config> problem) {
  constexpr double bound = 1e-6;
  Loss<Config> loss(problem);
  loss.initial_state = random_states<Config>(problem.sequence_count(), problem.key.shape.heads, 5, problem.map);
  const auto gradients = reference_gradients(problem, loss);
  // The loss: Σ output · output_gradient. Of a final state there is no oracle; pieces of a sequence (backward_test) show
  // it.
  const auto differences = [&](std::vector<double>& inputs) {
    return central_differences(inputs, [&] {
      return sum_of_products(reference_output(problem, loss.initial_state).values, loss.output_gradient.values);
    });
  };
  CHECK(relative_error(gradients.query.values, differences(problem.query.values)) <= bound);
  CHECK(relative_error(gradients.key.values, differences(problem.key.values)) <= bound);
  CHECK(relative_error(gradients.value.values, differences(problem.value.values)) <= bound);
  if (Config::Mask::reads_encoder) {
    CHECK(relative_error(gradients.key_encoder.values, differences(problem.key_encoder.values)) <= bound);
    CHECK(relative_error(gradients.value_encoder.values, differences(problem.value_encoder.values)) <= bound);
  }
  const auto of_state = differences(loss.initial_state);
  CHECK(relative_error(without_padding<StateFormatOf<Config>>(gradients.initial_state),
                       without_padding<StateFormatOf<Config>>(of_state)) <= bound);
}

constexpr ProblemShape shape{.batch = 2, .tokens = 6, .prefix = 4, .heads = 1, .query_heads = 2};

TEST_CASE_TEMPLATE("gradients are the slopes of the outputs, for every feature map", Config, WithMap<Taylor2<3>>,
                   WithMap<Taylor2<3, DensePacking>>, WithMap<Identity<3>, Unnormalised>, WithMap<EluPlusOne<3>>,
                   WithMap<Relu<3>>, WithMap<Square<3>>, WithMap<SoftmaxHalves<3>>, WithMap<Taylor2<3>, Unnormalised>) {
  check_differences(Problem<Config>(shape));
}

TEST_CASE("for maps with data of their own") {
  const auto projection = random_tensor<float>({1, 1, 5, 3}, 9);
  Problem<WithMap<FavorPlus<3, 5>>> random_features(shape);
  random_features.map.projection = projection.values.data();
  check_differences(random_features);

  Problem<WithMap<CosFormer<3>>> positions(shape);
  positions.map.horizon = 20;
  positions.sequences.first_positions = {2, 0};
  check_differences(positions);
}

TEST_CASE_TEMPLATE("for every mask", Config, Causal<double, 3, 2>, Full<double, 3, 2>) {
  check_differences(Problem<Config>({.batch = 1, .tokens = 7, .heads = 2, .query_heads = 4}));
}

struct UpstreamPadding : Prefix<double, 3, 2> {
  using Padding = ZeroKeyPadding;
};

TEST_CASE_TEMPLATE("for sequences of several lengths, with pads", Config, Prefix<double, 3, 2>, UpstreamPadding) {
  Problem<Config> problem(shape);
  problem.sequences.seq_lens = {6, 5};
  problem.sequences.prefix_lens = {4, 3};
  problem.sequences.left_pads = {0, 2};
  check_differences(problem);
}

}  // namespace
}  // namespace jrt::test
