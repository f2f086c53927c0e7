// SPDX-License-Identifier: Apache-2.0
// Gradients for values of every width on the kernels for sm_90a, which take them in slices of 64 columns: narrower than
// one, several, and a last one that is not full.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include "support/backend.hpp"
#include "support/backward_problem.hpp"
#include "support/configs.hpp"
#include "support/fuzz.hpp"

namespace jrt::test {
namespace {

template <class Config>
bool uses_hopper(const Problem<Config>& problem) {
  using E = typename Config::Element;
  Placed<Concurrent, E> query(problem.query, Layout::bthd);
  Placed<Concurrent, E> value(problem.value, Layout::bthd);
  BackwardArgs<Config> args;
  args.query = args.key = query.view();
  args.value = args.output_gradient = value.view();
  return detail::cuda::Backward<Config>(args, problem.query.shape.batch, Concurrent::execution()).kernels().hopper;
}

struct CausalPower : Causal<BFloat16, 16, 72> {
  using Normaliser = Unnormalised;
};

TEST_CASE_TEMPLATE("random calls agree with the chain rule at all widths of v", Config, Prefix<BFloat16, 16, 8>,
                   Causal<BFloat16, 16, 40>, Prefix<BFloat16, 16, 112>, Causal<BFloat16, 16, 128>,
                   Prefix<BFloat16, 16, 136>, CausalPower) {
  if (has_own_kernels<Config>() && tested_kernels() == CudaKernels::automatic) {
    CHECK(uses_hopper(Problem<Config>({.tokens = 10, .prefix = 0, .heads = 1, .query_heads = 1})));
  }
  Random random(2407);
  for (int i = 0; i < 40; ++i) {
    CAPTURE(i);
    const Problem<Config> problem = random_problem<Config>(random, 200);
    const Layout layout = all_layouts[random.between(0, 3)];
    const auto loss = random.chance(0.5) ? loss_with_states(problem) : Loss<Config>(problem);
    const bool few = problem.query.shape.batch * problem.query.shape.tokens < 16;  // as in backward_test
    constexpr double bound = gradient_tolerance<BFloat16>();
    const auto gradients = run_backward<Concurrent>(problem, loss, {.layout = layout});
    check_gradients(gradients, reference_gradients(problem, loss), loss, few ? 2 * bound : bound);
    CHECK(run_backward<Concurrent>(problem, loss, {.layout = layout}) == gradients);
    const auto of_queries =
        run_backward<Concurrent>(problem, loss, {.layout = layout}, {true, false, false, false, false, false});
    CHECK(of_queries.query == gradients.query);
  }
}

TEST_CASE_TEMPLATE("sequences that are split, at several slices of v", Config, Prefix<BFloat16, 16, 112>,
                   SplitByLength<Prefix<BFloat16, 16, 128>, 128>) {
  const Problem<Config> problem({.batch = 1, .tokens = 1500, .prefix = 700, .heads = 2, .query_heads = 4});
  const auto loss = loss_with_states(problem);
  const auto gradients = run_backward<Concurrent>(problem, loss);
  check_gradients(gradients, reference_gradients(problem, loss), loss, gradient_tolerance<BFloat16>());
  CHECK(run_backward<Concurrent>(problem, loss) == gradients);
}

}  // namespace
}  // namespace jrt::test
