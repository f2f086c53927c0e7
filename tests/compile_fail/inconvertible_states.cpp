// SPDX-License-Identifier: Apache-2.0
// expect: states convert only between storage types and between packings of one Taylor map
#include <jrt/jrt.hpp>

template <int d>
using Format = jrt::StateFormatOf<jrt::PrefixLinearAttention<float, d, 64>>;
jrt::Status run(const jrt::StateSlots<Format<16>>& from, const jrt::StateSlots<Format<24>>& to) {
  return jrt::copy_states(from, to, 1, jrt::Cpu{});
}
