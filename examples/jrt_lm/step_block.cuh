// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <jrt/cuda/device_steps.cuh>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/policy/rotary.hpp>

#include "jrt_lm/step_exchange.cuh"
#include "jrt_lm/step_kernel.hpp"
#include "jrt_lm/step_ring.cuh"
#include "jrt_lm/step_tokens.cuh"

namespace jrt_lm {

/// What a kernel is compiled for: mixers, eights of rows, and whether rows may be tokens of the same sequence.
template <class Convolution_, class Linear_, class Window_, int row_blocks_, bool several_>
struct StepShape {
  using Convolution = Convolution_;
  using Linear = Linear_;
  using Window = Window_;
  using E = typename Linear::Element;
  static constexpr int row_blocks = row_blocks_;
  static constexpr bool several = several_;
  static constexpr int rows = 8 * row_blocks;
  /// Of the residual stream, and twice as many of what is added to it: 16 heads wide, as the published models are.
  static constexpr int normed_pieces = pieces_of(16 * Window::head_dim);

  /// Wider than 360M: a step waits for its weights.
  static constexpr bool wide = normed_pieces > 2;

  /// Tiles whose sums a warp has in registers together. Sums do not depend on it.
  static JRT_DETAIL_HD constexpr int tiles_at_once(StageKind kind) {
    if (kind == StageKind::embed || kind == StageKind::adds) {
      return 2;  // a block seldom has more
    }
    return tile_parts(kind) == 2 ? 2 : step_parts / row_blocks;  // an output for each thread
  }
  /// Weights in registers, the order in which they are copied.
  static JRT_DETAIL_HD constexpr RingBatch batch(StageKind kind) {
    return ring_batch(tiles_at_once(kind) * tile_parts(kind), pieces_at_once(kind));
  }
  /// Pieces of W and x of a product, at most.
  static JRT_DETAIL_HD constexpr int pieces(StageKind kind) { return normed_pieces * (kind == StageKind::adds ? 2 : 1); }
  /// Pieces of x that a warp has in registers together; if not all, they are loaded for each round of tiles.
  static JRT_DETAIL_HD constexpr int x_pieces(StageKind kind) {
    constexpr int most = 8 / row_blocks;
    return pieces(kind) < most ? pieces(kind) : most;
  }
  /// Those whose weights a warp has in registers together, of all tiles of a round.
  static JRT_DETAIL_HD constexpr int pieces_at_once(StageKind kind) {
    const int few = kind == StageKind::adds && row_blocks * normed_pieces * (several ? 2 : 1) > 4 ? 2 : step_parts;
    const int most = few < 2 * step_parts / (tile_parts(kind) * tiles_at_once(kind))
                         ? few
                         : 2 * step_parts / (tile_parts(kind) * tiles_at_once(kind));
    return pieces(kind) >= most ? most : pieces(kind) >= 2 ? 2 : 1;
  }
};

template <int d>
struct StepParameters {
  StepInputs in;
  jrt::RotaryHalves<d> rotary;
  std::int32_t prepared_offset = 0;  ///< in shared memory, behind barriers and stages
  std::int32_t residual_offset = 0;
  std::int32_t outputs_offset = 0;
  std::int32_t work_offset = 0;
  std::int32_t ring_offset = 0;
  std::int32_t ring_slots = 0;
  std::int32_t window_slots = 0;  ///< of the ring, which a window's stage borrows
  std::uint32_t zero = 0;         ///< which the compiler does not know
};

/// What goes beside the stages from warps that help to those that multiply: tokens' places, and what is added to products.
template <class Shape>
struct StepPrepared {
  /// Of a convolution, which has most: biases and a channel.
  static constexpr int most_words = 2 + static_cast<int>(sizeof(jrt::DeviceChannel<typename Shape::Convolution>) / 4);

  std::int32_t slots[step_rows];
  std::int32_t before[step_rows];  ///< tokens of the sequence in rows before
  std::int32_t positions[step_rows];
  std::int32_t tokens[step_rows];
  std::int32_t encoder_tokens;

