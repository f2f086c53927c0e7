// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/detail/cuda/core/sm90/target.cuh>
#include <memory>
#include <stdexcept>
#include <string>

#include "jrt_lm/step_consumer.cuh"
#include "jrt_lm/step_copier.cuh"
#include "jrt_lm/step_kernel.hpp"
#include "jrt_lm/step_timing.cuh"

/// A decode step of a whole model in one kernel for Hopper: one block on each multiprocessor, all of them there at the same
/// time. Blocks work through a list of stages and wait for one another between two of them; weights do not wait: a warp of
/// its own keeps copying the block's share of them, stage after stage, into a ring in shared memory.
///
///     copying warp     | W0 W0 W0 W1 W1 W2 W2 W2 W3 …          ahead by as much as the ring holds
///     ring             [ piece | piece | piece | … ]           a piece: 8 rows of W, 512 columns
///     16 warps         | wait · x · W0 | wait · x · W1 | …     each takes 32 columns of every piece: mma.m16n8k16
///
/// What a stage needs beside x (biases, norm weights, filters, states, angles) is loaded before the wait. Sums have one
/// order, which depends on no other row: a sequence gives the same in any batch.
namespace jrt_lm {

template <class Convolution, class Linear, class Window>
__global__ void __launch_bounds__(jrt::detail::cuda::hopper_threads<step_threads>, 1)
    step_kernel(const __grid_constant__ StepParameters<Window::head_dim> parameters) {
  if constexpr (jrt::detail::cuda::compiling_for_hopper) {
    using namespace jrt::detail::cuda;
    std::byte* const shared = hopper_shared_memory;
    const StepInputs& in = parameters.in;
    auto* const words = reinterpret_cast<uint4*>(shared + 2 * max_ring_slots * sizeof(std::uint64_t));
    constexpr int words_of_stage = sizeof(Stage) / sizeof(uint4);
    for (int i = static_cast<int>(threadIdx.x); i < in.stage_count * words_of_stage; i += step_threads) {
      words[i] = reinterpret_cast<const uint4*>(in.stages)[i];
    }
    if (threadIdx.x == 0) {
      for (int slot = 0; slot < max_ring_slots; ++slot) {
        barrier_init(shared_address(shared) + 8U * static_cast<unsigned>(slot), 1);
        barrier_init(shared_address(shared) + 8U * static_cast<unsigned>(slot + max_ring_slots), step_warps);
      }
      barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= step_consumers) {
      give_registers<copier_registers>();
      if (threadIdx.x < step_consumers + 32) {
        StepCopier<Convolution, Linear, Window>(parameters, shared).run();
      }
    } else {
      take_registers<consumer_registers>();
      StepConsumer<Convolution, Linear, Window>(parameters, shared).run();
    }
  }
}

template <class Convolution, class Linear, class Window>
class CompiledStepKernel final : public StepKernel {
  using Block = StepBlock<Convolution, Linear, Window>;
  static constexpr auto kernel = step_kernel<Convolution, Linear, Window>;

 public:
  explicit CompiledStepKernel(double rotary_base) : rotary_(rotary_base) {}

  [[nodiscard]] int blocks(const ModelConfig& config, std::int64_t rows, std::size_t stages) const override {
    int device = 0;
    int cooperates = 0;
    int shared_bytes = 0;
    int multiprocessors = 0;
    int resident = 0;
    const bool fits =
        has_step_sizes(config, rows, Block::normed_pieces) && cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&cooperates, cudaDevAttrCooperativeLaunch, device) == cudaSuccess && cooperates != 0 &&
        cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
        jrt::detail::cuda::kernel_exists<kernel, step_threads>() &&
        ring_slots(stages, window_group(config), shared_bytes) >= 4 * Block::normed_pieces &&
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) == cudaSuccess &&
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, step_threads,
                                                      static_cast<std::size_t>(shared_bytes)) == cudaSuccess &&
        resident > 0;
    if (!fits) {
      static_cast<void>(cudaGetLastError());
      return 0;
    }
    return multiprocessors;
  }

  void launch(const StepInputs& inputs, int blocks, void* stream) const override {
    int device = 0;
    int shared_bytes = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    const auto stages = static_cast<std::size_t>(inputs.stage_count);
    const std::int64_t group = inputs.heads / (inputs.window_kv_heads > 0 ? inputs.window_kv_heads : inputs.heads);
    StepParameters<Window::head_dim> parameters{inputs, rotary_};
    parameters.work_offset = static_cast<std::int32_t>(work_offset(stages));
    parameters.ring_offset = static_cast<std::int32_t>(work_offset(stages) + work_bytes(group));
    parameters.ring_slots = ring_slots(stages, group, shared_bytes);
    cudaLaunchAttribute cooperates{};
    cooperates.id = cudaLaunchAttributeCooperative;
    cooperates.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(step_threads);
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &cooperates;
    config.numAttrs = 1;
    check(cudaLaunchKernelEx(&config, kernel, parameters));
    times_.remember(inputs, blocks, config.stream);
  }

 private:
  static void check(cudaError_t error) {
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("CUDA, step kernel: ") + cudaGetErrorString(error));
    }
  }
  static constexpr std::size_t whole_lines(std::size_t bytes) { return (bytes + 127) / 128 * 128; }
  static std::int64_t window_group(const ModelConfig& config) { return config.heads / config.window_kv_heads; }

  /// Behind two barriers for each slot of the ring, and the stages.
  static std::size_t work_offset(std::size_t stages) {
    return whole_lines(2 * max_ring_slots * sizeof(std::uint64_t) + stages * sizeof(Stage));
  }
  static std::size_t work_bytes(std::int64_t group) {
    std::size_t most = sizeof(StepSums);
    for (const std::size_t bytes :
         {Block::linear_parts * Block::linear_bytes, Block::WindowStep::template shared_bytes<step_consumers>(group)}) {
      most = bytes > most ? bytes : most;
    }
    return whole_lines(most);
  }
  static int ring_slots(std::size_t stages, std::int64_t group, int shared_bytes) {
    const std::size_t used = work_offset(stages) + work_bytes(group);
    const auto all = static_cast<std::size_t>(shared_bytes);
    const std::size_t slots = all > used ? (all - used) / piece_bytes : 0;
    return static_cast<int>(slots < max_ring_slots ? slots : max_ring_slots);
  }

  jrt::RotaryHalves<Window::head_dim> rotary_;
  [[no_unique_address]] mutable StepTimesPrinter<Window> times_;
};

template <class Convolution, class Linear, class Window>
std::unique_ptr<const StepKernel> make_step_kernel(double rotary_base) {
  if constexpr (jrt::DeviceStep<Linear>::supported && jrt::DeviceStep<Window>::supported) {
    return std::make_unique<CompiledStepKernel<Convolution, Linear, Window>>(rotary_base);
  } else {
    return nullptr;
  }
}

}  // namespace jrt_lm
