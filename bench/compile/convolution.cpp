// SPDX-License-Identifier: Apache-2.0
// The gated convolution: prefill and decode.
#include <jrt/cpu/gated_convolution.hpp>

#include "operations.hpp"

namespace bench {

using Config = jrt::GatedConvolution<float, 3>;

template jrt::Status prefill<Config>(const jrt::PrefillArgs<Config>&, const jrt::Workspace&, const jrt::Cpu<>&);
template jrt::Status decode<Config>(const jrt::DecodeArgs<Config>&, const jrt::Workspace&, const jrt::Cpu<>&);

}  // namespace bench
