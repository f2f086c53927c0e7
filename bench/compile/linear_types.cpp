// SPDX-License-Identifier: Apache-2.0
// One operator in three types of elements.
#include <jrt/cpu/linear_attention.hpp>

#include "operations.hpp"

namespace bench {

using Float = jrt::PrefixLinearAttention<float, 16, 64>;
using BFloat16 = jrt::PrefixLinearAttention<jrt::BFloat16, 16, 64>;
using Half = jrt::PrefixLinearAttention<jrt::Half, 16, 64>;

template jrt::Status prefill<Float>(const jrt::PrefillArgs<Float>&, const jrt::Workspace&, const jrt::Cpu<>&);
template jrt::Status decode<Float>(const jrt::DecodeArgs<Float>&, const jrt::Workspace&, const jrt::Cpu<>&);
template jrt::Status prefill<BFloat16>(const jrt::PrefillArgs<BFloat16>&, const jrt::Workspace&, const jrt::Cpu<>&);
template jrt::Status decode<BFloat16>(const jrt::DecodeArgs<BFloat16>&, const jrt::Workspace&, const jrt::Cpu<>&);
template jrt::Status prefill<Half>(const jrt::PrefillArgs<Half>&, const jrt::Workspace&, const jrt::Cpu<>&);
template jrt::Status decode<Half>(const jrt::DecodeArgs<Half>&, const jrt::Workspace&, const jrt::Cpu<>&);

}  // namespace bench
