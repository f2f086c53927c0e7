// SPDX-License-Identifier: Apache-2.0
// expect: value_dim must be at least 1
#include <jrt/jrt.hpp>

jrt::PrefillArgs<jrt::PrefixLinearAttention<float, 16, 0>> args;
