// SPDX-License-Identifier: Apache-2.0
// expect: left_window must be at least 0; a query always sees itself
#include <jrt/jrt.hpp>

jrt::PrefillArgs<jrt::SlidingWindowAttention<float, 64, -1>> args;
