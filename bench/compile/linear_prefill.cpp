// SPDX-License-Identifier: Apache-2.0
// One operation of one operator: the least that a program on the CPU backend compiles.
#include <jrt/cpu/linear_attention.hpp>

#include "operations.hpp"

namespace bench {

using Config = jrt::PrefixLinearAttention<float, 16, 64>;

template jrt::Status prefill<Config>(const jrt::PrefillArgs<Config>&, const jrt::Workspace&, const jrt::Cpu<>&);

}  // namespace bench
