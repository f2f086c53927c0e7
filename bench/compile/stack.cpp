// SPDX-License-Identifier: Apache-2.0
// A convolution, linear attention and a window in one stack: prefill and decode.
#include <jrt/cpu.hpp>
#include <jrt/mixer/stack.hpp>

#include "operations.hpp"

namespace bench {

using Model =
    jrt::Stack<jrt::Layer<jrt::GatedConvolution<float, 3>, 1024>, jrt::Layer<jrt::PrefixLinearAttention<float, 16, 64>, 16>,
               jrt::Layer<jrt::SlidingWindowAttention<float, 64, 128>, 16>>;

jrt::Status prefill_stack(const jrt::PrefillArgs<Model>& args, jrt::Status (*before_layer)(int),
                          const jrt::Workspace& workspace, const jrt::Cpu<>& on) {
  return jrt::prefill(args, before_layer, workspace, on);
}
jrt::Status decode_stack(const jrt::DecodeArgs<Model>& args, jrt::Status (*before_layer)(int),
                         const jrt::Workspace& workspace, const jrt::Cpu<>& on) {
  return jrt::decode_step(args, before_layer, workspace, on);
}

}  // namespace bench
