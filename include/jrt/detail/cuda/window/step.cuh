// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/threads.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/cuda/window/step_layout.cuh"
#include "jrt/detail/cuda/window/step_query.cuh"
#include "jrt/detail/cuda/window/step_stream.cuh"
#include "jrt/detail/integer.hpp"

/// Decode step of window attention for one token per sequence. It reads every cache once, so its speed depends on having
/// enough loads in flight. Blocks are persistent and go from one cache to the next; while the queries of one read it from
/// shared memory, the next is copied there. All query heads of a cache read the same copy.
///
///     buffer 0   cache 0 ──── queries ──── cache 2 ──── queries …
///     buffer 1        cache 1 ──────────── queries ──── cache 3 …
///
///     a buffer: keys and values as the cache has them, the new ones where they will be | queries
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <WindowConfig Config, class Part = WholeBlock<WindowStepLayout<Config>::threads>>
class WindowSteps {
 public:
  using Layout = WindowStepLayout<Config, Part::threads>;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using T = ComputeType<Element>;
  using Query = WindowStepQuery<Config, Part>;

  __device__ WindowSteps(const WindowCall<Config>& call, Element* buffers, typename Query::Shared& shared,
                         const Part& part = {})
      : part_(part),
        call_(call),
        buffers_(buffers),
        query_(call, shared, part),
        heads_(static_cast<unsigned>(call.key.heads)),
        group_(static_cast<int>(call.group())) {}

  /// One cache of all sequences' after another: `begin(index)` asks for its rows, which no token of this step determines,
  /// `end()` for the new token, and attends. All threads call them in turn. One buffer is enough.
  __device__ void begin(unsigned index) {
    item_ = item_of(index);
    if (item_.cache != nullptr) {
      load_cache(item_, buffers_);
    }
  }
  __device__ void end() {
    if (item_.cache != nullptr) {
      load_token(item_, buffers_);
    }
    __pipeline_commit();
    __pipeline_wait_prior(0);
    part_.sync();
    attend(item_, buffers_);
    part_.sync();
  }

  /// `items`: caches of all sequences.
  __device__ void run(unsigned items) {
    const unsigned step = gridDim.x;
    Item current = item_of(blockIdx.x);
    Item next = blockIdx.x + step < items ? item_of(blockIdx.x + step) : Item{};
    int buffer = 0;
    load(current, buffer);
    __pipeline_commit();
    for (unsigned i = blockIdx.x; i < items; i += step) {
      load(next, 1 - buffer);
      __pipeline_commit();
      // Loaded a round before it is needed, so that no copy waits for the count that determines the rows.
      const Item after = i + 2 * step < items ? item_of(i + 2 * step) : Item{};
      __pipeline_wait_prior(1);
      part_.sync();
      attend(current, buffer_at(buffer));
      part_.sync();
      buffer = 1 - buffer;
      current = next;
      next = after;
    }
  }

 private:
  [[nodiscard]] __device__ int thread() const { return part_.rank(); }
  [[nodiscard]] __device__ Element* buffer_at(int buffer) const {
    return buffers_ + buffer * (Layout::buffer_bytes(group_) / static_cast<std::int64_t>(sizeof(Element)));
  }

  /// One cache, and the sequence that it belongs to.
  struct Item {
    int b = -1;  // −1: none
    int head = 0;
    const Element* cache = nullptr;  // null: the sequence is skipped
    std::int64_t cached = 0;         // as stored: making it legal here would wait for its load
  };
  [[nodiscard]] __device__ Item item_of(unsigned index) const {
    Item item{static_cast<int>(index / heads_), static_cast<int>(index % heads_)};
    if (!call_.skipped(item.b)) {
      item.cache = call_.initial.pool.head(call_.initial.slot(item.b), item.head);
      item.cached = stored_count<Format>(item.cache);
    }
    return item;
  }
  /// Row of the ring for the new token: after the others, or that of the oldest one, which it no longer sees.
  static __device__ int new_row(std::int64_t cached) {
    constexpr unsigned rows = Format::rows;
    return cached >> 32 == 0 ? static_cast<int>(static_cast<unsigned>(cached) % rows)
                             : static_cast<int>(ring_row(legal_count(cached, Config::left_window), Config::left_window));
  }

