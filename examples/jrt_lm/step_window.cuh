// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/detail/plan/window_range.hpp>
#include <jrt/detail/shared/window/keys.hpp>
#include <type_traits>

#include "jrt_lm/skinny_product.cuh"
#include "jrt_lm/step_tokens.cuh"
#include "jrt_lm/step_worker.cuh"

namespace jrt_lm {

/// A window's step of up to 16 tokens of one sequence and key/value head, by all threads that multiply. A warp has the keys
/// of some tiles of 8 in its registers before the tokens are there, and all threads' copies of the cached values are on
/// their way to shared memory.
///
///     scores   tokens x keys        mma: each warp its tiles of keys            | barrier
///     weights  of a token           two of each warp, as two bfloat16 each      | barrier
///     outputs  tokens x columns     mma over cached values, each warp 8 columns; tokens' own one by one
///
/// Scores of what a token does not see are left out. A cached value that is not finite reaches all tokens of the step if
/// the first of them sees it, though later ones may not any more; tokens' own values reach those that see them.
template <class Shape>
class StepWindow {
  using Window = typename Shape::Window;
  using E = typename Shape::E;
  using Format = jrt::StateFormatOf<Window>;
  static constexpr int d = Window::head_dim;
  static constexpr int values = Window::value_dim;
  static constexpr int left = Window::left_window;
  static constexpr int ring = Format::rows;
  static constexpr int cached_keys = (ring + 15) / 16 * 16;  ///< places for them
  static constexpr int places = cached_keys + step_rows;     ///< tokens behind them
  static constexpr int key_tiles = places / 8;
  static constexpr int own_tiles = (key_tiles + step_warps - 1) / step_warps;
  static constexpr int chunks = (d + chunk_columns - 1) / chunk_columns;
  static constexpr int value_tiles = values / 8;
  static constexpr int own_value_tiles = (value_tiles + step_warps - 1) / step_warps;
  // Rows lie some banks apart, so that lanes which access several rows at once do not meet.
  static constexpr int value_stride = values + 8;
  static constexpr int score_stride = (places + 31) / 32 * 32 + 8;
  static constexpr int token_words = (d + values) / 8;  ///< of 16 bytes: key, value
  static constexpr int own_words = (step_rows * token_words + step_consumers - 1) / step_consumers;
  static constexpr int own_scores = (places + 31) / 32;

 public:
  static constexpr bool supported =
      d % 16 == 0 && values % 16 == 0 && !Window::Rotary::rotates && std::is_same_v<E, jrt::BFloat16>;

  struct Shared {
    alignas(16) E cached[places][value_stride];                 ///< values
    alignas(16) std::uint32_t scores[step_rows][score_stride];  ///< then weights
    float factors[step_rows];
  };

  __device__ StepWindow(Shared& shared, int thread) : shared_(shared), thread_(thread) {}

  /// Asks for the cache of a head. Null: the sequence is skipped.
  __device__ void load(const E* cache) {
    has_cache_ = cache != nullptr;
    if (!has_cache_) {
      return;
    }
    const std::int64_t count = jrt::detail::cached_count<Format>(cache);
    next_row_ = static_cast<int>(jrt::detail::ring_row(count, left));
    seen_ = count < left ? static_cast<int>(count) : left;
#pragma unroll
    for (int i = 0; i < own_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < chunks; ++j) {
        keys_[i][j] = {};
        const int row = key_of(i);
        if (row < cached_keys && age(row) < seen_ && column(j) < d) {
          keys_[i][j] = *reinterpret_cast<const uint4*>(cache + row * d + column(j));
        }
      }
    }
    constexpr int row_words = values / 8;
    for (int i = thread_; i < cached_keys * row_words; i += step_consumers) {
      const int row = i / row_words;
      const int c = i % row_words * 8;
      if (age(row) < seen_) {
        __pipeline_memcpy_async(&shared_.cached[row][c], cache + Format::value_offset + row * values + c, 16);
      } else {
        *reinterpret_cast<uint4*>(&shared_.cached[row][c]) = {};
      }
    }
    __pipeline_commit();
  }

