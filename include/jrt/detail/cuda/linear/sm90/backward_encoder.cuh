// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/target.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_call.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_rows.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_state_warps.cuh"

/// Gradients of the encoder region's keys and values, from the R that pass `keys` ends with:
///
///     dk_j = J(k_j)ᵀ [v_j | 1]·Rᵀ        dv_j = φ(k_j)·R
///
/// R does not change, so a block publishes it once, and its two groups of four warps take chunks in turn.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class Config>
struct EncoderLayout : BackwardTiles<Config> {
  using Tiles = BackwardTiles<Config>;
  static constexpr int stages = hopper_backward_tuning.encoder_stages;              // of a group of warps
  static constexpr SharedAddress full = Tiles::barriers;                            // [2][stages]
  static constexpr SharedAddress values = Tiles::base + 1024;                       // [2][stages]
  static constexpr SharedAddress inputs = values + 2 * stages * Tiles::value_tile;  // [2][stages]
  static constexpr SharedAddress state = inputs + 2 * stages * Tiles::input_tile;
  static constexpr std::size_t shared_bytes = state + PublishedState::bytes - Tiles::base;
};

template <class Config>
class EncoderGradients {
 public:
  using Call = HopperBackwardCall<Config>;
  using Layout = EncoderLayout<Config>;

  /// Chunks [begin, end) of a run; this group has begin, begin + 2, …
  __device__ EncoderGradients(const Call& call, const TokenRun& run, int head, int slice, int begin, int end)
      : call_(call),
        run_(run),
        head_(head),
        slice_(slice),
        group_(warp_uniform(static_cast<int>(threadIdx.x) / 128)),
        rows_(warp_uniform(static_cast<int>(threadIdx.x) / 32 % 4)),
        begin_(begin + group_),
        count_((end - begin - group_ + 1) / 2) {}

  __device__ void start_copies() const {
    for (int i = 0; i < Layout::stages; ++i) {
      load(i);
    }
  }

  __device__ void write() const {
#pragma unroll 1
    for (int i = 0; i < count_; ++i) {
      const SharedAddress value = values(i);
      const SharedAddress input = inputs(i);
      const int first = (begin_ + 2 * i) * Layout::chunk;
      const int present = run_.tokens - first;
      const TileCoordinates input_at{0, run_.first + first, head_ * Layout::slices + slice_, run_.row};
      const TileCoordinates value_at{slice_ * Layout::columns, run_.first + first, head_, run_.row};
      barrier_wait(full(i), i / Layout::stages % 2);
      InputGradient<Config> gradient;
      float no_sum[2];
      gradient.start();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float features[40];
        rows_.multiply_state_and_column(features, value, Layout::state + half * PublishedState::half);
        wgmma_commit();
        wgmma_wait<0>();
        fence_accumulators(features);
        if (half == 0) {
          gradient.template add_first<false>(input, rows_.warp(), features, no_sum);
        } else {
          gradient.template add_second<false>(typename InputGradient<Config>::Inputs(input, rows_.warp()), features,
                                              no_sum);
        }
      }
      gradient.store(call_.key_encoder_gradient, input_at, rows_.row(), present, 1, 1);
      float sums[32];
      rows_.add_unshifted(sums, input, Layout::state, 0);
      wgmma_wait<0>();
      rows_.add_shifted(sums, input, Layout::state);
      wgmma_wait<0>();
      fence_accumulators(sums);
      await_stores_read();  // of the chunk before, so that all of its stage is free when all four warps are here
      named_barrier(1 + group_, 128);
      if (i > 0) {
        load(i - 1 + Layout::stages);
      }
      if (call_.value_encoder_gradient.data != nullptr) {
        rows_.store_values(sums, value, call_.value_encoder_gradient, call_.maps.value_encoder_gradient, value_at, present);
      }
    }
    await_stores();
  }

 private:
  [[nodiscard]] __device__ int place(int i) const {
    return group_ * Layout::stages + i % Layout::stages;
  }
  [[nodiscard]] __device__ SharedAddress values(int i) const {
    return Layout::values + place(i) * Layout::value_tile;
  }
  [[nodiscard]] __device__ SharedAddress inputs(int i) const {
    return Layout::inputs + place(i) * Layout::input_tile;
  }
  [[nodiscard]] __device__ SharedAddress full(int i) const {
    return Layout::full + 8 * place(i);
  }

  __device__ void load(int i) const {
    if (rows_.warp() != 0 || i >= count_) {
      return;
    }
    const int token = run_.first + (begin_ + 2 * i) * Layout::chunk;
    barrier_expect(full(i), Layout::input_tile + Layout::value_tile);
    load_tile(inputs(i), &call_.maps.key_encoder, {0, token, head_, run_.row}, full(i));
    load_tile(values(i), &call_.maps.value_encoder, {slice_ * Layout::columns, token, head_, run_.row}, full(i));
  }

  const Call& call_;
  const TokenRun& run_;
  int head_;
  int slice_;
  int group_;  // of warps
  BackwardRows<Config> rows_;
  int begin_;
  int count_;
};

template <class Config>
__global__ void __launch_bounds__(hopper_threads<BackwardTiles<Config>::threads>, hopper_backward_tuning.blocks)
    encoder_gradients_sm90(const __grid_constant__ HopperBackwardCall<Config> call) {
  if constexpr (compiling_for_hopper) {
    using Layout = EncoderLayout<Config>;
    const BlockItem item(blockIdx.x, call.encoder_parts, call.heads, Layout::slices);
    const std::int64_t part = item.segment;
    const std::int64_t head = item.head;
    const PrefillPlan plan = call.plan_of(item.sequence);
    const TokenRange present = plan.skipped ? TokenRange{0, 0} : plan.encoder;
    await_previous_kernel();
    if (part == 0) {
      zero_rows_outside(call.key_encoder_gradient, plan.span.encoder_row, plan.span.encoder_first, present,
                        plan.span.encoder_tokens, head * Layout::slices + item.slice);
    }
    if (part == 0 && item.slice == 0) {
      zero_rows_outside(call.value_encoder_gradient, plan.span.encoder_row, plan.span.encoder_first, present,
                        plan.span.encoder_tokens, head);
    }
    const TokenRange range = segment_of(present, call.encoder_parts, part, Layout::chunk);
    if (range.size() <= 0) {
      return;
    }
    if (shared_address(hopper_shared_memory) != Layout::base) {
      __trap();  // all addresses assume it
    }
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2 * Layout::stages; ++i) {
        barrier_init(Layout::full + 8 * i, 1);
      }
      barrier_init_fence();
    }
    __syncthreads();
    const TokenRun run = TokenRun(encoder_source(call.args, plan, head), range).warp_uniform();
    const EncoderGradients<Config> gradients(call, run, static_cast<int>(head), item.slice, 0,
                                             (run.tokens + Layout::chunk - 1) / Layout::chunk);
    gradients.start_copies();
    if (threadIdx.x < BackwardTiles<Config>::state_warp_threads) {
      BackwardStateWarps<Config, BackwardPass::keys> state_warps;
      state_warps.clear();
#pragma unroll 1
      for (std::int64_t g = 0; g < call.group; ++g) {
        state_warps.add_stored(StateSlice<GradientSliceFormat<Config>, const float>{
            call.reverse_total(item.sequence, (head * call.group + g) * Layout::slices + item.slice)});
      }
      state_warps.publish_at(Layout::state);
    }
    __syncthreads();
    gradients.write();
  }
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
