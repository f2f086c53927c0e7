// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/convolution/channel_walk.cuh"
#include "jrt/detail/cuda/core/threads.cuh"
#include "jrt/detail/cuda/linear/step.cuh"
#include "jrt/detail/cuda/window/step.cuh"
#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/mixer/window_attention.hpp"

/// Decode steps of the mixers inside an engine's own kernel: the bodies of `decode_step`'s kernels as device functions, for
/// kernels that do a whole layer or a whole model at once. One token for each sequence.
///
///     template <class Config>
///     __global__ void layer(const __grid_constant__ jrt::DecodeArgs<Config> args, …) {
///       extern __shared__ __align__(16) std::byte shared[];
///       using Step = jrt::DeviceStep<Config>;
///       const Step step(args);
///       …                                          // what makes queries, keys and values; a barrier
///       for (unsigned item = blockIdx.x; item < step.items(); item += gridDim.x) {
///         step.run(item, shared, jrt::WholeBlock<Step::threads>{});
///       }
///     }
///
/// Arguments are those of `decode_step` and are not checked here: the host checks them before the launch, for example by a
/// first `decode_step` with them. Which threads take part is the last argument: `WholeBlock` or, in a block that does
/// several things at a time, `BlockPart`. All of them call the function. Tensors that other blocks
/// write in the same kernel must be visible to all threads of the part before; states are read only by `prefetch`, `begin`
/// and `run`, so that they may be asked for before that.
namespace jrt {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Asks the L2 cache for `bytes` bytes, by `threads` threads of which this is number `rank`. No effect on results.
__device__ inline void prefetch_lines(const void* from, std::int64_t bytes, int rank, int threads) {
  constexpr int line = 128;
  const auto* const lines = static_cast<const char*>(from);
  for (std::int64_t i = std::int64_t{rank} * line; i < bytes; i += std::int64_t{threads} * line) {
    asm volatile("prefetch.global.L2 [%0];" : : "l"(lines + i));
  }
}

/// The decode step of `Config`: of linear attention or of a window.
template <class Config>
class DeviceStep;

/// Linear attention, an item for each key/value head of each sequence. Results are bitwise those of `decode_step`.
template <AttentionConfig Config>
class DeviceStep<Config> {
  using Operator = detail::StepOnly<Config>;
  using Call = detail::cuda::StepCall<Operator>;
  using Format = typename Call::Format;
  using Layout = typename Call::Layout;
  static constexpr auto kept =
      Layout::keeps_stored ? detail::cuda::StateRegisters::as_stored : detail::cuda::StateRegisters::as_summed;

 public:
  /// Threads of a part.
  static constexpr int threads = Layout::threads;
  /// Shared memory of a part, aligned to 16 bytes.
  static constexpr std::size_t shared_bytes =
      detail::cuda::StepBlock<Operator, detail::cuda::StateRegisters::as_summed>::shared_bytes;

  /// Whether the state fits in the registers of a block, which is needed here.
  static constexpr bool supported = Layout::passes == 1;

  JRT_DETAIL_HD explicit DeviceStep(const DecodeArgs<Config>& args) {
    static_assert(supported,
                  "DeviceStep: the state is too large for the registers of a block; call jrt::decode_step instead.");
    call_.query = args.query;
    call_.key = args.key;
    call_.value = args.value;
    call_.output = args.output;
    call_.denominators = args.denominators;
    call_.first_positions = args.first_positions;
    call_.map = args.feature_map;
    call_.source = args.source;
    call_.destination = args.destination.empty() ? args.source : args.destination;
    call_.sequences = args.query.batch;
    call_.heads = args.key.heads;
    call_.keys = 1;
    call_.group = args.query.heads / args.key.heads;
  }

  [[nodiscard]] JRT_DETAIL_HD unsigned items() const { return static_cast<unsigned>(call_.sequences * call_.heads); }

  /// Asks the L2 cache for an item's state.
  __device__ void prefetch(unsigned item, int rank, int of_threads) const {
    const auto heads = static_cast<unsigned>(call_.heads);
    if (call_.source.has_slot(item / heads)) {
      prefetch_lines(call_.source.pool.head(call_.source.slot(item / heads), item % heads),
                     Format::head_elements * static_cast<std::int64_t>(sizeof(typename Format::Scalar)), rank, of_threads);
    }
  }

  template <class Part>
  __device__ void run(unsigned item, std::byte* shared, const Part& part) const {
    static_assert(Part::threads == threads, "DeviceStep: a part must have DeviceStep::threads threads.");
    using detail::cuda::StateRegisters;
    using detail::cuda::StepBlock;
    if (Layout::keeps_stored && call_.group == 1 && call_.denominators.data == nullptr) {
      StepBlock<Operator, kept, Part>(call_, item, shared, part).run();
    } else {
      StepBlock<Operator, StateRegisters::as_summed, Part>(call_, item, shared, part).run();
    }
    part.sync();  // shared memory may be used again
  }

 private:
  Call call_{};
};

/// A window, an item for each key/value head of each sequence. Rows of all tensors begin at multiples of 16 bytes. With as
/// many threads as `decode_step` has, results are bitwise its own; with others they differ in their last bits.
template <WindowConfig Config>
class DeviceStep<Config> {
  using Call = detail::WindowCall<Config>;
  using Format = StateFormatOf<Config>;