  /// Waits for the tokens' keys and values and the first query head's queries, of which these are the first in a row of x.
  /// All of it is asked for before any of it is waited for.
  __device__ void await(const StepTokens<E>& tokens, int key, int value, int query) {
    if (!has_cache_) {
      return;
    }
    const auto each = [&](const auto& function) {
#pragma unroll
      for (int i = 0; i < own_words; ++i) {
        const int word = thread_ + i * step_consumers;
        const int c = word % token_words * 8;
        function(words_[i], word < tokens.count * token_words, word / token_words, c < d ? key + c : value + c - d);
      }
#pragma unroll
      for (int i = cached_keys / 8 / step_warps; i < own_tiles; ++i) {
        const int t = key_of(i) - cached_keys;
#pragma unroll
        for (int j = 0; j < chunks; ++j) {
          function(keys_[i][j], t >= 0 && t < tokens.count && column(j) < d, t, key + column(j));
        }
      }
      each_query(tokens, query, function);
    };
    ask(tokens, each);
#pragma unroll
    for (int i = 0; i < own_words; ++i) {
      const int word = thread_ + i * step_consumers;
      const int c = word % token_words * 8 - d;
      if (word < tokens.count * token_words && c >= 0) {
        *reinterpret_cast<uint4*>(&shared_.cached[cached_keys + word / token_words][c]) = words_[i];
      }
    }
  }
  /// Another query head's.
  __device__ void await_query(const StepTokens<E>& tokens, int query) {
    if (has_cache_) {
      ask(tokens, [&](const auto& function) { each_query(tokens, query, function); });
    }
  }

  /// Outputs of the query head whose queries are there; `output`: the first column of y. `sync()` is a barrier of all
  /// threads.
  template <class Sync>
  __device__ void run(const StepTokens<E>& tokens, int output, float scale, const Sync& sync) {
    if (!has_cache_) {
      constexpr int row_words = values / 8;
      for (int i = thread_; i < tokens.count * row_words; i += step_consumers) {
        store_exchanged_words(tokens.y + i / row_words * tokens.y_columns + output + i % row_words * 8, {});
      }
      return;
    }
    score(tokens, scale);
    __pipeline_wait_prior(0);
    sync();
    for (int t = thread_ / 32; t < tokens.count; t += step_warps) {
      weigh(t);
    }
    sync();
    for (int i = 0; i < own_value_tiles; ++i) {
      if (const int tile = thread_ / 32 + i * step_warps; tile < value_tiles) {
        add_values(tokens, tile * 8, output + tile * 8);
      }
    }
  }

  /// Keeps the tokens' keys and values; every thread has read what it needs of the cache.
  __device__ void keep(const StepTokens<E>& tokens, E* cache) const {
    if (!has_cache_) {
      return;
    }
#pragma unroll
    for (int i = 0; i < own_words; ++i) {
      const int word = thread_ + i * step_consumers;
      if (word < tokens.count * token_words) {
        const int t = word / token_words;
        const int c = word % token_words * 8;
        E* to = tokens.staged + t * tokens.staged_columns + c;
        if (tokens.staged == nullptr) {
          if (t + ring < tokens.count) {
            continue;  // a later token has its row
          }
          const int row = (next_row_ + t) % ring;
          to = c < d ? cache + row * d + c : cache + Format::value_offset + row * values + c - d;
        }
        *reinterpret_cast<uint4*>(to) = words_[i];
      }
    }
    if (tokens.staged == nullptr && thread_ == 0) {
      jrt::detail::set_cached_count<Format>(cache, jrt::detail::cached_count<Format>(cache) + tokens.count);
    }
  }

 private:
  [[nodiscard]] __device__ int lane() const {
    return thread_ % 32;
  }
  /// Place of this lane's key of a tile of the warp's.
  [[nodiscard]] __device__ int key_of(int i) const {
    return (thread_ / 32 + i * step_warps) * 8 + lane() / 4;
  }
  [[nodiscard]] __device__ int column(int chunk) const {
    return chunk * chunk_columns + lane() % 4 * 8;
  }
  /// How many cached tokens came after that in a row of the ring; large for what is none.
  [[nodiscard]] __device__ int age(int row) const {
    const int distance = next_row_ - 1 - row;
    return row >= ring ? ring : distance < 0 ? distance + ring : distance;
  }