  /// Issues the copies of one cache, of the new key and value into it, and of the queries that read them.
  __device__ void load(const Item& item, int buffer) const {
    if (item.cache != nullptr) {
      load_cache(item, buffer_at(buffer));
      load_token(item, buffer_at(buffer));
    }
  }
  __device__ void load_cache(const Item& item, Element* to) const {
    const auto rows = static_cast<int>(clamped(item.cached, 0, Format::rows));
    const int row = new_row(item.cached);
    bring_rows<Config::head_dim>(to, item.cache, rows, row);
    bring_rows<Config::value_dim>(to + Format::value_offset, item.cache + Format::value_offset, rows, row);
  }
  __device__ void load_token(const Item& item, Element* to) const {
    const int row = new_row(item.cached);
    bring_row(to + row * Config::head_dim, call_.key.row(item.b, 0, item.head), Config::head_dim);
    bring_row(to + Format::value_offset + row * Config::value_dim, call_.value.row(item.b, 0, item.head),
              Config::value_dim);
    for (int q = 0; q < group_; ++q) {
      bring_row(to + Layout::queries + q * Config::head_dim, call_.query.row(item.b, 0, item.head * group_ + q),
                Config::head_dim);
    }
  }
  /// Issues the copies of all rows of a ring but one.
  template <int dim>
  __device__ void bring_rows(Element* to, const Element* from, int rows, int but) const {
    const int numbers = rows * dim;
#pragma unroll 8
    for (int i = thread() * Layout::each; i < numbers; i += Layout::threads * Layout::each) {
      if (static_cast<unsigned>(i - but * dim) >= static_cast<unsigned>(dim)) {
        __pipeline_memcpy_async(to + i, from + i, access_bytes);
      }
    }
  }
  __device__ void bring_row(Element* to, const Element* from, int numbers) const {
    for (int i = thread() * Layout::each; i < numbers; i += Layout::threads * Layout::each) {
      __pipeline_memcpy_async(to + i, from + i, access_bytes);
    }
  }

  __device__ void attend(const Item& item, Element* buffer) {
    const auto output = [&](int q) { return call_.output.row(item.b, 0, item.head * group_ + q); };
    if (item.cache == nullptr) {
      for (int q = 0; q < group_; ++q) {
        for (int c = thread(); c < Config::value_dim; c += Layout::threads) {
          output(q)[c] = Element{};
        }
      }
      return;
    }
    const std::int64_t cached = legal_count(item.cached, Config::left_window);
    const int row = new_row(item.cached);
    const auto rows = static_cast<int>(smaller<std::int64_t>(cached + 1, Format::rows));
    rotate_new_key(buffer + row * Config::head_dim, cached);
    for (int q = 0; q < group_; ++q) {
      query_.run(buffer, rows, buffer + Layout::queries + q * Config::head_dim, cached, output(q));
      if (group_ > 1) {
        part_.sync();  // before the next query's
      }
    }
    if (!call_.final.empty()) {
      Element* const cache = call_.final.pool.head(call_.final.slot(item.b), item.head);
      keep(buffer, rows, row, cache, cache != item.cache);
      if (thread() == 0) {
        set_cached_count<Format>(cache, cached + 1);
      }
    }
  }

  __device__ void rotate_new_key(Element* key, std::int64_t position) const {
    if constexpr (Config::Rotary::rotates) {
      constexpr int half = Config::Rotary::half_dim;
      for (int i = thread(); i < half; i += Layout::threads) {
        T first = convert<T>(key[i]);
        T second = convert<T>(key[i + half]);
        rotate_pair(rotation_for<Element>(call_.rotary, position, i), first, second);
        key[i] = convert<Element>(first);
        key[i + half] = convert<Element>(second);
      }
      part_.sync();
    }
  }

