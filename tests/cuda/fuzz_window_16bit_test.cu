// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <jrt/kernels.hpp>

#include "support/backend.hpp"
#include "support/fuzz_window.hpp"

namespace jrt::test {
namespace {

/// Values of another dimension than keys.
struct Wide : Turned<BFloat16, 32, 15> {
  static constexpr int value_dim = 48;
};

TEST_CASE_TEMPLATE("random calls of window attention agree with the formula: bfloat16 and half", Config,
                   Turned<BFloat16, 64, 128>, Plain<Half, 64, 128>, Turned<Half, 16, 4>, Plain<BFloat16, 16, 0>,
                   Plain<Half, 112, 7>, Turned<BFloat16, 112, 64>, Turned<Half, 128, 128>, Turned<BFloat16, 48, 200>, Wide,
                   Plain<BFloat16, 24, 4>, Plain<BFloat16, 64, 93>) {
  MESSAGE("worst error: " << fuzz_mixer<Concurrent, FuzzedWindow, Config>(8668, 30, 250));
}

template <class Config>
KernelKinds kernels_for(std::int64_t tokens, std::int64_t offset = 0) {
  using E = typename Config::Element;
  const WindowProblem<Config> problem({.tokens = tokens});
  Placed<Concurrent, E> query(problem.query, Layout::bthd);
  Placed<Concurrent, E> key(problem.key, Layout::bthd);
  Placed<Concurrent, E> output(problem.output_shape(), Layout::bthd);
  PrefillArgs<Config> args;
  args.query = query.view();
  args.key = args.value = key.view();
  args.query.data += offset;
  args.output = output.view();
  return kernels_of(args, Concurrent::execution());
}

TEST_CASE("the kernels for a window are those for its tokens, tensors, type and device") {
  constexpr KernelKinds tiles{.matrix_units = true};
  constexpr KernelKinds rows{.ordinary_units = true};
  const bool hopper = detail::cuda::HopperWindow<Plain<Half, 64, 128>>::available(Concurrent::execution());
  CHECK(kernels_for<Plain<Half, 64, 128>>(64) == (hopper ? KernelKinds{.hopper = true} : tiles));
  CHECK(kernels_for<Plain<Half, 64, 128>>(63) == tiles);
  CHECK(kernels_for<Plain<Half, 64, 128>>(1) == rows);
  CHECK(kernels_for<Plain<Half, 64, 128>>(64, 1) == rows);
  CHECK(kernels_for<Turned<BFloat16, 64, 128>>(100) == (hopper ? KernelKinds{.hopper = true} : tiles));
  CHECK(kernels_for<Plain<BFloat16, 24, 4>>(100) == rows);
}

}  // namespace
}  // namespace jrt::test
