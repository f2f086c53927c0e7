// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <jrt/cuda/device_steps.cuh>

#include "jrt_lm/step_linear.cuh"
#include "jrt_lm/step_product.cuh"
#include "jrt_lm/step_window.cuh"

namespace jrt_lm {

/// The stages of mixers that are no epilogue: linear attention, and windows. The library does a window's step of one token:
/// its outputs go to shared memory first, since it knows nothing of an exchange.
template <class Shape>
class StepMixers : protected StepProducts<Shape> {
 protected:
  using Products = StepProducts<Shape>;
  using Block = typename Products::Block;
  using E = typename Products::E;
  using Products::Products;

  __device__ void attend_linearly(const Stage& stage) {
    using Step = StepLinear<Shape>;
    constexpr int d = Shape::Linear::FeatureMap::input_dim;
    constexpr int values = Shape::Linear::value_dim;
    this->sync();  // what follows has the same shared memory as sums
    const int heads = this->in_.heads;
    const auto states = this->template states<typename Shape::Linear>(stage, heads);
    this->each_head(heads, [&](int row, int head) {
      Step step(*reinterpret_cast<typename Step::Shared*>(this->work_), this->thread());
      const StepTokens<E> tokens = this->tokens_of(stage, row, head, heads, d + values);
      auto* const state = states.has_slot(row) ? states.pool.head(states.slot(row), head) : nullptr;
      step.load(state);
      this->note_waiting();
      step.await(tokens, (heads + head) * d, head * d, 2 * heads * d + head * values);
      if constexpr (Shape::several) {
        step.await_encoder(tokens, head * d, heads * d + head * values);
      }
      this->clock_.note(this->stage_, StepMoment::passes);
      const auto sync = [] { Products::sync(); };
      if constexpr (!Shape::several) {
        step.run(state, sync, [&](int column, float number) {
          store_exchanged(tokens.y + head * values + column, jrt::convert<E>(number));
        });
      } else {
        step.run_several(tokens.count, tokens.encoder_count, sync, [&](int t, int column, bool active, float number) {
          this->exchange_tile(stage.y, (row + t) * stage.y_columns + head * values + column, active,
                              jrt::convert<E>(number));
        });
        if (stage.staged == nullptr) {
          step.keep_several(state, tokens.count, tokens.encoder_count, sync);
        }
        sync();  // the next head has the same shared memory
      }
    });
    this->sync();
  }

  __device__ void attend_in_window(const Stage& stage) {
    if constexpr (Shape::several) {
      attend_to_several(stage);
    } else {
      attend_to_one(stage);
    }
  }

 private:
  __device__ void attend_to_several(const Stage& stage) {
    using Step = StepWindow<Shape>;
    constexpr int d = Shape::Window::head_dim;
    constexpr int values = Shape::Window::value_dim;
    this->sync();
    const int heads = this->in_.heads;
    const int kv_heads = this->in_.window_kv_heads;
    const int group = heads / kv_heads;
    const auto states = this->template states<typename Shape::Window>(stage, kv_heads);
    const auto sync = [] { Products::sync(); };
    this->each_head(kv_heads, [&](int row, int head) {
      Step step(*reinterpret_cast<typename Step::Shared*>(this->work_), this->thread());
      const StepTokens<E> tokens = this->tokens_of(stage, row, head, kv_heads, d + values);
      E* const cache = states.has_slot(row) ? states.pool.head(states.slot(row), head) : nullptr;
      step.load(cache);
      this->note_waiting();
      step.await(tokens, (heads + head) * d, (heads + kv_heads) * d + head * values, head * group * d);
      this->clock_.note(this->stage_, StepMoment::passes);
      for (int query = head * group; query < (head + 1) * group; ++query) {
        if (query > head * group) {
          step.await_query(tokens, query * d);
        }
        step.run(tokens, query * values, static_cast<float>(this->in_.window_scale), sync);
        sync();  // what follows has the same shared memory
      }
      step.keep(tokens, cache);
    });
  }

  /// Of one token of each sequence, by the library.
  __device__ void attend_to_one(const Stage& stage) {
    using Step = typename Block::WindowStep;
    using Part = typename Block::WindowPart;
    constexpr int d = Block::Window::head_dim;
    this->sync();
    const Part part{0, step_barrier + 1};
    E* const output = outputs();
    const Step step = this->window_step(stage, output);
    const int kv_heads = this->in_.window_kv_heads;
    const bool borrows = this->parameters_.window_slots > 0 && this->has_head(kv_heads);
    typename Step::template Item<Part> steps(step, borrows ? borrow() : this->work_, part);
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
    if (borrows) {
      give_back();
    }
    this->sync();
  }

  /// Slots of the ring that the copying warp has passed on.
  [[nodiscard]] __device__ std::byte* borrow() {
    using namespace jrt::detail::cuda;
    for (int left = this->slots_passed_by(); left > 0; --left) {
      barrier_wait(this->full(this->place_.slot), this->place_.round);
      barrier_arrive(this->empty(this->place_.slot));
      this->place_.advance(this->parameters_.ring_slots);
    }
    for (int i = 0; i < this->parameters_.window_slots; ++i) {
      barrier_wait(this->full(this->place_.slot + i), this->place_.round);
    }
    return this->shared_ + this->parameters_.ring_offset + this->place_.slot * slot_bytes;
  }
  /// The library has ended with a barrier: no warp reads them any more.
  __device__ void give_back() {
    using namespace jrt::detail::cuda;
    async_proxy_fence();  // weights are copied there next
    for (int left = this->parameters_.window_slots; left > 0; --left) {
      barrier_arrive(this->empty(this->place_.slot));
      this->place_.advance(this->parameters_.ring_slots);
    }
  }
  __device__ void note_waiting() {
    this->clock_.note_waiting(this->stage_, StepMoment::waited_before);
    this->clock_.note(this->stage_, StepMoment::awaits);
  }
  [[nodiscard]] __device__ E* outputs() const {
    return reinterpret_cast<E*>(this->shared_ + this->parameters_.outputs_offset);
  }
  template <class Part>
  __device__ void await_inputs(const E* query, int queries, const E* key, int keys, const E* value, int values,
                               const Part& part) {
    this->note_waiting();
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
