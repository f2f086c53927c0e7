// SPDX-License-Identifier: Apache-2.0
// What an engine that is built for many GPUs compiles: the operations of a model's mixers, for all architectures at once.
#include <jrt/cuda/gated_convolution.cuh>
#include <jrt/cuda/linear_attention.cuh>
#include <jrt/cuda/window_attention.cuh>

namespace architectures {

template <class Config>
jrt::Status prefill(const jrt::PrefillArgs<Config>& args, const jrt::Workspace& workspace, const jrt::Cuda& on) {
  return jrt::prefill(args, workspace, on);
}
template <class Config>
jrt::Status decode(const jrt::DecodeArgs<Config>& args, const jrt::Workspace& workspace, const jrt::Cuda& on) {
  return jrt::decode_step(args, workspace, on);
}

using Linear = jrt::PrefixLinearAttention<jrt::BFloat16, 16, 64>;
using FloatLinear = jrt::PrefixLinearAttention<float, 16, 64>;
using Window = jrt::SlidingWindowAttention<jrt::BFloat16, 64, 128>;
using Convolution = jrt::GatedConvolution<jrt::BFloat16, 3>;

template jrt::Status prefill(const jrt::PrefillArgs<Linear>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status decode(const jrt::DecodeArgs<Linear>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status prefill(const jrt::PrefillArgs<FloatLinear>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status prefill(const jrt::PrefillArgs<Window>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status decode(const jrt::DecodeArgs<Window>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status prefill(const jrt::PrefillArgs<Convolution>&, const jrt::Workspace&, const jrt::Cuda&);
template jrt::Status decode(const jrt::DecodeArgs<Convolution>&, const jrt::Workspace&, const jrt::Cuda&);

}  // namespace architectures
