// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <jrt/distributed/thread_communicator.hpp>
#include <jrt/execution/cpu.hpp>
#include <jrt/numeric.hpp>
#include <jrt/policy/rotary.hpp>
#include <jrt/thread_pool.hpp>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "jrt_lm/device_array.hpp"
#include "jrt_lm/draft.hpp"
#include "jrt_lm/eigen_product.hpp"
#include "jrt_lm/language_model.hpp"
#include "jrt_lm/large_pages.hpp"
#include "jrt_lm/model_weights.hpp"
#include "jrt_lm/narrow_product.hpp"
#include "jrt_lm/ranks.hpp"
#include "jrt_lm/require.hpp"

namespace jrt_lm {

/// The CPU: host memory, Eigen's matrix products divided over threads, and the small functions between mixers and products.
/// Calls are over when they return.
class CpuDevice {
 public:
  using Execution = jrt::Cpu<jrt::ThreadPool>;
  static constexpr bool replays_prompts = false;
  using Graph = std::function<void()>;

  explicit CpuDevice(const ModelOptions& options)
      : threads_(options.threads), execution_(threads_), narrow_product_(threads_) {}

  template <class T>
  using Array = DeviceArray<CpuDevice, T>;

  void* allocate(std::size_t bytes) {
    void* const memory = ::operator new(bytes, alignment);
    const auto total = static_cast<std::int64_t>(bytes);
    if (total >= large_bytes) {
      ask_for_large_pages(memory, bytes);
    }
    // By all threads: where memory lies near processors, it is spread over that of all.
    threads_.run((total + large_bytes - 1) / large_bytes, [&](std::int64_t task, int /*worker*/) {
      const std::int64_t first = task * large_bytes;
      std::memset(static_cast<std::byte*>(memory) + first, 0,
                  static_cast<std::size_t>(std::min(large_bytes, total - first)));
    });
    allocated_bytes_ += static_cast<std::int64_t>(bytes);
    return memory;
  }
  void release(void* memory, std::size_t bytes) {
    ::operator delete(memory, alignment);
    allocated_bytes_ -= static_cast<std::int64_t>(bytes);
  }
  static void clear(void* memory, std::size_t bytes) { std::memset(memory, 0, bytes); }
  static void upload(void* to, const void* from, std::size_t bytes) { copy(to, from, bytes); }
  static void download(void* to, const void* from, std::size_t bytes) { copy(to, from, bytes); }

  [[nodiscard]] const Execution& execution() const { return execution_; }
  [[nodiscard]] std::int64_t allocated_bytes() const { return allocated_bytes_; }
  [[nodiscard]] std::string name() const { return "CPU, " + std::to_string(threads_.concurrency()) + " threads"; }
  void synchronize() const {}

  /// The shortest of some times in which all threads together read so much memory once and add its numbers up; from half a
  /// gigabyte on that of half a gigabyte, so many times. 0 for what a cache holds.
  [[nodiscard]] double seconds_to_read(std::int64_t bytes) {
    constexpr std::int64_t together = std::int64_t{1} << 17;
    const std::int64_t tasks = std::min<std::int64_t>(bytes, std::int64_t{1} << 29) / together;
    if (tasks < 64) {
      return 0;
    }
    const Array<std::uint64_t> memory(*this, tasks * together / 8);
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(tasks));  // or the compiler would leave the reading out
    double best = std::numeric_limits<double>::infinity();
    for (int run = 0; run < 8; ++run) {
      const auto start = std::chrono::steady_clock::now();
      threads_.run(tasks, [&](std::int64_t task, int /*worker*/) {
        const std::uint64_t* const first = memory.data() + task * together / 8;
        sums[static_cast<std::size_t>(task)] += std::accumulate(first, first + together / 8, std::uint64_t{0});
      });
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    const double times = static_cast<double>(bytes) / static_cast<double>(tasks * together);
    return std::accumulate(sums.begin(), sums.end(), std::uint64_t{0}) == 0 ? best * times : 0;
  }

