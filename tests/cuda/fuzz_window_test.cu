// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "support/fuzz_window.hpp"

namespace jrt::test {
namespace {

TEST_CASE_TEMPLATE("random calls of window attention agree with the formula: float and double", Config,
                   Turned<float, 64, 128>, Plain<float, 16, 4>, Turned<float, 112, 7>, Plain<float, 5, 0>,
                   Turned<double, 16, 7>) {
  MESSAGE("worst error: " << fuzz_mixer<Concurrent, FuzzedWindow, Config>(2402, 30, 250));
}

}  // namespace
}  // namespace jrt::test