  /// Behind it: words of each slot, for as many rows as there are.
  static JRT_DETAIL_HD constexpr int slot_words(int rows) {
    return most_words * Shape::tiles_at_once(StageKind::convolves) * tile_outputs * rows;
  }
  static constexpr std::size_t bytes(int rows) {
    return sizeof(StepPrepared) + sizeof(std::uint32_t) * static_cast<std::size_t>(prepared_slots * slot_words(rows));
  }
  [[nodiscard]] __device__ std::uint32_t* words(int slot, int rows) {
    return reinterpret_cast<std::uint32_t*>(this + 1) + slot * slot_words(rows);
  }
};

/// What all kinds of warps know.
template <class Shape>
class StepBlock {
 public:
  using E = typename Shape::E;
  using Convolution = typename Shape::Convolution;
  using Linear = typename Shape::Linear;
  using Window = typename Shape::Window;
  using Parameters = StepParameters<Window::head_dim>;
  using Prepared = StepPrepared<Shape>;
  using WindowStep = jrt::DeviceStep<Window>;
  using WindowPart = jrt::BlockPart<step_consumers>;

  __device__ StepBlock(const Parameters& parameters, std::byte* shared, std::uint32_t steps)
      : parameters_(parameters),
        in_(parameters.in),
        shared_(shared),
        stages_(reinterpret_cast<const Stage*>(shared + step_barrier_bytes)),
        prepared_(*reinterpret_cast<Prepared*>(shared + parameters.prepared_offset)),
        barriers_(jrt::detail::cuda::shared_address(shared)),
        ring_(jrt::detail::cuda::shared_address(shared) + static_cast<std::uint32_t>(parameters.ring_offset)),
        exchange_(parameters.in.exchange + (steps % 2) * parameters.in.exchange_bytes),
        other_exchange_(parameters.in.exchange + (1 - steps % 2) * parameters.in.exchange_bytes),
        block_(static_cast<int>(blockIdx.x)),
        blocks_(static_cast<int>(gridDim.x)) {}

 protected:
  [[nodiscard]] __device__ std::uint32_t barrier(int number) const {
    return barriers_ + 8U * static_cast<unsigned>(number);
  }
  [[nodiscard]] __device__ std::uint32_t full(int slot) const { return barrier(slot); }
  [[nodiscard]] __device__ std::uint32_t empty(int slot) const { return barrier(slot + max_ring_slots); }
  [[nodiscard]] __device__ std::uint32_t prepared(int slot) const { return barrier(2 * max_ring_slots + slot); }
  [[nodiscard]] __device__ std::uint32_t taken(int slot) const {
    return barrier(2 * max_ring_slots + prepared_slots + slot);
  }
  [[nodiscard]] __device__ std::uint32_t weights(int slot) const {
    return ring_ + static_cast<unsigned>(slot) * static_cast<unsigned>(slot_bytes);
  }
  /// A barrier's place, but not before `loaded` is in its register, to which a word of each load is added by "or": so that
  /// whoever waits at the barrier may write to where they come from.
  [[nodiscard]] __device__ std::uint32_t after(std::uint32_t loaded, std::uint32_t barrier) const {
    return barrier + (loaded & parameters_.zero);
  }
  /// Where a window's step of one token borrows slots of the ring as its memory, these are neighbours: the copying warp
  /// passes them on empty, in their turn, and before them those at the ring's end, if they are too few.
  [[nodiscard]] __device__ int slots_passed_by() const {
    const int left = parameters_.ring_slots - place_.slot;
    return left < parameters_.window_slots ? left : 0;
  }
  [[nodiscard]] static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

  template <class T>
  [[nodiscard]] __device__ T* exchanged(std::int64_t place) const {
    return reinterpret_cast<T*>(exchange_ + place);
  }

  /// Stores a tile's number of each of 8 neighbouring lanes, `at` being the first one's place; all lanes of the warp call
  /// it.
  __device__ void exchange_tile(std::int32_t place, int at, bool active, E number) const {
    const unsigned own = number.bits == 0xFFFFU ? 0x7FFFU : number.bits;
    uint4 words;
    words.x = own | __shfl_down_sync(~0U, own, 1) << 16;
    words.y = __shfl_down_sync(~0U, words.x, 2);
    words.z = __shfl_down_sync(~0U, words.x, 4);
    words.w = __shfl_down_sync(~0U, words.x, 6);
    if (active && lane() % tile_outputs == 0) {
      store_exchanged_words(exchanged<E>(place) + at, words);
    }
  }

