// SPDX-License-Identifier: Apache-2.0
// One operator on a GPU: prefill and decode.
#include <jrt/cuda/linear_attention.cuh>

#include "operations.hpp"

namespace bench {

using Config = jrt::PrefixLinearAttention<jrt::BFloat16, 16, 64>;

template jrt::Status prefill<Config>(const jrt::PrefillArgs<Config>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status decode<Config>(const jrt::DecodeArgs<Config>&, const jrt::Workspace&, const jrt::Cuda&);

}  // namespace bench
