// SPDX-License-Identifier: Apache-2.0
// expect: Window::head_dim must be the input_dim of Linear's FeatureMap
#include <jrt/jrt.hpp>

using Linear = jrt::PrefixLinearAttention<float, 16, 64>;
jrt::PrefillArgs<jrt::HybridAttention<Linear, jrt::SlidingWindowAttention<float, 64, 128>>> args;