  template <class Config>
  [[nodiscard]] __device__ jrt::StateSlots<jrt::StateFormatOf<Config>> states(const Stage& stage, int heads) const {
    using Scalar = typename jrt::StateFormatOf<Config>::Scalar;
    return {{static_cast<Scalar*>(stage.state), in_.slot_count, heads,
             in_.slot_stride / static_cast<std::int64_t>(sizeof(Scalar))},
            prepared_.slots};
  }
  template <class T>
  [[nodiscard]] __device__ jrt::TensorView<T> view(T* data, int columns, int heads, int dim) const {
    return {data, in_.rows, 1, heads, dim, columns, columns, dim};
  }
  /// `output`: of one token, all heads.
  [[nodiscard]] __device__ WindowStep window_step(const Stage& stage, E* output) const {
    constexpr int d = Window::head_dim;
    const auto* const x = exchanged<const E>(stage.x);
    const int kv_heads = in_.window_kv_heads;
    jrt::DecodeArgs<Window> args;
    args.query = view(x, stage.x_columns, in_.heads, d);
    args.key = view(x + in_.heads * d, stage.x_columns, kv_heads, d);
    args.value = view(x + (in_.heads + kv_heads) * d, stage.x_columns, kv_heads, d);
    args.output = view(output, 0, in_.heads, d);
    args.source = states<Window>(stage, kv_heads);
    args.scale = in_.window_scale;
    return WindowStep(args);
  }
  /// The tokens of a sequence, of which `row` is the first, in a stage of a mixer; `heads` of the state, each of which
  /// stages `numbers` of a token.
  [[nodiscard]] __device__ StepTokens<E> tokens_of(const Stage& stage, int row, int head, int heads, int numbers) const {
    StepTokens<E> tokens;
    tokens.count = step_tokens();
    tokens.x = exchanged<const E>(stage.x) + row * stage.x_columns;
    tokens.x_columns = stage.x_columns;
    tokens.y = exchanged<E>(stage.y) + row * stage.y_columns;
    tokens.y_columns = stage.y_columns;
    tokens.encoder_count = stage.encoder_columns == 0 ? 0 : prepared_.encoder_tokens;
    tokens.encoder = exchanged<const E>(stage.encoder);
    tokens.encoder_columns = stage.encoder_columns;
    tokens.staged_columns = heads * numbers;
    if (stage.staged != nullptr) {
      tokens.staged = static_cast<E*>(stage.staged) + row * tokens.staged_columns + head * numbers;
    }
    return tokens;
  }
  [[nodiscard]] __device__ int step_tokens() const { return Shape::several ? in_.step_tokens : 1; }
  [[nodiscard]] __device__ int first_result() const { return Shape::several ? in_.first_result : 0; }
  /// Whether any of the heads of sequences is this block's.
  [[nodiscard]] __device__ bool has_head(int heads) const { return block_ < in_.rows / in_.step_tokens * heads; }
  /// Calls `function(row, head)` for this block's heads of sequences, whose first row it is.
  template <class Function>
  __device__ void each_head(int heads, const Function& function) const {
    const int sequences = in_.rows / step_tokens();
    for (int item = block_; item < sequences * heads; item += blocks_) {
      function(item / heads * step_tokens(), item % heads);
    }
  }
  /// Filters of a convolution.
  template <class Args>
  [[nodiscard]] __device__ Args filters(const Stage& stage) const {
    Args args;
    args.weight = static_cast<const E*>(stage.filter);
    args.bias = static_cast<const E*>(stage.filter_bias);
    return args;
  }

  const Parameters& parameters_;
  const StepInputs& in_;
  std::byte* shared_;
  const Stage* stages_;
  Prepared& prepared_;
  std::uint32_t barriers_;
  std::uint32_t ring_;
  std::byte* exchange_;
  std::byte* other_exchange_;
  RingPlace place_;
  int block_;
  int blocks_;
};

}  // namespace jrt_lm
