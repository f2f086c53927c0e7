// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "jrt_lm/step_linear.cuh"
#include "jrt_lm/step_product.cuh"
#include "jrt_lm/step_window.cuh"

namespace jrt_lm {

/// The stages of mixers that are no epilogue: linear attention, and windows.
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
      Step step(*reinterpret_cast<typename Step::Shared*>(this->work_), own_thread());
      const StepTokens<E> tokens = this->tokens_of(stage, row, head, heads, d + values);
      auto* const state = states.has_slot(row) ? states.pool.head(states.slot(row), head) : nullptr;
      step.load(state);
      this->note_waiting();
      step.await(tokens, (heads + head) * d, head * d, 2 * heads * d + head * values);
      step.await_encoder(tokens, head * d, heads * d + head * values);
      this->clock_.note(this->stage_, StepMoment::passes);
      const auto sync = [] { Products::sync(); };
      if (stage.staged == nullptr && tokens.count == 1 && tokens.encoder_count == 0) {
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
      Step step(*reinterpret_cast<typename Step::Shared*>(this->work_), own_thread());
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

 private:
  /// As `thread()`, of which the compiler makes all that it can before the first stage, and has no registers for it then.
  static __device__ int own_thread() {
    int thread = 0;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
  }
  __device__ void note_waiting() {
    this->clock_.note_waiting(this->stage_, StepMoment::waited_before);
    this->clock_.note(this->stage_, StepMoment::awaits);
  }
};

}  // namespace jrt_lm
