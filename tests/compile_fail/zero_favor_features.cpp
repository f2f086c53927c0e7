// SPDX-License-Identifier: Apache-2.0
// expect: both dimensions must be at least 1
#include <jrt/jrt.hpp>

jrt::PrefillArgs<jrt::PrefixLinearAttention<float, 16, 64>> args;
jrt::FavorPlus<16, 0> map;