  /// Writes the copy back to `cache`: the new token, or all rows if `cache` is not the one that was read.
  __device__ void keep(const Element* buffer, int rows, int row, Element* cache, bool all) const {
    const int first = all ? 0 : row;
    const int count = all ? rows : 1;
    store_rows(cache + first * Config::head_dim, buffer + first * Config::head_dim, count * Config::head_dim);
    store_rows(cache + Format::value_offset + first * Config::value_dim,
               buffer + Format::value_offset + first * Config::value_dim, count * Config::value_dim);
  }
  __device__ void store_rows(Element* to, const Element* from, int numbers) const {
    for (int i = thread() * Layout::each; i < numbers; i += Layout::threads * Layout::each) {
      store_vector(to + i, load_vector<Layout::each>(from + i));
    }
  }

  [[no_unique_address]] Part part_;
  const WindowCall<Config>& call_;
  Element* buffers_;
  Query query_;
  Item item_;       // of `begin`
  unsigned heads_;  // of keys
  int group_;       // queries per cache
};

extern __shared__ __align__(16) std::byte window_step_buffers[];

template <WindowConfig Config>
__global__ void __launch_bounds__(WindowStepLayout<Config>::threads, WindowStepLayout<Config>::blocks)
    window_steps(const __grid_constant__ WindowCall<Config> call, unsigned items) {
  await_previous_kernel();
  let_next_kernel_start();
  using Steps = WindowSteps<Config>;
  auto* const sums = window_step_buffers + 2 * WindowStepLayout<Config>::buffer_bytes(call.group());
  Steps(call, reinterpret_cast<typename Config::Element*>(window_step_buffers),
        *reinterpret_cast<typename Steps::Query::Shared*>(sums))
      .run(items);
}

/// Whether a call has one new token per sequence, and caches that fit in shared memory. Rows must be aligned.
template <WindowConfig Config>
bool is_window_step(const WindowCall<Config>& call, const Cuda& on) {
  using Layout = WindowStepLayout<Config>;
  const Sequences& sequences = call.sequences;
  return Layout::supported && call.query.tokens == 1 && !call.initial.empty() && call.has_initial == nullptr &&
         !call.stages() && call.log_sum_exp.data == nullptr && sequences.cu_seqlens == nullptr &&
         sequences.seq_lens == nullptr && sequences.left_pads == nullptr &&
         call.count() * call.key.heads <= INT32_MAX / 4 &&
         Layout::shared_bytes(call.group()) <= on.shared_bytes_per_block();
}

template <WindowConfig Config>
Status launch_window_steps(const char* operation, const WindowCall<Config>& call, const Cuda& on) {
  using Layout = WindowStepLayout<Config>;
  const std::int64_t items = call.count() * call.key.heads;
  if constexpr (WindowStreamLayout<Config>::supported) {
    using Stream = WindowStreamLayout<Config>;
    if (call.group() == 1 && items >= std::int64_t{Stream::tuning.min_caches} * on.multiprocessors()) {
      Grid grid{smaller(items, std::int64_t{Stream::blocks} * on.multiprocessors()), Stream::threads, 0};
      grid.starts_early = can_start_early<window_stream<Config>>(on);
      return launch(operation, window_stream<Config>, grid, on, call, static_cast<unsigned>(items));
    }
  }
  const std::int64_t resident = std::int64_t{Layout::blocks} * on.multiprocessors();
  Grid grid{smaller(items, resident), Layout::threads, static_cast<std::size_t>(Layout::shared_bytes(call.group()))};
  grid.starts_early = can_start_early<window_steps<Config>>(on);
  return launch(operation, window_steps<Config>, grid, on, call, static_cast<unsigned>(items));
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