  /// Ranks are threads, each with a model on its own pool.
  static void use() {}
  static std::unique_ptr<RankGroup> make_group(int ranks) {
    auto group = std::make_unique<ThreadRanks>();
    require(jrt::ThreadGroup::make(ranks, std::chrono::hours(1), group->threads));
    return group;
  }
  static std::unique_ptr<RankLink<Execution>> link(RankGroup& group, int rank) {
    return std::make_unique<LinkOf<Execution, jrt::ThreadCommunicator>>(*static_cast<ThreadRanks&>(group).threads, rank);
  }
  static void await(RankLink<Execution>& /*link*/) {}
  static Graph capture(Graph function) { return function; }

  /// Transfers are over when they return, here: there is nothing to wait for.
  template <class T>
  using HostArray = std::vector<T>;
  struct Event {};
  static Event make_event() { return {}; }
  static void record(const Event& /*event*/) {}
  static void await(const Event& /*event*/) {}
  template <class T>
  static void send(const T* from, T* to, std::int64_t count) {
    std::copy_n(from, count, to);
  }
  template <class T>
  static void fetch(const T* from, T* to, std::int64_t count) {
    std::copy_n(from, count, to);
  }
  /// `function(i, execution)` for calls that do not need one another.
  static constexpr bool runs_side_by_side = false;
  template <class Function>
  void side_by_side(std::int64_t count, const Function& function) const {
    for (std::int64_t i = 0; i < count; ++i) {
      function(i, execution_);
    }
  }
  static void launch(const Graph& graph) { graph(); }

  /// Whether products that add to the residual stream can prepare it for the next norm.
  static constexpr bool prepares_norms = false;

  /// y = x Wᵀ + b for `rows` rows that are `x_columns` and `y_columns` apart.
  template <class E, class Out>
  void multiply(const Projection<CpuDevice, E, Out>& by, const E* x, std::int64_t x_columns, std::int64_t rows, Out* y,
                std::int64_t y_columns) {
    product(by, x, x_columns, rows, y, y_columns, false);
  }
  /// y += x Wᵀ + b
  template <class E, class Out>
  void multiply_add(const Projection<CpuDevice, E, Out>& by, const E* x, std::int64_t x_columns, std::int64_t rows, Out* y,
                    std::int64_t y_columns) {
    product(by, x, x_columns, rows, y, y_columns, true);
  }

  /// out_t = table row of token t
  template <class E, class Sum>
  void embed(const std::int32_t* tokens, std::int64_t rows, const E* table, std::int64_t width, Sum* out) {
    each_row(rows, [=](std::int64_t t) { convert_numbers(table + tokens[t] * width, width, out + t * width); });
  }

  /// out_t = norm(x_r), r = list[t], or t without a list
  template <class E, class Sum>
  void rms_norm(const Norm<Sum>& norm, const Sum* x, const std::int32_t* list, std::int64_t rows, std::int64_t width,
                E* out) {
    each_row(rows, [=](std::int64_t t) {
      const Sum* const row = x + (list == nullptr ? t : list[t]) * width;
      const Sum mean = Row<const Sum>(row, width).squaredNorm() / static_cast<Sum>(width);
      const Sum factor = 1 / std::sqrt(mean + static_cast<Sum>(norm.epsilon));
      E* const to = out + t * width;
      for (std::int64_t i = 0; i < width; ++i) {
        to[i] = jrt::convert<E>(row[i] * norm.weight[i] * factor);
      }
    });
  }

  /// y = norm(x) Wᵀ + b. `normed` is scratch with room for x.
  template <class E, class Sum, class Out>
  void multiply_normed(const Projection<CpuDevice, E, Out>& by, const Norm<Sum>& norm, const Sum* x, std::int64_t rows,
                       E* normed, Out* y, std::int64_t y_columns) {
    rms_norm(norm, x, nullptr, rows, by.in, normed);
    multiply(by, normed, by.in, rows, y, y_columns);
  }

  /// y = silu(gate) value, where [value, gate] = norm(x) Wᵀ + b. `y` has room for both. Returns how far its rows are apart.
  template <class E, class Sum>
  std::int64_t multiply_normed_gated(const Projection<CpuDevice, E, E>& by, const Norm<Sum>& norm, const Sum* x,
                                     std::int64_t rows, E* normed, E* y) {
    multiply_normed(by, norm, x, rows, normed, y, by.out);
    swiglu(y, rows, by.out / 2);
    return by.out;
  }

