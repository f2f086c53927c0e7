// SPDX-License-Identifier: Apache-2.0
// expect: this feature map needs the position
#include <jrt/jrt.hpp>

struct Positioned : jrt::BasedLinearAttention<float, 16, 64> {
  using FeatureMap = jrt::CosFormer<16>;
};
jrt::Status status =
    jrt::prefill_with_checkpoints(jrt::PrefillArgs<Positioned>{}, jrt::Checkpoints<Positioned>{}, jrt::Cpu{});
