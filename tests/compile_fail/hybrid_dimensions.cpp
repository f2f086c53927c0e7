// SPDX-License-Identifier: Apache-2.0
// expect: Linear and Window must have the same value_dim, since both read the same values
#include <jrt/jrt.hpp>

using Linear = jrt::PrefixLinearAttention<float, 16, 64>;
jrt::PrefillArgs<jrt::HybridAttention<Linear, jrt::SlidingWindowAttention<float, 16, 128>>> args;
