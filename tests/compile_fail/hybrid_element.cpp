// SPDX-License-Identifier: Apache-2.0
// expect: Linear and Window must have the same Element
#include <jrt/jrt.hpp>

using Linear = jrt::PrefixLinearAttention<float, 16, 16>;
jrt::PrefillArgs<jrt::HybridAttention<Linear, jrt::SlidingWindowAttention<jrt::Half, 16, 128>>> args;
