// SPDX-License-Identifier: Apache-2.0
// Gradients of the authors' own modules, run in float64 on inputs that float32 holds exactly.
#include <doctest/doctest.h>

#include <jrt/backward.hpp>
#include <string>

#include "support/backend.hpp"
#include "support/backward_problem.hpp"
#include "support/golden.hpp"

namespace jrt::test {
namespace {

template <class Backend, class Element, int d, int dv>
void check_file(const std::string& name) {
  using Config = PrefixLinearAttention<Element, d, dv>;
  CAPTURE(name);
  constexpr double bound = gradient_tolerance<Element>();
  const support::SafeTensors file(data_file(name));
  Problem<Config> problem;
  problem.query = converted<Element>(tensor_bhnd(file, "q"));
  problem.key = converted<Element>(tensor_bhnd(file, "k"));
  problem.value = converted<Element>(tensor_bhnd(file, "v"));
  problem.key_encoder = converted<Element>(tensor_bhnd(file, "k_enc"));
  problem.value_encoder = converted<Element>(tensor_bhnd(file, "v_enc"));
  REQUIRE(problem.query.shape.dim == d);
  REQUIRE(problem.value.shape.dim == dv);
  Loss<Config> loss(problem);
  loss.output_gradient = converted<Element>(tensor_bhnd(file, "dy"));
  const auto gradients = run_backward<Backend>(problem, loss);
  CHECK(relative_error(gradients.query.values, tensor_bhnd(file, "dq").values) <= bound);
  CHECK(relative_error(gradients.key.values, tensor_bhnd(file, "dk").values) <= bound);
  CHECK(relative_error(gradients.value.values, tensor_bhnd(file, "dv").values) <= bound);
  CHECK(relative_error(gradients.key_encoder.values, tensor_bhnd(file, "dk_enc").values) <= bound);
  CHECK(relative_error(gradients.value_encoder.values, tensor_bhnd(file, "dv_enc").values) <= bound);
}

TEST_CASE_TEMPLATE("the authors' gradients", Backend, JRT_TEST_BACKENDS) {
  check_file<Backend, double, 16, 64>("pla_grad_d16_dv64");
  check_file<Backend, double, 4, 8>("pla_grad_d4_dv8");
  check_file<Backend, float, 16, 64>("pla_grad_d16_dv64");
  check_file<Backend, float, 4, 8>("pla_grad_d4_dv8");
}

}  // namespace
}  // namespace jrt::test
