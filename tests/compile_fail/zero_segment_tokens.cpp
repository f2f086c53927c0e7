// SPDX-License-Identifier: Apache-2.0
// expect: SegmentTokens must be at least 1 token per segment
#include <jrt/jrt.hpp>

static_assert(jrt::LengthSplit<0>::segments(1, 1, 1) == 1);
