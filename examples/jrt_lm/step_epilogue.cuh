// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <jrt/cuda/device_steps.cuh>
#include <jrt/policy/rotary.hpp>

#include "jrt_lm/language_model.hpp"
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
template <class Convolution, class Linear, class Window>
class StepEpilogues : protected StepWorker<Convolution, Linear, Window> {
 protected:
  using Worker = StepWorker<Convolution, Linear, Window>;
  using E = typename Worker::E;
  using Worker::Worker;

  /// What one thread adds to a product, of one row and one output: loaded before the product is there.
  template <StageKind kind>
  struct Epilogue {
    static constexpr int parts = tile_parts(kind);
    bool active = false;
    bool rotates = false;
    int row = 0;
    int output = 0;  // of part 0, in W
    float bias[parts] = {};
    float residual = 0;
    jrt::Rotation<float> turn{};
    jrt::DeviceChannel<Convolution> channel;
  };

  /// What does not depend on this step's other stages.
  template <StageKind kind>
  __device__ void prepare(const Stage& stage, int first, Epilogue<kind>& own) const {
    constexpr int parts = tile_parts(kind);
    const int unit = this->thread() / (step_rows * tile_outputs);
    const int within = this->thread() % tile_outputs;
    const int tile = first + unit * this->blocks_;
    own.row = this->thread() / tile_outputs % step_rows;
    own.active = unit < step_at_once / parts && own.row < this->in_.rows && tile < stage.tiles;
    if (!own.active) {
      return;
    }
    own.output = tile_row(stage, tile, 0) + within;
    if (stage.bias != nullptr) {
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        const int number = tile_row(stage, tile, part) + within;
        if constexpr (kind == StageKind::adds || kind == StageKind::logits) {
          own.bias[part] = static_cast<const float*>(stage.bias)[number];
        } else {
          own.bias[part] = jrt::convert<float>(static_cast<const E*>(stage.bias)[number]);
        }
      }
    }
    if constexpr (kind == StageKind::rotates) {
      own.rotates = own.output < (this->in_.heads + this->in_.window_kv_heads) * Window::head_dim;
      if (own.rotates) {
        own.turn =
            this->parameters_.rotary.template rotation<float>(this->in_.positions[own.row], own.output % Window::head_dim);
      }
    } else if constexpr (kind == StageKind::convolves) {
      own.channel.load(this->convolution(stage), own.row, own.output, this->in_.channels);
    }
  }

  template <StageKind kind>
  __device__ void load_residual(const Stage& stage, Epilogue<kind>& own) const {
    if constexpr (kind == StageKind::adds) {
      if (own.active) {
        own.residual = __ldcg(static_cast<const float*>(stage.y) + own.row * stage.y_columns + own.output);
      }
    }
  }

  template <StageKind kind>
  __device__ void finish(const Stage& stage, Epilogue<kind>& own) {
    constexpr int parts = tile_parts(kind);
    if (!own.active) {
      return;
    }
    const int unit = this->thread() / (step_rows * tile_outputs);
    const int within = this->thread() % tile_outputs;
    float factor = 1;
    if constexpr (kind != StageKind::adds) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < step_warps; ++w) {
        all += this->sums_.squares[w][own.row];
      }
      factor = 1 / sqrtf(all / static_cast<float>(stage.in) + this->in_.norm_epsilon);
    }
    float total[parts] = {};
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int w = 0; w < step_warps; ++w) {
        total[part] += this->sums_.partial[unit * parts + part][w][own.row][within];
      }
      total[part] = total[part] * factor + own.bias[part];
    }
    const int at = own.row * stage.y_columns + own.output;
    if constexpr (kind == StageKind::adds) {
      static_cast<float*>(stage.y)[at] = own.residual + total[0];
    } else if constexpr (kind == StageKind::logits) {
      static_cast<float*>(stage.y)[at] = total[0];
      if (own.output < this->in_.vocabulary) {
        const StepCandidate candidate =
            isfinite(total[0]) ? StepCandidate{total[0], own.output} : StepCandidate{INFINITY, no_token};
        this->best_ = likelier(this->best_, candidate);
      }
    } else {
      E* const y = static_cast<E*>(stage.y) + at;
      if constexpr (kind == StageKind::stores) {
        *y = jrt::convert<E>(total[0]);
      } else if constexpr (kind == StageKind::gates) {
        *y = jrt::convert<E>(total[0] * total[1] / (1 + expf(-total[1])));
      } else if constexpr (kind == StageKind::convolves) {
        *y = own.channel.next(jrt::convert<E>(total[0]), jrt::convert<E>(total[1]));
      } else {
        E low = jrt::convert<E>(total[0]);
        E high = jrt::convert<E>(total[1]);
        if (own.rotates) {
          const auto a = jrt::convert<float>(low);
          const auto b = jrt::convert<float>(high);
          low = jrt::convert<E>(a * own.turn.cosine - b * own.turn.sine);
          high = jrt::convert<E>(a * own.turn.sine + b * own.turn.cosine);
        }
        y[0] = low;
        y[Window::head_dim / 2] = high;
      }
    }
  }

  StepCandidate best_{};  ///< of the logits that this thread has made
};

}  // namespace jrt_lm
