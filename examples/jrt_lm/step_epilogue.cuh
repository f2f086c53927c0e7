// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "jrt_lm/language_model.hpp"
#include "jrt_lm/step_addends.cuh"
#include "jrt_lm/step_worker.cuh"

namespace jrt_lm {

struct StepCandidate {
  float logit;
  std::int32_t token;
};
/// As `Likelier`; what is not finite comes before everything else.
__device__ inline StepCandidate likelier(const StepCandidate& a, const StepCandidate& b) {
  return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

/// What becomes of a product's sums: each of the warps has one over its own columns, in shared memory.
template <class Shape>
class StepEpilogues : protected StepWorker<Shape> {
 protected:
  using Worker = StepWorker<Shape>;
  using E = typename Worker::E;
  using Worker::Worker;

  /// This thread's addends of the next round.
  template <StageKind kind>
  __device__ StepAddends<Shape, kind> take_addends() {
    using namespace jrt::detail::cuda;
    using Addends = StepAddends<Shape, kind>;
    using Words = AddendWords<Addends>;
    barrier_wait(this->prepared(addends_place_.slot), addends_place_.round);
    Words words{};
    std::uint32_t loaded = 0;
    const StepItem<Shape, kind> item(this->thread());
    if (this->thread() < StepItem<Shape, kind>::count && item.row < this->in_.rows) {
      const int of_tile = this->in_.rows * tile_outputs;
      const std::uint32_t* const from = this->prepared_.words(addends_place_.slot, this->in_.rows) + item.unit * of_tile +
                                        item.row * tile_outputs + item.within;
#pragma unroll
      for (int w = 0; w < Words::count; ++w) {
        words.words[w] = from[w * StepItem<Shape, kind>::tiles * of_tile];
        loaded |= words.words[w];
      }
    }
    barrier_arrive(this->after(loaded, this->taken(addends_place_.slot)));
    addends_place_.advance(prepared_slots);
    return __builtin_bit_cast(Addends, words);
  }
  /// What the products of a normed row are multiplied by.
  [[nodiscard]] __device__ float factor(const Stage& stage, int row) const {
    float squares[step_warps];
#pragma unroll
    for (int w = 0; w < step_warps; ++w) {
      squares[w] = this->sums().squares[this->squares_buffer()][w][row];
    }
    return 1 / sqrtf(sum_of(squares) / static_cast<float>(stage.in) + this->in_.norm_epsilon);
  }

  /// `round`: of this stage.
  template <StageKind kind>
  __device__ void finish(const Stage& stage, int first, int round, StepAddends<Shape, kind>& own) {
    constexpr int parts = tile_parts(kind);
    const StepItem<Shape, kind> item(this->thread());
    const int tile = first + item.unit * this->blocks_;
    const bool active = this->thread() < StepItem<Shape, kind>::count && item.row < this->in_.rows && tile < stage.tiles;
    float total[parts] = {};
    if (active) {
      [[maybe_unused]] const float scale = is_normed(kind) ? factor(stage, item.row) : 1;
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        total[part] = sum_of_warps<kind>(item.unit * parts + part, item);
        if constexpr (kind == StageKind::adds) {
          total[part] += own.bias[part];
        } else if constexpr (kind == StageKind::logits) {
          const float bias =
              stage.bias == nullptr ? 0 : static_cast<const float*>(stage.bias)[tile * tile_outputs + item.within];
          total[part] = total[part] * scale + bias;
        } else {
          total[part] = total[part] * scale + own.bias[part];
        }
      }
    }
    if constexpr (kind == StageKind::adds) {
      const int number = round * StepItem<Shape, kind>::tiles + item.unit;
      float& residual = this->residual(number, item);
      if (active) {
        residual = total[0] = residual + total[0];
      }
      store_residual(stage, active, tile, item.row, item.within, total[0], own.norm);
    } else if constexpr (kind == StageKind::logits) {
      const int output = tile * tile_outputs + item.within;
      if (active && item.row >= this->first_result()) {
        static_cast<float*>(stage.result)[(item.row - this->first_result()) * stage.y_columns + output] = total[0];
      }
      if (active && output < this->in_.vocabulary) {
        const StepCandidate candidate =
            isfinite(total[0]) ? StepCandidate{total[0], output} : StepCandidate{INFINITY, no_token};
        best_ = likelier(best_, candidate);
      }
    } else {
      const int at = item.row * stage.y_columns + tile_row(stage, tile, 0);
      if constexpr (kind == StageKind::stores) {
        this->exchange_tile(stage.y, at, active, jrt::convert<E>(total[0]));
      } else if constexpr (kind == StageKind::gates) {
        this->exchange_tile(stage.y, at, active, jrt::convert<E>(total[0] * total[1] / (1 + expf(-total[1]))));
      } else if constexpr (kind == StageKind::convolves) {
        const E input = jrt::convert<E>(total[0]);
        if constexpr (Shape::several) {
          this->sums().inputs[this->buffer_][this->thread()] = input;
          this->sync();
          if (void* const staged = this->stages_[this->stage_].staged; active && staged != nullptr) {
            static_cast<E*>(staged)[item.row * this->in_.channels + tile_row(stage, tile, 0) + item.within] = input;
          }
          if (active) {
            take_inputs_before(item, own);
          }
        }
        E y{};
        if (active) {
          y = own.channel.next(input, jrt::convert<E>(total[1]));
        }
        this->exchange_tile(stage.y, at, active, y);
      } else {
        E low = jrt::convert<E>(total[0]);
        E high = jrt::convert<E>(total[1]);
        if (own.rotates != 0) {
          const auto a = jrt::convert<float>(low);
          const auto b = jrt::convert<float>(high);
          low = jrt::convert<E>(a * own.turn.cosine - b * own.turn.sine);
          high = jrt::convert<E>(a * own.turn.sine + b * own.turn.cosine);
        }
        this->exchange_tile(stage.y, at, active, low);
        this->exchange_tile(stage.y, at + stage.half, active, high);
      }
    }
  }

  /// The residual stream's number of a thread; `number`: the tile's, of this block's.
  template <StageKind kind>
  [[nodiscard]] __device__ float& residual(int number, const StepItem<Shape, kind>& item) const {
    auto* const all = reinterpret_cast<float*>(this->shared_ + this->parameters_.residual_offset);
    return all[(number * Shape::rows + item.row) * tile_outputs + item.within];
  }
  /// All lanes call it; 8 neighbours have one row of one tile.
  __device__ void store_residual(const Stage& stage, bool active, int tile, int row, int within, float number, float norm) {
    this->exchange_tile(stage.y, row * stage.y_columns + tile * tile_outputs, active, jrt::convert<E>(number * norm));
    float squares = number * number;
#pragma unroll
    for (int distance = 1; distance < tile_outputs; distance *= 2) {
      squares += __shfl_xor_sync(~0U, squares, distance);
    }
    if (active && within == 0) {
      store_exchanged(this->template exchanged<float>(stage.y_squares) + row * (stage.outputs / tile_outputs) + tile,
                      squares);
    }
  }

  StepCandidate best_{};  ///< of the logits that this thread has made

 private:
  /// A convolution's inputs of the tokens before a row's that are in this step: of the same channel, by other threads.
  __device__ void take_inputs_before(const StepItem<Shape, StageKind::convolves>& item,
                                     StepAddends<Shape, StageKind::convolves>& own) const {
    const int before = this->prepared_.before[item.row];
#pragma unroll
    for (int distance = Shape::Convolution::kernel_width - 1; distance > 0; --distance) {
      if (distance <= before) {
        const E input = this->sums().inputs[this->buffer_][this->thread() - distance * tile_outputs];
        static_cast<void>(own.channel.next(input, E{}));
      }
    }
  }

  template <StageKind kind>
  [[nodiscard]] __device__ float sum_of_warps(int part, const StepItem<Shape, kind>& item) const {
    float sums[step_warps];
#pragma unroll
    for (int w = 0; w < step_warps; ++w) {
      sums[w] = this->sums().partial[this->buffer_][part][w][item.row / 8][item.within][item.row % 8];
    }
    return sum_of(sums);
  }
  static __device__ float sum_of(float (&numbers)[step_warps]) {
#pragma unroll
    for (int distance = 1; distance < step_warps; distance *= 2) {
#pragma unroll
      for (int w = 0; w < step_warps; w += 2 * distance) {
        numbers[w] += numbers[w + distance];
      }
    }
    return numbers[0];
  }

  RingPlace addends_place_;
};

}  // namespace jrt_lm
