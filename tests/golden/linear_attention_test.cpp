// SPDX-License-Identifier: Apache-2.0
// Outputs, states and steps of the authors' own modules, run in float64 on inputs that float32 holds exactly.
#include <doctest/doctest.h>

#include <jrt/state_exchange.hpp>
#include <string>

#include "support/backend.hpp"
#include "support/golden.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

constexpr double bound = 1e-12;

/// The states in the authors' dense order.
template <class Backend, class Config>
std::pair<std::vector<double>, std::vector<double>> dense(const StateNumbers<Config>& states, std::int64_t slots,
                                                          std::int64_t heads) {
  using Format = StateFormatOf<Config>;
  constexpr std::int64_t rows = DenseMap<typename Config::FeatureMap>::feature_dim;
  typename Backend::template Array<typename Config::StateScalar> placed(states);
  typename Backend::template Array<double> sums(
      std::vector<double>(static_cast<std::size_t>(slots * heads * rows * Config::value_dim)));
  typename Backend::template Array<double> normaliser(std::vector<double>(static_cast<std::size_t>(slots * heads * rows)));
  JRT_REQUIRE_OK(export_states<Format>({view_pool<Format>(placed.data(), slots, heads)},
                                       view_dense_states<Format>(sums.data(), normaliser.data(), heads), slots,
                                       Backend::execution()));
  return {sums.read(), normaliser.read()};
}

/// Prompt, final state, decode steps and the state after them, of one file.
template <class Backend, class Element, int d, int dv>
void check_file(const std::string& name, double tolerance) {
  using Config = PrefixLinearAttention<Element, d, dv>;
  CAPTURE(name);
  const support::SafeTensors file(data_file(name));
  const std::int64_t prompt = file.number("prompt");
  const std::int64_t steps = file.number("steps");
  Problem<Config> all;
  all.query = converted<Element>(tensor_bhnd(file, "q"));
  all.key = converted<Element>(tensor_bhnd(file, "k"));
  all.value = converted<Element>(tensor_bhnd(file, "v"));
  REQUIRE(all.query.shape.dim == d);
  REQUIRE(all.value.shape.dim == dv);
  REQUIRE(all.query.shape.tokens == prompt + steps);
  const std::int64_t slots = all.query.shape.batch;
  const std::int64_t heads = all.query.shape.heads;

  Problem<Config> beginning;
  beginning.query = token_slice(all.query, 0, prompt);
  beginning.key = token_slice(all.key, 0, prompt);
  beginning.value = token_slice(all.value, 0, prompt);
  beginning.key_encoder = converted<Element>(tensor_bhnd(file, "k_enc"));
  beginning.value_encoder = converted<Element>(tensor_bhnd(file, "v_enc"));
  REQUIRE(beginning.key_encoder.shape.tokens == (steps > 0 ? file.number("prefix") : beginning.key_encoder.shape.tokens));
  auto results = run_prefill<Backend>(beginning);
  CHECK(relative_error(results.output.values, tensor_bhnd(file, "y").values) <= tolerance);
  const auto [sums, normaliser] = dense<Backend, Config>(results.states, slots, heads);
  CHECK(relative_error(sums, file.tensor("kv_state").as<double>()) <= tolerance);
  CHECK(relative_error(normaliser, file.tensor("k_state").as<double>()) <= tolerance);
  if (steps > 0) {
    const auto outputs = run_decode<Backend>(all, prompt, steps, results.states);
    CHECK(relative_error(outputs.values, tensor_bhnd(file, "y_steps").values) <= tolerance);
    const auto [sums_after, normaliser_after] = dense<Backend, Config>(results.states, slots, heads);
    CHECK(relative_error(sums_after, file.tensor("kv_state_after").as<double>()) <= tolerance);
    CHECK(relative_error(normaliser_after, file.tensor("k_state_after").as<double>()) <= tolerance);
  }
}

TEST_CASE_TEMPLATE("the authors' operator: prompts, states and steps", Backend, JRT_TEST_BACKENDS) {
  check_file<Backend, double, 16, 64>("pla_d16_dv64", bound);
  check_file<Backend, double, 16, 112>("pla_d16_dv112", bound);
  check_file<Backend, double, 24, 48>("pla_d24_dv48_full_prefix", bound);
  check_file<Backend, double, 8, 32>("pla_d8_dv32_causal", bound);
  check_file<Backend, double, 16, 64>("pla_grad_d16_dv64", bound);
  check_file<Backend, double, 4, 8>("pla_grad_d4_dv8", bound);
  check_file<Backend, float, 16, 64>("pla_d16_dv64", tolerance<float>());
  check_file<Backend, float, 16, 112>("pla_d16_dv112", tolerance<float>());
}

}  // namespace
}  // namespace jrt::test
