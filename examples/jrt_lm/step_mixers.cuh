// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <jrt/cuda/device_steps.cuh>

#include "jrt_lm/step_product.cuh"

namespace jrt_lm {

/// The stages of mixers that are no epilogue: linear attention and windows, which the library's steps do.
template <class Convolution, class Linear, class Window>
class StepMixers : protected StepProducts<Convolution, Linear, Window> {
 protected:
  using Products = StepProducts<Convolution, Linear, Window>;
  using Products::Products;

  __device__ void attend_linearly(const Stage& stage) const {
    this->await_stages();
    using Part = typename Products::Block::LinearPart;
    const int number = this->thread() / Part::threads;
    if (number >= Products::Block::linear_parts) {
      return;
    }
    const Part part{number * Part::threads, step_barrier + 1 + number};
    const auto step = this->linear_step(stage);
    for (auto item = static_cast<unsigned>(number * this->blocks_ + this->block_); item < step.items();
         item += static_cast<unsigned>(Products::Block::linear_parts * this->blocks_)) {
      step.run(item, this->work_ + number * Products::Block::linear_bytes, part);
    }
  }

  __device__ void attend_in_window(const Stage& stage) const {
    using Step = typename Products::Block::WindowStep;
    using Part = typename Products::Block::WindowPart;
    const Step step = this->window_step(stage);
    typename Step::template Item<Part> steps(step, this->work_, Part{0, step_barrier + 1});
    auto item = static_cast<unsigned>(this->block_);
    if (item < step.items()) {
      steps.begin(item);
    }
    this->await_stages();
    while (item < step.items()) {
      steps.end();
      item += static_cast<unsigned>(this->blocks_);
      if (item < step.items()) {
        steps.begin(item);
      }
    }
  }
};

}  // namespace jrt_lm
