// SPDX-License-Identifier: Apache-2.0
// Outputs of sliding-window attention as the authors' dependency computes it, in float64 on inputs that float32 holds
// exactly.
#include <doctest/doctest.h>

#include <string>

#include "support/backend.hpp"
#include "support/golden.hpp"
#include "support/window_problem.hpp"

namespace jrt::test {
namespace {

constexpr double bound = 1e-12;

/// A (B, N, H, d) tensor of a file.
template <class E>
Tensor<E> tensor_bnhd(const support::SafeTensors& file, const std::string& name) {
  const auto& stored = file.tensor(name);
  const TensorShape shape{stored.shape.at(0), stored.shape.at(1), stored.shape.at(2), stored.shape.at(3)};
  return converted<E>(Tensor<double>{shape, stored.as<double>()});
}

/// One file in one call, in two pieces, and token by token.
template <class Backend, class Config>
void check_file(const std::string& name, double tolerance) {
  using E = typename Config::Element;
  CAPTURE(name);
  const support::SafeTensors file(data_file(name));
  REQUIRE(file.number("left") == Config::left_window);
  WindowProblem<Config> problem;
  problem.query = tensor_bnhd<E>(file, "q");
  problem.key = tensor_bnhd<E>(file, "k");
  problem.value = tensor_bnhd<E>(file, "v");
  REQUIRE(problem.query.shape.dim == Config::head_dim);
  const auto expected = tensor_bnhd<double>(file, "y").values;
  const std::int64_t tokens = problem.tokens();
  const std::int64_t cut = tokens / 2;
  const auto whole = run_window<Backend>(problem);
  CHECK(relative_error(whole.output.values, expected) <= tolerance);
  auto first = run_window<Backend>(problem.piece(0, cut));
  const auto second = run_window<Backend>(problem.piece(cut, tokens - cut), first.caches);
  CHECK(relative_error(joined_tokens(first.output, second.output).values, expected) <= tolerance);
  const auto steps = step_window<Backend>(problem, cut, tokens - cut, first.caches);
  CHECK(relative_error(joined_tokens(first.output, steps).values, expected) <= tolerance);
}

TEST_CASE_TEMPLATE("sliding windows: prompts, pieces and steps", Backend, JRT_TEST_BACKENDS) {
  check_file<Backend, Plain<double, 64, 15>>("swa_left15_d64", bound);
  check_file<Backend, Plain<double, 16, 4>>("swa_left4_d16", bound);
  check_file<Backend, Plain<double, 64, 128>>("swa_left128_d64", bound);
  check_file<Backend, Plain<float, 64, 128>>("swa_left128_d64", tolerance<float>());
}

TEST_CASE_TEMPLATE("sliding windows with grouped heads", Backend, JRT_TEST_BACKENDS) {
  check_file<Backend, Plain<double, 32, 7>>("swa_gqa_left7", bound);
}

}  // namespace
}  // namespace jrt::test
