// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/cpu/gated_convolution.hpp>
#include <jrt/cpu/linear_attention.hpp>
#include <jrt/cpu/window_attention.hpp>
#include <jrt/execution/cpu.hpp>
#include <jrt/numeric.hpp>
#include <jrt/policy/rotary.hpp>
#include <jrt/thread_pool.hpp>

#include "jrt_lm/compiled_mixers.hpp"
#include "jrt_lm/each_row.hpp"

namespace jrt_lm {

/// Mixers and rotation on the CPU.
struct CpuBackend {
  using Execution = jrt::Cpu<jrt::ThreadPool>;

  template <class E, int d>
  static void rotate(const jrt::RotaryHalves<d>& rotary, const std::int32_t* positions, std::int64_t rows, E* x,
                     std::int64_t columns, std::int64_t heads, const Execution& on) {
    using Sum = jrt::ComputeType<E>;
    constexpr int half = d / 2;
    each_row(on.executor(), rows, [=, &rotary](std::int64_t t) {
      for (int i = 0; i < half; ++i) {
        const auto turn = rotary.template rotation<Sum>(positions[t], i);
        for (std::int64_t h = 0; h < heads; ++h) {
          E* const head = x + t * columns + h * d;
          const Sum low = jrt::convert<Sum>(head[i]);
          const Sum high = jrt::convert<Sum>(head[i + half]);
          head[i] = jrt::convert<E>(low * turn.cosine - high * turn.sine);
          head[i + half] = jrt::convert<E>(low * turn.sine + high * turn.cosine);
        }
      }
    });
  }
};

}  // namespace jrt_lm
