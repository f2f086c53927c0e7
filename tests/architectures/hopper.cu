// SPDX-License-Identifier: Apache-2.0
// What has kernels for sm_90a alone beyond operators.cu, compiled for it where no GPU is and other tests are not.
#include <jrt/cuda/linear_attention.cuh>
#include <jrt/cuda/window_attention.cuh>

namespace architectures {

template <class Config>
jrt::Status prefill(const jrt::PrefillArgs<Config>& args, const jrt::Workspace& workspace, const jrt::Cuda& on) {
  return jrt::prefill(args, workspace, on);
}

using Narrow = jrt::PrefixLinearAttention<jrt::BFloat16, 8, 64>;
using Wide = jrt::PrefixLinearAttention<jrt::BFloat16, 32, 64>;
struct SplitFloat : jrt::PrefixLinearAttention<float, 16, 64> {
  using Products = jrt::SplitProducts;
};
struct Rotated : jrt::SlidingWindowAttention<jrt::BFloat16, 64, 128> {
  using Rotary = jrt::RotaryHalves<64>;
};

template jrt::Status prefill(const jrt::PrefillArgs<Narrow>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status prefill(const jrt::PrefillArgs<Wide>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status prefill(const jrt::PrefillArgs<SplitFloat>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status prefill(const jrt::PrefillArgs<Rotated>&, const jrt::Workspace&, const jrt::Cuda&);

}  // namespace architectures
