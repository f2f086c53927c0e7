// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <jrt/cuda/device_steps.cuh>

#include "jrt_lm/step_linear.cuh"
#include "jrt_lm/step_product.cuh"

namespace jrt_lm {

/// The stages of mixers that are no epilogue: linear attention, and windows, which the library's step does. Its outputs go
/// to shared memory first, since the library knows nothing of an exchange.
template <class Shape>
class StepMixers : protected StepProducts<Shape> {
 protected:
  using Products = StepProducts<Shape>;
  using Block = typename Products::Block;
  using E = typename Products::E;
  using Products::Products;

  __device__ void attend_linearly(const Stage& stage) {
    using Step = StepLinear<Shape>;
    this->sync();  // what follows has the same shared memory as sums
    const auto states = this->template states<typename Shape::Linear>(stage, this->in_.heads);
    for (int item = this->block_; item < this->in_.rows * this->in_.heads; item += this->blocks_) {
      const int row = item / this->in_.heads;
      const int head = item % this->in_.heads;
      constexpr int d = Shape::Linear::FeatureMap::input_dim;
      constexpr int values = Shape::Linear::value_dim;
      Step step(*reinterpret_cast<typename Step::Shared*>(this->work_), this->thread());
      auto* const state = states.has_slot(row) ? states.pool.head(states.slot(row), head) : nullptr;
      step.load(state);
      this->clock_.note_waiting(this->stage_, StepMoment::waited_before);
      this->clock_.note(this->stage_, StepMoment::awaits);
      const E* const x = this->template exchanged<const E>(stage.x) + row * stage.x_columns;
      step.await(x + (this->in_.heads + head) * d, x + head * d, x + 2 * this->in_.heads * d + head * values);
      this->clock_.note(this->stage_, StepMoment::passes);
      step.run(
          state, [] { Products::sync(); },
          [&](int column, float number) {
            store_exchanged(this->template exchanged<E>(stage.y) + row * stage.y_columns + head * values + column,
                            jrt::convert<E>(number));
          });
    }
    this->sync();
  }

  __device__ void attend_in_window(const Stage& stage) {
    using Step = typename Block::WindowStep;
    using Part = typename Block::WindowPart;
    constexpr int d = Block::Window::head_dim;
    this->sync();
    const Part part{0, step_barrier + 1};
    E* const output = outputs();
    const Step step = this->window_step(stage, output);
    typename Step::template Item<Part> steps(step, this->work_, part);
    const int kv_heads = this->in_.window_kv_heads;
    const int group = this->in_.heads / kv_heads;
    for (auto item = static_cast<unsigned>(this->block_); item < step.items();
         item += static_cast<unsigned>(this->blocks_)) {
      steps.begin(item);
      const auto row = static_cast<int>(item) / kv_heads;
      const auto head = static_cast<int>(item) % kv_heads;
      const E* const x = this->template exchanged<const E>(stage.x) + row * stage.x_columns;
      await_inputs(x + head * group * d, group * d, x + (this->in_.heads + head) * d, d,
                   x + (this->in_.heads + kv_heads + head) * d, d, part);
      steps.end();
      store_outputs(stage, output, row, head * group * d, group * d, part);
    }
    this->sync();
  }

 private:
  [[nodiscard]] __device__ E* outputs() const {
    return reinterpret_cast<E*>(this->shared_ + this->parameters_.outputs_offset);
  }
  template <class Part>
  __device__ void await_inputs(const E* query, int queries, const E* key, int keys, const E* value, int values,
                               const Part& part) {
    this->clock_.note_waiting(this->stage_, StepMoment::waited_before);
    this->clock_.note(this->stage_, StepMoment::awaits);
    // Each of the three by other warps, so that they are asked for together.
    static_assert(Part::threads >= 96);
    const int warp = part.rank() / 32;
    if (warp < 3) {
      this->await_numbers(warp == 0 ? query : warp == 1 ? key : value, warp == 0 ? queries : warp == 1 ? keys : values);
    }
    part.sync();
    this->clock_.note(this->stage_, StepMoment::passes);
  }
  /// The library has ended with a barrier.
  template <class Part>
  __device__ void store_outputs(const Stage& stage, const E* from, int row, int begin, int count, const Part& part) const {
    for (int c = begin + part.rank(); c < begin + count; c += Part::threads) {
      store_exchanged(this->template exchanged<E>(stage.y) + row * stage.y_columns + c, from[c]);
    }
  }
};

}  // namespace jrt_lm
