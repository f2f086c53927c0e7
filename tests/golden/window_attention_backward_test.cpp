// SPDX-License-Identifier: Apache-2.0
// Gradients of sliding-window attention as automatic differentiation of the authors' dependency computes them, in float64
// on inputs that float32 holds exactly.
#include <doctest/doctest.h>

#include <string>

#include "support/backend.hpp"
#include "support/golden.hpp"
#include "support/window_backward_problem.hpp"

namespace jrt::test {
namespace {

/// One file: its shapes are its own, window and dimensions the operator's.
template <class Backend, class Config>
void check_file(const std::string& name) {
  using E = typename Config::Element;
  CAPTURE(name);
  const support::SafeTensors file(data_file(name));
  const auto tensor = [&](const std::string& of) {
    const auto& stored = file.tensor(of);
    const TensorShape shape{stored.shape.at(0), stored.shape.at(1), stored.shape.at(2), stored.shape.at(3)};
    return Tensor<double>{shape, stored.template as<double>()};
  };
  REQUIRE(file.number("left") == Config::left_window);
  WindowProblem<Config> problem;
  problem.query = converted<E>(tensor("q"));
  problem.key = converted<E>(tensor("k"));
  problem.value = converted<E>(tensor("v"));
  REQUIRE(problem.query.shape.dim == Config::head_dim);
  REQUIRE(problem.value.shape.dim == Config::value_dim);
  const auto gradients = run_backward<Backend>(problem, converted<E>(tensor("dy")));
  constexpr double bound = gradient_tolerance<E>();
  CHECK(relative_error(gradients.query.values, tensor("dq").values) <= bound);
  CHECK(relative_error(gradients.key.values, tensor("dk").values) <= bound);
  CHECK(relative_error(gradients.value.values, tensor("dv").values) <= bound);
}

TEST_CASE_TEMPLATE("sliding windows: gradients", Backend, JRT_TEST_BACKENDS) {
  check_file<Backend, Plain<double, 64, 15>>("swa_left15_d64");
  check_file<Backend, Plain<double, 16, 4>>("swa_left4_d16");
  check_file<Backend, Plain<double, 64, 128>>("swa_left128_d64");
  check_file<Backend, Plain<float, 64, 15>>("swa_left15_d64");
  check_file<Backend, Plain<float, 16, 4>>("swa_left4_d16");
  check_file<Backend, Plain<float, 64, 128>>("swa_left128_d64");
}

}  // namespace
}  // namespace jrt::test