  /// y = norm(x) Wᵀ + b, of whose first `heads` heads each is turned by its row's position.
  template <class E, int d, class Sum>
  void multiply_normed_rotated(const Projection<CpuDevice, E, E>& by, const Norm<Sum>& norm, const Sum* x,
                               std::int64_t rows, E* normed, E* y, const jrt::RotaryHalves<d>& rotary,
                               const std::int32_t* positions, std::int64_t heads) {
    multiply_normed(by, norm, x, rows, normed, y, by.out);
    rotate(rotary, positions, rows, y, by.out, heads);
  }

  /// Turns `heads` heads of each row by the row's position.
  template <class E, int d>
  void rotate(const jrt::RotaryHalves<d>& rotary, const std::int32_t* positions, std::int64_t rows, E* x,
              std::int64_t columns, std::int64_t heads) {
    using Sum = jrt::ComputeType<E>;
    constexpr int half = d / 2;
    each_row(rows, [=, &rotary](std::int64_t t) {
      for (int i = 0; i < half; ++i) {
        const auto turn = rotary.template rotation<Sum>(positions[t], i);
        for (std::int64_t h = 0; h < heads; ++h) {
          E* const head = x + t * columns + h * d;
          const Sum low = jrt::convert<Sum>(head[i]);
          const Sum high = jrt::convert<Sum>(head[i + half]);
          head[i] = jrt::convert<E>(low * turn.cosine - high * turn.sine);
          head[i + half] = jrt::convert<E>(low * turn.sine + high * turn.cosine);
        }
      }
    });
  }

  /// The first `count` numbers of `rows` rows become 0.
  template <class E>
  static void zero_columns(E* x, std::int64_t columns, std::int64_t count, std::int64_t rows) {
    for (std::int64_t t = 0; t < rows; ++t) {
      std::fill_n(x + t * columns, count, E{});
    }
  }

  /// Place of the largest of the first `count` numbers of each row, the first of several; no_token for a row with a number
  /// that is not finite.
  template <class Sum>
  void argmax(const Sum* x, std::int64_t rows, std::int64_t columns, std::int64_t count, std::int32_t* out) {
    each_row(rows, [=](std::int64_t t) {
      const Sum* const row = x + t * columns;
      bool finite = true;
      for (std::int64_t i = 0; i < count; ++i) {
        finite &= std::abs(row[i]) <= std::numeric_limits<Sum>::max();  // vector instructions, unlike std::isfinite
      }
      out[t] = finite ? static_cast<std::int32_t>(std::max_element(row, row + count) - row) : no_token;
    });
  }

  /// The likeliest tokens become the next step's, one position on. Where there is no_token, the history says so and steps
  /// go on with some token of the vocabulary: who asked for them looks at the history afterwards.
  static void advance(const std::int32_t* likeliest, std::int32_t* tokens, std::int32_t* positions, std::int32_t* history,
                      std::int64_t rows) {
    for (std::int64_t t = 0; t < rows; ++t) {
      history[t] = likeliest[t];
      tokens[t] = std::max(likeliest[t], 0);
      ++positions[t];
    }
  }

  /// Of each sequence: how many of its tokens count (`accepted_tokens`).
  static void accept(const std::int32_t* tokens, const std::int32_t* likeliest, std::int64_t sequences, std::int64_t count,
                     std::int32_t* accepted) {
    for (std::int64_t b = 0; b < sequences; ++b) {
      const auto row = [&](const std::int32_t* of) { return std::span(of + b * count, static_cast<std::size_t>(count)); };
      accepted[b] = static_cast<std::int32_t>(accepted_tokens(row(tokens), row(likeliest)));
    }
  }

 private:
  static constexpr std::align_val_t alignment{64};
  static constexpr std::int64_t large_bytes = 1 << 21;  // a large page

  static void copy(void* to, const void* from, std::size_t bytes) {
    if (bytes > 0) {  // there may be no memory otherwise
      std::memcpy(to, from, bytes);
    }
  }

  struct ThreadRanks final : RankGroup {
    std::unique_ptr<jrt::ThreadGroup> threads;

   private:
    void end_exchanges() override { threads->abort(); }
  };

