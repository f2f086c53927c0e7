// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <jrt/cuda/device_steps.cuh>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/policy/rotary.hpp>

#include "jrt_lm/step_kernel.hpp"
#include "jrt_lm/step_ring.cuh"

namespace jrt_lm {

template <int d>
struct StepParameters {
  StepInputs in;
  jrt::RotaryHalves<d> rotary;
  std::int32_t work_offset = 0;  ///< in shared memory, behind barriers and stages
  std::int32_t ring_offset = 0;
  std::int32_t ring_slots = 0;
};

/// What both kinds of warps know.
template <class Convolution, class Linear, class Window>
class StepBlock {
 public:
  using E = typename Linear::Element;
  using Parameters = StepParameters<Window::head_dim>;
  using LinearStep = jrt::DeviceStep<Linear>;
  using WindowStep = jrt::DeviceStep<Window>;
  using LinearPart = jrt::BlockPart<LinearStep::threads>;
  using WindowPart = jrt::BlockPart<step_consumers>;
  /// Of the residual stream, and twice as many of what is added to it: 16 heads wide, as the published models are.
  static constexpr int normed_pieces = pieces_of(16 * Window::head_dim);
  static constexpr int linear_parts = step_consumers / LinearStep::threads;
  static constexpr std::size_t linear_bytes = (LinearStep::shared_bytes + 127) / 128 * 128;

  __device__ StepBlock(const Parameters& parameters, std::byte* shared)
      : parameters_(parameters),
        in_(parameters.in),
        shared_(shared),
        stages_(reinterpret_cast<const Stage*>(shared + 2 * max_ring_slots * sizeof(std::uint64_t))),
        barriers_(jrt::detail::cuda::shared_address(shared)),
        ring_(jrt::detail::cuda::shared_address(shared) + static_cast<std::uint32_t>(parameters.ring_offset)),
        block_(static_cast<int>(blockIdx.x)),
        blocks_(static_cast<int>(gridDim.x)) {}

 protected:
  [[nodiscard]] __device__ std::uint32_t full(int slot) const { return barriers_ + 8U * static_cast<unsigned>(slot); }
  [[nodiscard]] __device__ std::uint32_t empty(int slot) const { return full(slot + max_ring_slots); }
  [[nodiscard]] __device__ std::uint32_t piece(int slot) const {
    return ring_ + static_cast<unsigned>(slot) * static_cast<unsigned>(piece_bytes);
  }
  [[nodiscard]] static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

  template <class Config>
  [[nodiscard]] __device__ jrt::StateSlots<jrt::StateFormatOf<Config>> states(const Stage& stage, int heads) const {
    using Scalar = typename jrt::StateFormatOf<Config>::Scalar;
    return {{static_cast<Scalar*>(stage.state), in_.slot_count, heads,
             in_.slot_stride / static_cast<std::int64_t>(sizeof(Scalar))},
            in_.slots};
  }
  template <class T>
  [[nodiscard]] __device__ jrt::TensorView<T> view(T* data, int columns, int heads, int dim) const {
    return {data, in_.rows, 1, heads, dim, columns, columns, dim};
  }
  [[nodiscard]] __device__ LinearStep linear_step(const Stage& stage) const {
    constexpr int d = Linear::FeatureMap::input_dim;
    const auto* const x = static_cast<const E*>(stage.x);
    jrt::DecodeArgs<Linear> args;
    args.query = view(x, stage.x_columns, in_.heads, d);
    args.key = view(x + in_.heads * d, stage.x_columns, in_.heads, d);
    args.value = view(x + 2 * in_.heads * d, stage.x_columns, in_.heads, Linear::value_dim);
    args.output = view(static_cast<E*>(stage.y), stage.y_columns, in_.heads, Linear::value_dim);
    args.source = states<Linear>(stage, in_.heads);
    return LinearStep(args);
  }
  [[nodiscard]] __device__ WindowStep window_step(const Stage& stage) const {
    constexpr int d = Window::head_dim;
    const auto* const x = static_cast<const E*>(stage.x);
    const int kv_heads = in_.window_kv_heads;
    jrt::DecodeArgs<Window> args;
    args.query = view(x, stage.x_columns, in_.heads, d);
    args.key = view(x + in_.heads * d, stage.x_columns, kv_heads, d);
    args.value = view(x + (in_.heads + kv_heads) * d, stage.x_columns, kv_heads, d);
    args.output = view(static_cast<E*>(stage.y), stage.y_columns, in_.heads, d);
    args.source = states<Window>(stage, kv_heads);
    args.scale = in_.window_scale;
    return WindowStep(args);
  }
  [[nodiscard]] __device__ jrt::DecodeArgs<Convolution> convolution(const Stage& stage) const {
    jrt::DecodeArgs<Convolution> args;
    args.weight = static_cast<const E*>(stage.filter);
    args.bias = static_cast<const E*>(stage.filter_bias);
    args.source = states<Convolution>(stage, in_.channels);
    return args;
  }

  const Parameters& parameters_;
  const StepInputs& in_;
  std::byte* shared_;
  const Stage* stages_;
  std::uint32_t barriers_;
  std::uint32_t ring_;
  RingPlace place_;
  int block_;
  int blocks_;
};

}  // namespace jrt_lm
