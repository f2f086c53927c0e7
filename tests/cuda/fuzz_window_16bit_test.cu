// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "support/fuzz_window.hpp"

namespace jrt::test {
namespace {

/// Values of another dimension than keys.
struct Wide : Turned<BFloat16, 32, 15> {
  static constexpr int value_dim = 48;
};

TEST_CASE_TEMPLATE("random calls of window attention agree with the formula: bfloat16 and half", Config,
                   Turned<BFloat16, 64, 128>, Plain<Half, 64, 128>, Turned<Half, 16, 4>, Plain<BFloat16, 16, 0>,
                   Plain<Half, 112, 7>, Turned<BFloat16, 112, 64>, Wide, Plain<BFloat16, 24, 4>, Plain<BFloat16, 64, 93>) {
  MESSAGE("worst error: " << fuzz_mixer<Concurrent, FuzzedWindow, Config>(8668, 30, 250));
}

}  // namespace
}  // namespace jrt::test
