// SPDX-License-Identifier: Apache-2.0
// expect: MinimumTokens must be at least 1 token per segment
#include <jrt/jrt.hpp>

static_assert(jrt::OccupancySplit<0>::segments(1, 1, 1) == 1);
