// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <jrt/cuda/device_steps.cuh>
#include <jrt/early_start.cuh>
#include <jrt/execution/cuda.cuh>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "jrt_lm/early_start.cuh"
#include "jrt_lm/mixers.hpp"
#include "jrt_lm/tiled_launch.cuh"

namespace jrt_lm {

/// What is left to do behind a tiled product with a convolution: outputs of the first rows of each tile, for which it left
/// the inputs around them, and the state.
template <class Config>
struct ConvolutionEdges {
  using E = typename Config::Element;
  static constexpr int carried = Config::kernel_width - 1;

  const E* edges;  // as in TiledJob
  const E* last_inputs;
  const std::int32_t* row_count;
  const E* filter;
  const E* filter_bias;
  E* y;
  std::int64_t y_columns;
  int rows;
  int channels;
  jrt::StateSlots<jrt::StateFormatOf<Config>> states;
  const std::uint8_t* continues;

  [[nodiscard]] __device__ const E* row(int tile, int what, int k) const {
    return edges + ((std::int64_t{tile} * 3 + what) * carried + k) * channels;
  }
};

inline constexpr int edge_threads = 256;

/// A thread for each channel of a tile's first rows. That of the first tile has the state, too.
template <class Config>
__global__ void __launch_bounds__(edge_threads) finish_edges_kernel(const __grid_constant__ ConvolutionEdges<Config> job) {
  using E = typename Config::Element;
  using T = jrt::detail::ConvolutionCompute<Config>;
  constexpr int carried = ConvolutionEdges<Config>::carried;
  const int blocks_of_tile = (job.channels + edge_threads - 1) / edge_threads;
  const int tile = static_cast<int>(blockIdx.x) / blocks_of_tile;
  const int channel = static_cast<int>(blockIdx.x) % blocks_of_tile * edge_threads + static_cast<int>(threadIdx.x);
  const bool is_there = channel < job.channels;
  jrt::detail::cuda::ChannelWalk<Config, 1> walk(is_there ? channel : 0, job.channels);
  walk.load_weights(job.filter, job.filter_bias);  // which no kernel writes
  jrt::await_previous_kernel();
  jrt::let_next_kernel_start();
  if (!is_there) {
    return;
  }
  E* state = nullptr;
  E before[carried] = {};
  if (tile == 0) {
    if (job.states.has_slot(0)) {
      state = job.states.pool.head(job.states.slot(0), channel);
    }
    for (int i = 0; i < carried && state != nullptr && job.continues[0] != 0; ++i) {
      before[i] = state[i];
    }
  } else {
    for (int i = 0; i < carried; ++i) {
      before[i] = job.row(tile - 1, 2, i)[channel];
    }
  }
  for (int i = 0; i < carried; ++i) {
    walk.next(0, jrt::convert<T>(before[i]));
  }
  for (int k = 0; k < carried; ++k) {
    if (tile * tile_rows + k < job.rows) {
      const T sum = walk.next(0, jrt::convert<T>(job.row(tile, 0, k)[channel]));
      const T gate = jrt::convert<T>(job.row(tile, 1, k)[channel]);
      job.y[(std::int64_t{tile} * tile_rows + k) * job.y_columns + channel] = jrt::convert<E>(sum * gate);
    }
  }
  if (state != nullptr) {
    const int tokens = *job.row_count;
    E after[carried];
    for (int i = 0; i < carried; ++i) {
      after[i] = i >= carried - tokens ? job.last_inputs[std::int64_t{i} * job.channels + channel] : before[i + tokens];
    }
    for (int i = 0; i < carried; ++i) {
      state[i] = after[i];
    }
  }
}

/// Whether tiled products have this convolution behind them.
template <class Config>
inline constexpr bool has_tiled_convolution =
    Config::kernel_width ==
    tiled_taps&& std::is_same_v<typename Config::Element, jrt::BFloat16>&&
        std::is_same_v<typename Config::Weight, jrt::BFloat16>&& std::is_same_v<typename Config::Activation, jrt::Silu>;

/// Fewer rows leave most of a GPU without a tile.
inline constexpr std::int64_t least_convolved_rows = 256;

/// The convolution of one prompt, with the product that makes its inputs and gates of rows that are prepared for a norm.
template <class Config>
cudaError_t launch_convolved_tiles(const StepProjection<typename Config::Element>& projection,
                                   const ConvolutionTensors<typename Config::Element>& tensors,
                                   const jrt::StateSlots<jrt::StateFormatOf<Config>>& states, const MixerCall& call,
                                   const jrt::Cuda& on) {
  using E = typename Config::Element;
  constexpr std::int64_t carried = Config::kernel_width - 1;
  const std::int64_t channels = tensors.output.dim;
  const std::int64_t tiles = (projection.rows + tile_rows - 1) / tile_rows;
  TiledOperands of;
  of.x = projection.normed;
  of.x_columns = projection.in;
  of.weight = projection.weight;
  of.bias = projection.bias;
  of.rows = projection.rows;
  of.in = projection.in;
  of.outputs = channels;
  of.y = tensors.output.data;
  of.y_columns = tensors.output.token_stride;
  of.squares = projection.squares;
  of.square_parts = projection.square_parts;
  of.epsilon = static_cast<float>(projection.norm_epsilon);
  of.filter = tensors.weight;
  of.filter_bias = tensors.bias;
  const auto numbers = (tiles * 3 + 1) * carried * channels;
  of.edges = static_cast<E*>(call.workspace(static_cast<std::size_t>(numbers) * sizeof(E)).data);
  of.last_inputs = of.edges + tiles * 3 * carried * channels;
  of.row_count = call.sequences.cu_seqlens + 1;
  const int multiprocessors = on.multiprocessors();
  const bool wide = tiles * ((channels + 127) / 128) > multiprocessors / 2;
  const cudaError_t error = wide ? launch_tiled<Tiling<Finish::convolves, 256>>(of, multiprocessors, on.stream())
                                 : launch_tiled<Tiling<Finish::convolves, 128>>(of, multiprocessors, on.stream());
  if (error != cudaSuccess) {
    return error;
  }
  const ConvolutionEdges<Config> edges{of.edges,
                                       of.last_inputs,
                                       of.row_count,
                                       of.filter,
                                       of.filter_bias,
                                       of.y,
                                       of.y_columns,
                                       static_cast<int>(of.rows),
                                       static_cast<int>(channels),
                                       states,
                                       call.continues};
  return launch_early(finish_edges_kernel<Config>, tiles * ((channels + edge_threads - 1) / edge_threads), edge_threads, 0,
                      on.stream(), edges);
}

}  // namespace jrt_lm
