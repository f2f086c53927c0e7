// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
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
/// time. Blocks work through a list of stages; what one of them writes the others wait for, number by number
/// (step_exchange.cuh). Everything else does not wait: warps of their own copy the block's share of the weights, stage
/// after stage, into a ring in shared memory, and load what is added to products.
///
///     copying warp     | W0 W0 W0 W1 W1 W2 W2 W2 W3 …              ahead by as much as the ring holds
///     ring             [ 4 pieces | 4 pieces | … ]                 a piece: 8 rows of W, 512 columns
///     3 warps          | biases, filters, states … of 0 | of 1 …   ahead by two rounds of tiles
///     8 warps          | W0 · x0 there? · product · store | W1 …   each takes 64 columns of every piece: mma.m16n8k16
///
/// Sums have one order, which depends on no other row: a sequence gives the same in any batch. Rows are sequences, or
/// staged tokens of sequences, of which all but the mixers know nothing.
namespace jrt_lm {

template <class Shape>
__global__ void __launch_bounds__(jrt::detail::cuda::hopper_threads<step_threads>, 1)
    step_kernel(const __grid_constant__ StepParameters<Shape::Window::head_dim> parameters) {
  if constexpr (jrt::detail::cuda::compiling_for_hopper) {
    using namespace jrt::detail::cuda;
    std::byte* const shared = hopper_shared_memory;
    const StepInputs& in = parameters.in;
    const std::uint32_t steps = *static_cast<const volatile std::uint32_t*>(in.arrivals);
    auto* const words = reinterpret_cast<uint4*>(shared + step_barrier_bytes);
    constexpr int words_of_stage = sizeof(Stage) / sizeof(uint4);
    for (int i = static_cast<int>(threadIdx.x); i < in.stage_count * words_of_stage; i += step_threads) {
      words[i] = reinterpret_cast<const uint4*>(in.stages)[i];
    }
    __syncthreads();
    for (int s = static_cast<int>(threadIdx.x); s < in.stage_count; s += step_threads) {
      reinterpret_cast<Stage*>(words)[s].first_tile = in.first_tiles[static_cast<int>(blockIdx.x) * in.stage_count + s];
    }
    auto& prepared = *reinterpret_cast<typename StepBlock<Shape>::Prepared*>(shared + parameters.prepared_offset);
    if (const int row = static_cast<int>(threadIdx.x); row < in.rows) {
      prepared.slots[row] = in.slots[row / in.step_tokens];
      prepared.before[row] = row % in.step_tokens;
      prepared.positions[row] = in.positions[row];
      prepared.tokens[row] = in.tokens[row];
    }
    if (threadIdx.x == 0) {
      prepared.encoder_tokens = in.encoder_tokens == nullptr ? 0 : *in.encoder_tokens;
      std::uint32_t barrier = shared_address(shared);
      const auto init = [&](int count, int arrivals) {
        for (int i = 0; i < count; ++i, barrier += 8) {
          barrier_init(barrier, arrivals);
        }
      };
      init(max_ring_slots, 1);
      init(max_ring_slots, step_warps);
      init(prepared_slots, step_preparers);
      init(prepared_slots, step_warps);
      barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= step_consumers) {
      give_registers<helper_registers>();
      const int warp = warp_uniform(static_cast<int>(threadIdx.x - step_consumers) / 32);
      if (warp == 0) {
        StepCopier<Shape>(parameters, shared, steps).run();
      } else {
        StepPreparer<Shape>(parameters, shared, steps).run(warp - 1);
      }
    } else {
      take_registers<consumer_registers>();
      StepConsumer<Shape>(parameters, shared, steps).run();
    }
    // The last block to come here makes the next step another one: all have read which one this is.
    if (threadIdx.x == 0 && atomicAdd(in.arrivals + 1, 1U) == gridDim.x - 1) {
      in.arrivals[0] = steps + 1;
      in.arrivals[1] = 0;
    }
  }
}

template <class Convolution, class Linear, class Window>
class CompiledStepKernel final : public StepKernel {
  template <int row_blocks, bool several>
  using ShapeOf = StepShape<Convolution, Linear, Window, row_blocks, several>;

 public:
  explicit CompiledStepKernel(double rotary_base) : rotary_(rotary_base) {}

  [[nodiscard]] int blocks(const ModelConfig& config, std::int64_t rows, std::size_t stages, bool several) const override {
    return with_shape(rows, several, [&]<class Shape>(Shape) { return blocks_of<Shape>(config, rows, stages); });
  }
  void launch(const StepInputs& inputs, int blocks, void* stream) const override {
    with_shape(inputs.rows, inputs.several,
               [&]<class Shape>(Shape) { launch_of<Shape>(inputs, blocks, static_cast<cudaStream_t>(stream)); });
  }

 private:
  /// Calls `function` with the shape of the kernel for so many rows.
  template <class Function>
  static auto with_shape(std::int64_t rows, bool several, const Function& function) {
    if (rows <= ShapeOf<1, false>::rows) {
      return several ? function(ShapeOf<1, true>{}) : function(ShapeOf<1, false>{});
    }
    return several ? function(ShapeOf<2, true>{}) : function(ShapeOf<2, false>{});
  }