  template <class T>
  using Row =
      Eigen::Map<std::conditional_t<std::is_const_v<T>, const Eigen::Matrix<std::remove_const_t<T>, 1, Eigen::Dynamic>,
                                    Eigen::Matrix<T, 1, Eigen::Dynamic>>>;
  /// `function(t)` for every row, a few at a time.
  template <class Function>
  void each_row(std::int64_t rows, const Function& function) {
    const std::int64_t together = rows < 64 ? 4 : 16;  // the rows of a step's batch are shared too
    threads_.run((rows + together - 1) / together, [&](std::int64_t task, int /*worker*/) {
      for (std::int64_t t = task * together; t < std::min(rows, (task + 1) * together); ++t) {
        function(t);
      }
    });
  }

  /// Of rows [y, gate] of twice `hidden` numbers: y ← silu(gate) y
  template <class E>
  void swiglu(E* x, std::int64_t rows, std::int64_t hidden) {
    using Sum = jrt::ComputeType<E>;
    constexpr std::int64_t together = 64;  // in the type of sums, for which Eigen has a vectorised exponential
    each_row(rows, [=](std::int64_t t) {
      for (std::int64_t i = 0; i < hidden; i += together) {
        const std::int64_t count = std::min(together, hidden - i);
        E* const values = x + t * 2 * hidden + i;
        Eigen::Array<Sum, together, 1> y = Eigen::Array<Sum, together, 1>::Zero();
        Eigen::Array<Sum, together, 1> gate = y;
        convert_numbers(values, count, y.data());
        convert_numbers(values + hidden, count, gate.data());
        y *= gate / (1 + (-gate).exp());
        convert_numbers(y.data(), count, values);
      }
    });
  }

  template <class E, class Out>
  void product(const Projection<CpuDevice, E, Out>& by, const E* x, std::int64_t x_columns, std::int64_t rows, Out* y,
               std::int64_t y_columns, bool adds) {
    if constexpr (sizeof(E) == 2) {
      static_assert(std::is_same_v<Out, E> || std::is_same_v<Out, float>,
                    "CpuDevice: products of 16-bit numbers are stored as their inputs are, or in float.");
      narrow_product_.multiply(by, x, x_columns, rows, y, y_columns, adds);
    } else {
      static_assert(std::is_same_v<E, Out>, "CpuDevice: products are formed in float or double, as their inputs are.");
      wide_product(by, x, x_columns, rows, y, y_columns, adds);
    }
  }

  /// Divided by rows where there are many, otherwise by outputs, so that a step of one token is shared too.
  template <class E>
  void wide_product(const Projection<CpuDevice, E, E>& by, const E* x, std::int64_t x_columns, std::int64_t rows, E* y,
                    std::int64_t y_columns, bool adds) {
    const std::int64_t workers = threads_.concurrency();
    const bool by_rows = rows >= 32 * workers;
    const std::int64_t extent = by_rows ? rows : by.out;
    const std::int64_t share = (extent + workers - 1) / workers;
    const bool is_small = rows * by.in * by.out < (1 << 18);  // less than it takes to wake a thread
    const std::int64_t each = is_small ? extent : by_rows ? std::min<std::int64_t>(share, 256) : (share + 63) / 64 * 64;
    threads_.run((extent + each - 1) / each, [&](std::int64_t task, int /*worker*/) {
      const std::int64_t first = task * each;
      const std::int64_t count = std::min(each, extent - first);
      const std::int64_t row = by_rows ? first : 0;
      const std::int64_t column = by_rows ? 0 : first;
      const std::int64_t block_rows = by_rows ? count : rows;
      const std::int64_t block_columns = by_rows ? by.out : count;
      E* const out = y + row * y_columns + column;
      for (std::int64_t t = 0; !adds && t < block_rows; ++t) {
        std::fill_n(out + t * y_columns, block_columns, E(0));
      }
      add_product(x + row * x_columns, x_columns, block_rows, by.in, by.weight.data() + column * by.in, block_columns, out,
                  y_columns);
      for (std::int64_t t = 0; by.bias.size() != 0 && t < block_rows; ++t) {
        Row<E>(out + t * y_columns, block_columns) += Row<const E>(by.bias.data() + column, block_columns);
      }
    });
  }

  jrt::ThreadPool threads_;
  Execution execution_;
  NarrowProduct narrow_product_;
  std::int64_t allocated_bytes_ = 0;
};

}  // namespace jrt_lm