 public:
  /// Threads of a part that does as `decode_step` does; others may be chosen.
  static constexpr int threads = detail::cuda::WindowStepLayout<Config>::threads;
  /// Whether a cache fits in shared memory, in rows of whole accesses, which is needed here.
  static constexpr bool supported = detail::cuda::WindowStepLayout<Config>::supported;
  /// Shared memory of a part of `of_threads` threads, aligned to 16 bytes, with `group` query heads for each key head.
  template <int of_threads = threads>
  JRT_DETAIL_HD static constexpr std::size_t shared_bytes(std::int64_t group) {
    using Layout = detail::cuda::WindowStepLayout<Config, of_threads>;
    return static_cast<std::size_t>(Layout::buffer_bytes(group) + Layout::sum_bytes(of_threads));
  }

  JRT_DETAIL_HD explicit DeviceStep(const DecodeArgs<Config>& args) {
    call_.query = args.query;
    call_.key = args.key;
    call_.value = args.value;
    call_.output = args.output;
    call_.initial = args.source;
    call_.final = args.destination.empty() ? args.source : args.destination;
    call_.scale = args.scale;
    call_.rotary = args.rotary;
  }

  [[nodiscard]] JRT_DETAIL_HD unsigned items() const { return static_cast<unsigned>(call_.query.batch * call_.key.heads); }

  /// Asks the L2 cache for an item's keys and values.
  __device__ void prefetch(unsigned item, int rank, int of_threads) const {
    const auto heads = static_cast<unsigned>(call_.key.heads);
    if (call_.initial.has_slot(item / heads)) {
      prefetch_lines(call_.initial.pool.head(call_.initial.slot(item / heads), item % heads),
                     Format::head_elements * static_cast<std::int64_t>(sizeof(typename Format::Scalar)), rank, of_threads);
    }
  }

  /// An item in two parts: `begin` copies the cache to shared memory, which needs no token, `end` does the rest.
  template <class Part>
  class Item {
   public:
    __device__ Item(const DeviceStep& step, std::byte* shared, const Part& part)
        : steps_(step.call_, reinterpret_cast<typename Config::Element*>(shared),
                 *reinterpret_cast<typename Steps::Query::Shared*>(
                     shared + detail::cuda::WindowStepLayout<Config, Part::threads>::buffer_bytes(step.call_.group())),
                 part) {}
    __device__ void begin(unsigned item) { steps_.begin(item); }
    __device__ void end() { steps_.end(); }

   private:
    using Steps = detail::cuda::WindowSteps<Config, Part>;
    static_assert(supported,
                  "DeviceStep: the window is too large for shared memory, or its rows are no multiples of 16 bytes; call "
                  "jrt::decode_step instead.");
    Steps steps_;
  };

  template <class Part>
  __device__ void run(unsigned item, std::byte* shared, const Part& part) const {
    Item<Part> steps(*this, shared, part);
    steps.begin(item);
    steps.end();
  }

 private:
  Call call_{};
};

/// One channel of one sequence of a convolution, whose new input is in a register: the epilogue of a projection. `load`
/// loads weights and carried inputs, `next` takes the input and its gate, stores the carried inputs and returns the output;
/// after a `load` for a staged step it leaves the state as it is, and takes one token after another. Results are bitwise
/// those of `decode_step`.
template <ConvolutionConfig Config>
class DeviceChannel {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

 public:
  /// Of `args` only weights, bias and states are used; `channels` is their number.
  __device__ void load(const DecodeArgs<Config>& args, int sequence, int channel, int channels) {
    const auto& destination = args.destination.empty() ? args.source : args.destination;
    load(args, args.source, destination, sequence, channel, channels);
    state_ = skipped_ ? nullptr : destination.pool.head(destination.slot(sequence), 0);
  }
  /// Of a staged step without tokens staged before. That inputs are staged is left to the caller.
  __device__ void load(const StagedStepArgs<Config>& args, int sequence, int channel, int channels) {
    load(args, args.state, StateSlots<Format>{}, sequence, channel, channels);
    state_ = nullptr;
  }

  /// 0 for a row of padding.
  __device__ Element next(Element input, Element gate) {
    if (skipped_) {
      return Element{};
    }
    using T = detail::ConvolutionCompute<Config>;
    const T output = walk_.next(0, convert<T>(input)) * convert<T>(gate);
    if (state_ != nullptr) {
      walk_.store_carried(state_, false);
    }
    return convert<Element>(output);
  }

 private:
  template <class Args>
  __device__ void load(const Args& args, const StateSlots<Format>& source, const StateSlots<Format>& destination,
                       int sequence, int channel, int channels) {
    walk_ = Walk(channel, channels);
    skipped_ = detail::sequence_skipped(source, nullptr, destination, sequence);
    if (!skipped_) {
      walk_.load_weights(args.weight, args.bias);
      walk_.start({nullptr, 0, source.pool.head(source.slot(sequence), 0)}, 0, false);
    }
  }

  using Walk = detail::cuda::ChannelWalk<Config, 1>;
  Walk walk_{0, 0};
  bool skipped_ = true;
  Element* state_ = nullptr;  // null: it stays as it is
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt
