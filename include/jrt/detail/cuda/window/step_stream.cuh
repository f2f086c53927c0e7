// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/exponential.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/cuda/window/step_layout.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/window/online_softmax.hpp"

/// Decode step of window attention for one token per sequence and one query per cache, 16-bit elements. Blocks are
/// persistent and go from one cache to the next; each warp streams its share of the rows through registers, the next ones
/// on their way while it uses these, across the caches' borders (here d = 128, 8 rows of a warp at a time; narrower heads
/// leave room for more):
///
///     warp w of 2   loads   cache 0, rows 8w …   rows 16 + 8w …   …   rows 112 + 8w …   cache 1, rows 8w …
///                   uses                         rows 8w …        …   rows 96 + 8w …    rows 112 + 8w …, merge
///
/// Rows are those of the ring but for the new token's, which come with the query through shared memory.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <WindowConfig Config>
struct WindowStreamLayout {
  using Element = typename Config::Element;
  using Query = QueryLayout<Config>;  // how lanes share a key
  static constexpr WindowStreamTuning tuning = window_stream_tuning;
  static constexpr int warps = tuning.warps;
  static constexpr int blocks = tuning.multiprocessor_warps / warps;  // per multiprocessor
  static constexpr int threads = 32 * warps;
  static constexpr int groups = 32 / Query::lanes;  // of a warp, each with rows of its own
  static constexpr int each = tuning.rows;          // of a group at a time
  static constexpr int warp_rows = groups * each;   // of a warp at a time
  static constexpr int turns = larger(2, round_up(ceil_div(Config::left_window, warps* warp_rows), 2));  // of a cache
  static constexpr bool supported = sizeof(Element) == 2 && Query::parts == 1 && WindowStepLayout<Config>::supported;
};

template <WindowConfig Config>
class WindowStream {
 public:
  using Layout = WindowStreamLayout<Config>;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  static constexpr int vector = Layout::Query::vector;
  static constexpr int lanes = Layout::Query::lanes;
  static constexpr int each = Layout::each;
  static constexpr int head_dim = Config::head_dim;
  static constexpr int value_dim = Config::value_dim;
  using Numbers = StoredNumbers<Element, vector>;
  using Softmax = OnlineSoftmax<float, FastFiniteExponential>;

  struct Shared {
    alignas(access_bytes) Element tokens[2][2 * head_dim + value_dim];  // query, key, value
    float maxima[2][Layout::warps];
    float denominators[2][Layout::warps];
    float values[2][Layout::warps][value_dim];
  };

  __device__ WindowStream(const WindowCall<Config>& call, Shared& shared)
      : call_(call), shared_(shared), heads_(static_cast<unsigned>(call.key.heads)) {}

  /// `items`: caches of all sequences.
  __device__ void run(unsigned items) {
    const unsigned step = gridDim.x;
    Item current = item_of(blockIdx.x);
    Item next = blockIdx.x + step < items ? item_of(blockIdx.x + step) : Item{};
    int parity = 0;
    Rows rows[2];
    bring_token(current, parity);
    load(rows[0], current, 0);
    __pipeline_wait_prior(0);
    __syncthreads();
    for (unsigned i = blockIdx.x; i < items; i += step) {
      bring_token(next, 1 - parity);
      // Asked for a round before it is needed, since the rows depend on its count.
      const Item after = i + 2 * step < items ? item_of(i + 2 * step) : Item{};
      begin(current, parity);
#pragma unroll 1
      for (int turn = 0; turn < Layout::turns; turn += 2) {
        const bool last = turn + 2 >= Layout::turns;
        load(rows[1], current, turn + 1);
        take(rows[0], current, turn);
        Item from = current;
        if (last) {
          from = next;
        }
        load(rows[0], from, last ? 0 : turn + 2);
        take(rows[1], current, turn + 1);
      }
      if (warp() == 0) {
        take_token(current, parity);
      }
      merge_lanes(parity);
      __pipeline_wait_prior(0);
      __syncthreads();
      finish(current, parity);
      parity = 1 - parity;
      current = next;
      next = after;
    }
  }

 private:
  struct Item {
    int b = -1;  // −1: none
    int head = 0;
    const Element* cache = nullptr;  // null: none, or the sequence is skipped
    std::int64_t cached = 0;         // as stored: making it legal here would wait for its load

    /// Rows besides the new token's.
    [[nodiscard]] __device__ int others() const { return static_cast<int>(clamped(cached, 0, Config::left_window)); }
    /// Row of the new token: after the others, or that of the oldest one, which it no longer sees.
    [[nodiscard]] __device__ int new_row() const {
      return cached >> 32 == 0 ? static_cast<int>(static_cast<unsigned>(cached) % static_cast<unsigned>(Format::rows))
                               : static_cast<int>(ring_row(legal_count(cached, Config::left_window), Config::left_window));
    }
  };
  struct Rows {
    Numbers keys[each];
    Numbers values[each];
  };

  static __device__ int thread() {
    return static_cast<int>(threadIdx.x);
  }
  static __device__ int warp() {
    return thread() / 32;
  }
  static __device__ int group() {
    return thread() % 32 / lanes;
  }
  static __device__ int column() {
    return thread() % lanes * vector;
  }
  /// The r-th row of this lane in a turn, not counting the new token's.
  static __device__ int row_of(int turn, int r) {
    return (turn * Layout::warps + warp()) * Layout::warp_rows + r * Layout::groups + group();
  }

  [[nodiscard]] __device__ Item item_of(unsigned index) const {
    Item item{static_cast<int>(index / heads_), static_cast<int>(index % heads_)};
    if (!call_.skipped(item.b)) {
      item.cache = call_.initial.pool.head(call_.initial.slot(item.b), item.head);
      item.cached = stored_count<Format>(item.cache);
    }
    return item;
  }
  /// Where the cache is kept; null if it is not.
  [[nodiscard]] __device__ Element* kept(const Item& item) const {
    return call_.final.empty() ? nullptr : call_.final.pool.head(call_.final.slot(item.b), item.head);
  }

  /// Issues the copies of a query, key and value to shared memory.
  __device__ void bring_token(const Item& item, int parity) const {
    if (item.cache != nullptr) {
      Element* const to = shared_.tokens[parity];
      for (int c = thread() * vector; c < 2 * head_dim + value_dim; c += Layout::threads * vector) {
        const Element* const from = c < head_dim       ? call_.query.row(item.b, 0, item.head) + c
                                    : c < 2 * head_dim ? call_.key.row(item.b, 0, item.head) + (c - head_dim)
                                                       : call_.value.row(item.b, 0, item.head) + (c - 2 * head_dim);
        __pipeline_memcpy_async(to + c, from, access_bytes);
      }
    }
    __pipeline_commit();
  }

  /// Asks for the rows of a turn, without a branch: others are loaded in place of those that do not exist.
  __device__ void load(Rows& rows, const Item& item, int turn) const {
    const int others = item.cache == nullptr ? 0 : item.others();
    if (others == 0) {
      return;
    }
    const int new_row = item.new_row();
    const Element* const keys = item.cache + smaller(column(), head_dim - vector);
    const Element* const values = item.cache + Format::value_offset + smaller(column(), value_dim - vector);
#pragma unroll
    for (int r = 0; r < each; ++r) {
      const int n = smaller(row_of(turn, r), others - 1);
      const int row = n < new_row ? n : n + 1;
      rows.keys[r].pairs = load_once(keys + row * head_dim);
      rows.values[r].pairs = load_once(values + row * value_dim);
    }
  }
  /// A load that stays where it is, so that it is on its way while other rows are used.
  static __device__ Vector<std::uint32_t, 4> load_once(const Element* from) {
    Vector<std::uint32_t, 4> pairs;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "l"(__cvta_generic_to_global(from)));
    return pairs;
  }

  __device__ void begin(const Item& item, int parity) {
    softmax_ = {};
    const Element* const query = shared_.tokens[parity];
#pragma unroll
    for (int c = 0; c < vector; ++c) {
      values_[c] = 0;
      query_[c] = 0;
    }
    copy_ = item.cache == nullptr || kept(item) == item.cache ? nullptr : kept(item);
    if (item.cache != nullptr && column() < head_dim) {
      rotated(query_, query, item.cached);
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        query_[c] *= static_cast<float>(call_.scale);
      }
    }
  }
  __device__ void rotated(float (&numbers)[vector], const Element* row, std::int64_t cached) const {
    if constexpr (Config::Rotary::rotates) {
      const std::int64_t position = legal_count(cached, Config::left_window);
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        numbers[c] = rotated_value(call_.rotary, row, position, column() + c);
      }
    } else {
      Numbers stored;
      stored.load(row + column(), true);
      stored.get(numbers);
    }
  }

  /// The score of a key, in all lanes of a group. All lanes of a warp call it.
  [[nodiscard]] __device__ float score(const Numbers& key) const {
    float dot = 0;
    float numbers[vector];
    key.get(numbers);
#pragma unroll
    for (int c = 0; c < vector; ++c) {
      dot += query_[c] * numbers[c];
    }
#pragma unroll
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      dot += __shfl_xor_sync(~0u, dot, distance);
    }
    return dot;
  }
  __device__ void absorb(float most) {
    const float factor = softmax_.absorb(most);
#pragma unroll
    for (int c = 0; c < vector; ++c) {
      values_[c] *= factor;
    }
  }
  __device__ void add(float score, const Numbers& value, bool exists = true) {
    const float weight = exists ? softmax_.weight(score) : 0.0F;
    softmax_.denominator += weight;
    float numbers[vector];
    value.get(numbers);
#pragma unroll
    for (int c = 0; c < vector; ++c) {
      values_[c] += weight * numbers[c];
    }
  }

  /// Uses the rows of a turn, and copies them where the cache goes elsewhere.
  __device__ void take(const Rows& rows, const Item& item, int turn) {
    const int others = item.cache == nullptr ? 0 : item.others();
    if (row_of(turn, 0) - group() >= others) {
      return;
    }
    float scores[each];
    float most = softmax_.maximum;
#pragma unroll
    for (int r = 0; r < each; ++r) {
      const float dot = score(rows.keys[r]);
      scores[r] = row_of(turn, r) < others ? dot : FastFiniteExponential::lowest;
      most = fmaxf(most, scores[r]);
    }
    absorb(most);
#pragma unroll
    for (int r = 0; r < each; ++r) {
      add(scores[r], rows.values[r], row_of(turn, r) < others);
    }
    if (copy_ != nullptr) {
      const int new_row = item.new_row();
#pragma unroll
      for (int r = 0; r < each; ++r) {
        const int n = row_of(turn, r);
        if (n < others) {
          store(copy_, n < new_row ? n : n + 1, rows.keys[r], rows.values[r]);
        }
      }
    }
  }
  __device__ void store(Element* cache, int row, const Numbers& key, const Numbers& value) const {
    if (column() < head_dim) {
      key.store(cache + row * head_dim + column(), true);
    }
    if (column() < value_dim) {
      value.store(cache + Format::value_offset + row * value_dim + column(), true);
    }
  }

  /// The new token's key and value, by one group.
  __device__ void take_token(const Item& item, int parity) {
    if (item.cache == nullptr) {
      return;
    }
    Numbers key;
    Numbers value;
    if (column() < head_dim) {
      float numbers[vector];
      rotated(numbers, shared_.tokens[parity] + head_dim, item.cached);
      key.set(numbers);
    }
    if (column() < value_dim) {
      value.load(shared_.tokens[parity] + 2 * head_dim + column(), true);
    }
    const float dot = score(key);
    if (group() != 0) {
      return;
    }
    absorb(fmaxf(softmax_.maximum, dot));
    add(dot, value);
    if (Element* const cache = kept(item); cache != nullptr) {
      store(cache, item.new_row(), key, value);
    }
  }

  __device__ void merge_lanes(int parity) {
    float most = softmax_.maximum;
#pragma unroll
    for (int distance = lanes; distance < 32; distance *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
    }
    absorb(most);
#pragma unroll
    for (int distance = lanes; distance < 32; distance *= 2) {
      softmax_.denominator += __shfl_xor_sync(~0u, softmax_.denominator, distance);
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        values_[c] += __shfl_xor_sync(~0u, values_[c], distance);
      }
    }
    if (thread() % 32 == 0) {
      shared_.maxima[parity][warp()] = softmax_.maximum;
      shared_.denominators[parity][warp()] = softmax_.denominator;
    }
    if (group() == 0 && column() < value_dim) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        shared_.values[parity][warp()][column() + c] = values_[c];
      }
    }
  }

  /// Merges warps and writes the output; 0 for a sequence that is skipped.
  __device__ void finish(const Item& item, int parity) const {
    float most = FastFiniteExponential::lowest;
#pragma unroll
    for (int w = 0; w < Layout::warps; ++w) {
      most = fmaxf(most, shared_.maxima[parity][w]);
    }
    Element* const output = call_.output.row(item.b, 0, item.head);
    for (int c = thread(); c < value_dim; c += Layout::threads) {
      Softmax softmax{most};
      float value = 0;
#pragma unroll
      for (int w = 0; w < Layout::warps; ++w) {
        const float factor = softmax.merge({shared_.maxima[parity][w], shared_.denominators[parity][w]});
        value += factor * shared_.values[parity][w][c];
      }
      output[c] = item.cache == nullptr ? Element{} : convert<Element>(softmax.finish(value));
    }
    if (item.cache != nullptr && thread() == 0) {
      if (Element* const cache = kept(item); cache != nullptr) {
        set_cached_count<Format>(cache, legal_count(item.cached, Config::left_window) + 1);
      }
    }
  }

  const WindowCall<Config>& call_;
  Shared& shared_;
  unsigned heads_;
  float query_[vector];
  float values_[vector];
  Softmax softmax_;          // of this lane's group
  Element* copy_ = nullptr;  // where the cache is copied, if it is
};

template <WindowConfig Config>
__global__ void __launch_bounds__(WindowStreamLayout<Config>::threads, WindowStreamLayout<Config>::blocks)
    window_stream(const __grid_constant__ WindowCall<Config> call, unsigned items) {
  await_previous_kernel();
  let_next_kernel_start();
  __shared__ typename WindowStream<Config>::Shared shared;
  WindowStream<Config>(call, shared).run(items);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
