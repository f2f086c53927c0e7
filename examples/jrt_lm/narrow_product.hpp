// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <jrt/numeric.hpp>
#include <jrt/thread_pool.hpp>
#include <type_traits>
#include <vector>

#include "jrt_lm/eigen_product.hpp"
#include "jrt_lm/model_weights.hpp"
#include "jrt_lm/skinny_product.hpp"

namespace jrt_lm {

template <class To, class From>
void convert_numbers(const From* from, std::int64_t count, To* to) {
  for (std::int64_t i = 0; i < count; ++i) {
    to[i] = jrt::convert<To>(from[i]);
  }
}

/// Matrix products of 16-bit numbers on the CPU, with sums in float. Weights stay as they are in memory. For many rows each
/// task widens a panel of them that fits into the cache, and multiplies by it in float; for the few rows of a decode step
/// they are widened in registers (skinny_product.hpp; bfloat16 alone). How a product is divided depends on its sizes alone,
/// so that results do not depend on the number of threads.
class NarrowProduct {
 public:
  explicit NarrowProduct(jrt::ThreadPool& threads)
      : threads_(&threads), scratch_(static_cast<std::size_t>(threads.concurrency())) {}

  /// y = x Wᵀ + b, or y += x Wᵀ + b, for `rows` rows that are `x_columns` and `y_columns` apart.
  template <class Device, class E, class Out>
  void multiply(const Projection<Device, E, Out>& by, const E* x, std::int64_t x_columns, std::int64_t rows, Out* y,
                std::int64_t y_columns, bool adds) {
    if constexpr (std::is_same_v<E, jrt::BFloat16>) {
      if (rows <= skinny_rows) {
        multiply_few(by, x, x_columns, rows, y, y_columns, adds);
        return;
      }
    }
    const std::int64_t panel = std::clamp<std::int64_t>(panel_weights / by.in / 16 * 16, 16, 128);
    const std::int64_t panels = (by.out + panel - 1) / panel;
    reserve(std::min(rows, max_rows) * by.in, panel * by.in, std::min(rows, block_rows) * panel);
    for (std::int64_t row = 0; row < rows; row += max_rows) {
      const std::int64_t count = std::min(max_rows, rows - row);
      const std::int64_t blocks = (count + block_rows - 1) / block_rows;
      const E* const from = x + row * x_columns;
      Out* const to = y + row * y_columns;
      const bool is_small = count * by.in * by.out < (1 << 18);  // less than it takes to wake a thread
      run(is_small, (count + 15) / 16, [&](std::int64_t task, int /*worker*/) {
        for (std::int64_t t = task * 16; t < std::min(count, (task + 1) * 16); ++t) {
          convert_numbers(from + t * x_columns, by.in, input_.data() + t * by.in);
        }
      });
      run(is_small, panels * blocks, [&](std::int64_t task, int worker) {
        const std::int64_t first = task / panels * block_rows;
        multiply_panel(by, task % panels * panel, panel, input_.data() + first * by.in, std::min(block_rows, count - first),
                       to + first * y_columns, y_columns, adds, scratch_[static_cast<std::size_t>(worker)]);
      });
    }
  }

 private:
  static constexpr std::int64_t panel_weights = 1 << 16;  // 256 KiB of float
  static constexpr std::int64_t few_weights = 1 << 15;    // 64 KiB: 16 threads share the smallest matrices of 360M
  static constexpr std::int64_t max_few_outputs = 64;
  static constexpr std::int64_t block_rows = 256;  // enough that widening the weights costs little beside the product
  static constexpr std::int64_t max_rows = 2048;   // of x in float at a time; long prompts would take gigabytes

  struct Scratch {
    std::vector<float> weight{};
    std::vector<float> sums{};
  };

  static void grow(std::vector<float>& numbers, std::int64_t count) {
    numbers.resize(std::max(numbers.size(), static_cast<std::size_t>(count)));
  }
  void reserve(std::int64_t input, std::int64_t weights, std::int64_t sums) {
    grow(input_, input);
    for (Scratch& scratch : scratch_) {
      grow(scratch.weight, weights);
      grow(scratch.sums, sums);
    }
  }

  template <class Function>
  void run(bool is_small, std::int64_t tasks, const Function& function) {
    if (!is_small) {
      threads_->run(tasks, function);
      return;
    }
    for (std::int64_t task = 0; task < tasks; ++task) {
      function(task, 0);
    }
  }

  template <class Device, class E, class Out>
  void multiply_few(const Projection<Device, E, Out>& by, const E* x, std::int64_t x_columns, std::int64_t rows, Out* y,
                    std::int64_t y_columns, bool adds) {
    const std::int64_t panel = std::clamp<std::int64_t>(few_weights / by.in / 4 * 4, 4, max_few_outputs);
    const bool is_small = rows * by.in * by.out < (1 << 18);
    run(is_small, (by.out + panel - 1) / panel, [&](std::int64_t task, int /*worker*/) {
      const std::int64_t first = task * panel;
      const std::int64_t columns = std::min(panel, by.out - first);
      float sums[skinny_rows * max_few_outputs];
      multiply_skinny(x, x_columns, rows, by.in, by.weight.data() + first * by.in, columns, sums, columns);
      write_panel(by, first, columns, sums, rows, y, y_columns, adds);
    });
  }

  /// Outputs from `first` on, at most `panel`.
  template <class Device, class E, class Out>
  static void multiply_panel(const Projection<Device, E, Out>& by, std::int64_t first, std::int64_t panel, const float* x,
                             std::int64_t rows, Out* y, std::int64_t y_columns, bool adds, Scratch& scratch) {
    const std::int64_t columns = std::min(panel, by.out - first);
    convert_numbers(by.weight.data() + first * by.in, columns * by.in, scratch.weight.data());
    std::fill_n(scratch.sums.data(), rows * columns, 0.0F);
    add_product(x, by.in, rows, by.in, scratch.weight.data(), columns, scratch.sums.data(), columns);
    write_panel(by, first, columns, scratch.sums.data(), rows, y, y_columns, adds);
  }

  /// Outputs [first, first + columns) of `rows` rows, from their sums.
  template <class Device, class E, class Out>
  static void write_panel(const Projection<Device, E, Out>& by, std::int64_t first, std::int64_t columns,
                          const float* panel_sums, std::int64_t rows, Out* y, std::int64_t y_columns, bool adds) {
    const Out* const bias = by.bias.size() == 0 ? nullptr : by.bias.data() + first;
    for (std::int64_t t = 0; t < rows; ++t) {
      const float* const sums = panel_sums + t * columns;
      Out* const to = y + t * y_columns + first;
      for (std::int64_t i = 0; i < columns; ++i) {
        const float sum = bias == nullptr ? sums[i] : sums[i] + jrt::convert<float>(bias[i]);
        to[i] = jrt::convert<Out>(adds ? jrt::convert<float>(to[i]) + sum : sum);
      }
    }
  }

  jrt::ThreadPool* threads_;
  std::vector<float> input_;
  std::vector<Scratch> scratch_;
};

}  // namespace jrt_lm
