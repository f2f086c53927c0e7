// SPDX-License-Identifier: Apache-2.0
// Window attention: prefill and decode.
#include <jrt/cpu/window_attention.hpp>

#include "operations.hpp"

namespace bench {

using Config = jrt::SlidingWindowAttention<float, 64, 128>;

template jrt::Status prefill<Config>(const jrt::PrefillArgs<Config>&, const jrt::Workspace&, const jrt::Cpu<>&);
template jrt::Status decode<Config>(const jrt::DecodeArgs<Config>&, const jrt::Workspace&, const jrt::Cpu<>&);

}  // namespace bench
