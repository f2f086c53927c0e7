// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <jrt/cuda/device_steps.cuh>
#include <jrt/execution/cuda.cuh>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "jrt_lm/compiled_mixer.hpp"
#include "jrt_lm/convolved_tiles.cuh"
#include "jrt_lm/skinny_product.cuh"

namespace jrt_lm {

/// The convolution behind a product of few rows that makes its inputs and gates: a thread for each sequence and each of the
/// block's 8 channels takes the sequence's tokens one after another. Between two products that is a kernel less.
template <class Config, class Args>
struct ConvolutionBehind {
  using E = typename Config::Element;
  using Channel = jrt::DeviceChannel<Config>;
  static constexpr bool is_staged = std::is_same_v<Args, jrt::StagedStepArgs<Config>>;

  Args args;
  int sequences;
  int tokens;  ///< of each
  int channels;

  [[nodiscard]] __device__ static int sequence() { return static_cast<int>(threadIdx.x) / skinny_outputs; }
  [[nodiscard]] __device__ static int channel(int first) { return first + static_cast<int>(threadIdx.x) % skinny_outputs; }

  __device__ void place(int block, int& first, int& tile_stride) const {
    first = block * skinny_outputs;
    tile_stride = channels;
  }

  /// Asks for the filters of channels from `first` on.
  [[nodiscard]] __device__ Channel prepare(int first) const {
    if (threadIdx.x == 0) {
      jrt::prefetch_lines(args.weight + std::int64_t{first} * Config::kernel_width,
                          skinny_outputs * Config::kernel_width * static_cast<std::int64_t>(sizeof(E)), 0, 1);
    }
    return {};
  }

  /// States are of steps before this one.
  __device__ void load(Channel& own, int first) const {
    if (sequence() < sequences) {
      own.load(args, sequence(), channel(first), channels);
    }
  }

  template <int rows>
  __device__ void run(Channel& own, int first, const E (&passed)[rows][2][skinny_outputs], E* y, int y_columns) const {
    if (sequence() >= sequences) {
      return;
    }
    const int column = channel(first) - first;
    for (int t = 0; t < tokens; ++t) {
      const int row = sequence() * tokens + t;
      const E input = passed[row][0][column];
      if constexpr (is_staged) {
        args.staging.row(sequence(), t, channel(first))[0] = input;
      }
      y[std::int64_t{row} * y_columns + channel(first)] = own.next(input, passed[row][1][column]);
    }
  }
};

/// For the types whose norm can be part of the product.
template <jrt::ConvolutionConfig Config>
requires has_skinny_norm<typename Config::Element>
struct ProjectedStep<Config, jrt::Cuda> {
  using E = typename Config::Element;

  static bool run(const StepProjection<E>& projection, const ConvolutionTensors<E>& tensors,
                  const jrt::StateSlots<jrt::StateFormatOf<Config>>& states, const jrt::StagingView<Config>& staging,
                  const MixerCall& call, const jrt::Cuda& on) {
    if (!call.is_step) {
      if constexpr (has_tiled_convolution<Config>) {
        if (projection.rows >= least_convolved_rows) {
          require_launched(launch_convolved_tiles<Config>(projection, tensors, states, call, on));
          return true;
        }
      }
      return false;
    }
    if (!is_normed_skinny(projection.rows, projection.in, tensors.output.dim)) {
      return false;
    }
    if (staging.data == nullptr) {
      jrt::DecodeArgs<Config> args;
      args.source = states;
      launch(args, projection, tensors, on);
    } else {
      jrt::StagedStepArgs<Config> args;
      args.state = states;
      args.staging = staging;
      launch(args, projection, tensors, on);
    }
    return true;
  }

 private:
  template <class Args>
  static void launch(Args& args, const StepProjection<E>& projection, const ConvolutionTensors<E>& tensors,
                     const jrt::Cuda& on) {
    args.weight = tensors.weight;
    args.bias = tensors.bias;
    const ConvolutionBehind<Config, Args> behind{args, static_cast<int>(tensors.output.batch),
                                                 static_cast<int>(tensors.output.tokens),
                                                 static_cast<int>(tensors.output.dim)};
    const SkinnyResidual<E> input{projection.residual, static_cast<int>(projection.in), projection.norm_weight,
                                  static_cast<float>(projection.norm_epsilon)};
    require_launched(launch_skinny_product<SkinnyOutput::passes>(input, projection.rows, projection.in, projection.weight,
                                                                 projection.bias, tensors.output.dim, tensors.output.data,
                                                                 tensors.output.token_stride, on.stream(), behind));
  }
  static void require_launched(cudaError_t error) {
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("CUDA, launch: ") + cudaGetErrorString(error));
    }
  }
};

}  // namespace jrt_lm