  /// Calls `function(words, whether there are any, token, column of x)` for this lane's words of the queries.
  template <class Function>
  __device__ void each_query(const StepTokens<E>& tokens, int query, const Function& function) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = lane() / 4 + 8 * half;
#pragma unroll
      for (int j = 0; j < chunks; ++j) {
        function(queries_[half][j], t < tokens.count && column(j) < d, t, query + column(j));
      }
    }
  }
  /// Asks for all words that `each` calls a function with, until they are there.
  template <class Each>
  __device__ void ask(const StepTokens<E>& tokens, const Each& each) {
    const auto place = [&](int t, int c) { return tokens.x + t * tokens.x_columns + c; };
    each([&](uint4& words, bool exists, int t, int c) {
      if (exists) {
        words = load_exchanged(place(t, c));
      }
    });
    bool again = true;
    while (__any_sync(~0U, again)) {
      again = false;
      each([&](uint4& words, bool exists, int t, int c) {
        const bool absent = exists && is_absent16(words);
        reload_exchanged_if(absent, place(t, c), words);
        again = again || absent;
      });
    }
  }

  /// Scores of all tokens and this warp's keys.
  __device__ void score(const StepTokens<E>& tokens, float scale) {
    const int g = lane() / 4;
#pragma unroll
    for (int i = 0; i < own_tiles; ++i) {
      const int first = (thread_ / 32 + i * step_warps) * 8;
      if (first >= places) {
        break;
      }
      float sums[4] = {};
#pragma unroll
      for (int j = 0; j < chunks; ++j) {
        const uint4& a = queries_[0][j];
        const uint4& b = queries_[1][j];
        const std::uint32_t low[4] = {a.x, b.x, a.y, b.y};
        const std::uint32_t high[4] = {a.z, b.z, a.w, b.w};
        multiply_fragments<E>(sums, low, keys_[i][j].x, keys_[i][j].y);
        multiply_fragments<E>(sums, high, keys_[i][j].z, keys_[i][j].w);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = g + 8 * half;
        const int place = first + lane() % 4 * 2;
        if (t < tokens.count) {
          const float a = sees(t, place) ? sums[2 * half] * scale : -INFINITY;
          const float b = sees(t, place + 1) ? sums[2 * half + 1] * scale : -INFINITY;
          *reinterpret_cast<uint2*>(&shared_.scores[t][place]) = {__float_as_uint(a), __float_as_uint(b)};
        }
      }
    }
  }
  [[nodiscard]] __device__ bool sees(int t, int place) const {
    if (place >= cached_keys) {
      const int before = t - (place - cached_keys);
      return before >= 0 && before <= left;
    }
    const int its_age = age(place);
    return its_age < seen_ && its_age + t < left;
  }

  /// Scores of a token become weights, by a warp: of cached values two bfloat16, whose sum is the weight but for 2^-17 of
  /// it; of tokens a float.
  __device__ void weigh(int t) {
    std::uint32_t(&row)[score_stride] = shared_.scores[t];
    float numbers[own_scores];
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < own_scores; ++i) {
      const int place = lane() + 32 * i;
      numbers[i] = place < places ? __uint_as_float(row[place]) : -INFINITY;
      most = fmaxf(most, numbers[i]);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0U, most, distance));
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < own_scores; ++i) {
      const int place = lane() + 32 * i;
      const float weight = __expf(numbers[i] - most);
      sum += weight;
      if (place < cached_keys) {
        const E high = jrt::convert<E>(weight);
        const E low = jrt::convert<E>(weight - jrt::convert<float>(high));
        row[place] = high.bits | static_cast<std::uint32_t>(low.bits) << 16;
      } else if (place < places) {
        row[place] = __float_as_uint(weight);
      }
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(~0U, sum, distance);
    }
    if (lane() == 0) {
      shared_.factors[t] = 1 / sum;
    }
  }

  /// 8 columns of the outputs of all tokens, from `column` of the values on.
  __device__ void add_values(const StepTokens<E>& tokens, int column, int output) const {
    const int g = lane() / 4;
    const int pair = lane() % 4 * 2;
    float high[4] = {};
    float low[4] = {};
#pragma unroll
    for (int first = 0; first < cached_keys; first += 16) {
      std::uint32_t weights[2][4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const auto words = *reinterpret_cast<const uint2*>(&shared_.scores[g + n % 2 * 8][first + pair + n / 2 * 8]);
        weights[0][n] = __byte_perm(words.x, words.y, 0x5410);
        weights[1][n] = __byte_perm(words.x, words.y, 0x7632);
      }
      std::uint32_t numbers[2];
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                   : "=r"(numbers[0]), "=r"(numbers[1])
                   : "r"(jrt::detail::cuda::shared_address(&shared_.cached[first + lane() % 16][column])));
      multiply_fragments<E>(high, weights[0], numbers[0], numbers[1]);
      multiply_fragments<E>(low, weights[1], numbers[0], numbers[1]);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      high[n] += low[n];
    }
    for (int s = 0; s < tokens.count; ++s) {
      const auto numbers = *reinterpret_cast<const std::uint32_t*>(&shared_.cached[cached_keys + s][column + pair]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (const int t = g + 8 * half; s <= t && t < tokens.count && t - s <= left) {
          const float weight = __uint_as_float(shared_.scores[t][cached_keys + s]);
          high[2 * half] += weight * __uint_as_float(numbers << 16);
          high[2 * half + 1] += weight * __uint_as_float(numbers & 0xFFFF0000U);
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (const int t = g + 8 * half; t < tokens.count) {
        const float factor = shared_.factors[t];
        store_exchanged_two(tokens.y + t * tokens.y_columns + output + pair, jrt::convert<E>(high[2 * half] * factor),
                            jrt::convert<E>(high[2 * half + 1] * factor));
      }
    }
  }

  Shared& shared_;
  int thread_;
  bool has_cache_ = false;
  int next_row_ = 0;  ///< of the ring
  int seen_ = 0;      ///< cached tokens that the first token sees
  uint4 keys_[own_tiles][chunks];
  uint4 queries_[2][chunks] = {};
  uint4 words_[own_words];
};

}  // namespace jrt_lm