  template <class Shape>
  [[nodiscard]] static int blocks_of(const ModelConfig& config, std::int64_t rows, std::size_t stages) {
    int device = 0;
    int cooperates = 0;
    int shared_bytes = 0;
    int multiprocessors = 0;
    int resident = 0;
    const auto enough = [&] {
      const Places<Shape> places(stages, static_cast<int>(rows), static_cast<int>(config.width),
                                 static_cast<int>(config.heads), static_cast<int>(config.window_kv_heads), multiprocessors,
                                 shared_bytes);
      return places.ring_slots >= least_ring_slots;
    };
    const bool fits =
        has_step_sizes(config, rows, Shape::normed_pieces) && cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&cooperates, cudaDevAttrCooperativeLaunch, device) == cudaSuccess && cooperates != 0 &&
        cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
        jrt::detail::cuda::kernel_exists<step_kernel<Shape>, step_threads>() && enough() &&
        cudaFuncSetAttribute(step_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) ==
            cudaSuccess &&
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, step_kernel<Shape>, step_threads,
                                                      static_cast<std::size_t>(shared_bytes)) == cudaSuccess &&
        resident > 0;
    if (!fits) {
      static_cast<void>(cudaGetLastError());
      return 0;
    }
    return multiprocessors;
  }

  template <class Shape>
  void launch_of(const StepInputs& inputs, int blocks, cudaStream_t stream) const {
    int device = 0;
    int shared_bytes = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(cudaFuncSetAttribute(step_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    const Places<Shape> places(static_cast<std::size_t>(inputs.stage_count), inputs.rows, inputs.width, inputs.heads,
                               inputs.window_kv_heads, blocks, shared_bytes);
    StepParameters<Window::head_dim> parameters{inputs, rotary_};
    parameters.prepared_offset = static_cast<std::int32_t>(places.prepared);
    parameters.residual_offset = static_cast<std::int32_t>(places.residual);
    parameters.outputs_offset = static_cast<std::int32_t>(places.outputs);
    parameters.work_offset = static_cast<std::int32_t>(places.work);
    parameters.ring_offset = static_cast<std::int32_t>(places.ring);
    parameters.ring_slots = places.ring_slots;
    parameters.window_slots = places.window_slots;
    cudaLaunchAttribute cooperates{};
    cooperates.id = cudaLaunchAttributeCooperative;
    cooperates.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(step_threads);
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = &cooperates;
    config.numAttrs = 1;
    check(cudaLaunchKernelEx(&config, step_kernel<Shape>, parameters));
    times_.remember(inputs, blocks, stream);
  }

  static void check(cudaError_t error) {
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("CUDA, step kernel: ") + cudaGetErrorString(error));
    }
  }
  /// Some of a round, and as many to come.
  static constexpr int least_ring_slots = 2;

  /// What is where in shared memory, behind the barriers.
  template <class Shape>
  struct Places {
    using Block = StepBlock<Shape>;

    std::size_t prepared;
    std::size_t residual;
    std::size_t outputs;
    std::size_t work;
    std::size_t ring;
    int ring_slots;
    int window_slots = 0;

    Places(std::size_t stages, int rows, int width, int heads, int kv_heads, int blocks, int shared_bytes) {
      prepared = whole_lines(step_barrier_bytes + stages * sizeof(Stage));
      residual = whole_lines(prepared + Block::Prepared::bytes(rows));
      // In rounds of as many tiles as are made at once.
      constexpr int at_once = Shape::tiles_at_once(StageKind::adds);
      const int tiles = (residual_tiles(width, blocks) + at_once - 1) / at_once * at_once;
      outputs = whole_lines(residual + static_cast<std::size_t>(tiles) * Shape::rows * tile_outputs * sizeof(float));
      const auto values = static_cast<std::size_t>(heads * Window::head_dim) * sizeof(typename Block::E);
      work = whole_lines(outputs + (Shape::several ? 0 : values));
      const std::size_t window =
          Shape::several ? sizeof(typename StepWindow<Shape>::Shared)
                         : Block::WindowStep::template shared_bytes<step_consumers>(kv_heads > 0 ? heads / kv_heads : 1);
      constexpr std::size_t least = std::max(sizeof(StepSums<Shape>), sizeof(typename StepLinear<Shape>::Shared));
      ring = whole_lines(work + std::max(least, window));
      ring_slots = slots_from(ring, shared_bytes);
      if constexpr (!Shape::several) {
        // A window of one token may borrow slots, if the ring is no shorter then: it is longer in all other stages.
        const std::size_t longer = whole_lines(work + least);
        const int borrowed = static_cast<int>((window + slot_bytes - 1) / slot_bytes);
        if (const int slots = slots_from(longer, shared_bytes); slots > ring_slots && slots - borrowed >= ring_slots) {
          ring = longer;
          ring_slots = slots;
          window_slots = borrowed;
        }
      }
    }

   private:
    static std::size_t whole_lines(std::size_t bytes) { return (bytes + 127) / 128 * 128; }
    static int slots_from(std::size_t ring, int shared_bytes) {
      const auto all = static_cast<std::size_t>(shared_bytes);
      const std::size_t slots = all > ring ? (all - ring) / slot_bytes : 0;
      return static_cast<int>(slots < max_ring_slots ? slots : max_ring_slots);
    }
  };

  jrt::RotaryHalves<Window::head_dim> rotary_;
  [[no_unique_address]] mutable StepTimesPrinter<Window> times_;
};

template <class Convolution, class Linear, class Window>
std::unique_ptr<const StepKernel> make_step_kernel(double rotary_base) {
  using Shape = StepShape<Convolution, Linear, Window, 1, true>;
  if constexpr (StepLinear<Shape>::supported && StepWindow<Shape>::supported && jrt::DeviceStep<Window>::supported) {
    return std::make_unique<CompiledStepKernel<Convolution, Linear, Window>>(rotary_base);
  } else {
    return nullptr;
  }
}

}  // namespace jrt_lm
