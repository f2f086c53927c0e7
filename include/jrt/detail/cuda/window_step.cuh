// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cfloat>
#include <cstdint>

#include "jrt/detail/cuda/launch.cuh"
#include "jrt/detail/cuda/vector.cuh"
#include "jrt/detail/cuda/window_query.cuh"
#include "jrt/detail/cuda/window_sequence.cuh"

/// Decode step of window attention for one token a sequence: it reads every cache once, so that all there is to gain is in
/// having enough of them on their way. Blocks stay, and go from one cache to the next; while the queries of one are
/// answered from shared memory, the next is copied there. All query heads of a cache read the same copy.
///
///     buffer 0   cache 0 ──── queries ──── cache 2 ──── queries …
///     buffer 1        cache 1 ──────────── queries ──── cache 3 …
///
///     a buffer: keys, values and count as the cache has them | new key | new value | queries
namespace jrt::detail::cuda {

template <WindowConfig Config>
struct WindowStepLayout {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  static constexpr int each = access_bytes / static_cast<int>(sizeof(Element));
  static constexpr std::int64_t new_key = Format::head_elements;
  static constexpr std::int64_t new_value = new_key + Config::head_dim;
  static constexpr std::int64_t queries = new_value + Config::value_dim;

  static constexpr std::int64_t most_bytes = 216 * 1024;  // of a multiprocessor's shared memory
  JRT_DETAIL_HD static constexpr std::int64_t buffer_bytes(std::int64_t group) {
    return (queries + group * Config::head_dim) * static_cast<std::int64_t>(sizeof(Element));
  }
  static constexpr int blocks = static_cast<int>(clamped(most_bytes / (2 * buffer_bytes(1)), 1, 4));
  static constexpr int threads = blocks >= 3 ? 256 : 512;
  static constexpr bool supported =
      Config::head_dim % each == 0 && Config::value_dim % each == 0 && 2 * buffer_bytes(1) <= 160 * 1024;

  using Query = QueryLayout<Config>;  // how lanes share a key
  static constexpr int warps = threads / 32;
  static constexpr int groups = threads / Query::lanes;
  static constexpr int rounds = smaller(9, ceil_div(Format::rows + 1, groups));  // keys of a group at a time
};

template <WindowConfig Config>
class WindowSteps {
 public:
  using Layout = WindowStepLayout<Config>;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using T = ComputeType<Element>;
  static constexpr int vector = Layout::Query::vector;
  static constexpr int parts = Layout::Query::parts;
  static constexpr int lanes = Layout::Query::lanes;
  using Numbers = StoredNumbers<Element, vector>;

  struct Shared {
    T largest[Layout::warps];
    T sums[Layout::warps];
    T values[Layout::warps][Config::value_dim];
  };

  __device__ WindowSteps(const WindowCall<Config>& call, Element* buffers, Shared& shared)
      : call_(call),
        buffers_(buffers),
        shared_(shared),
        heads_(static_cast<unsigned>(call.key.heads)),
        group_(static_cast<int>(call.group())) {}

  /// `items`: caches of all sequences.
  __device__ void run(unsigned items) {
    int buffer = 0;
    bring(blockIdx.x, buffer);
    __pipeline_commit();
    for (unsigned item = blockIdx.x; item < items; item += gridDim.x) {
      if (item + gridDim.x < items) {
        bring(item + gridDim.x, 1 - buffer);
      }
      __pipeline_commit();
      __pipeline_wait_prior(1);
      __syncthreads();
      answer(item, buffer_at(buffer));
      __syncthreads();
      buffer = 1 - buffer;
    }
  }

 private:
  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ int group() { return thread() / lanes; }
  static __device__ int column(int part) { return (part * lanes + thread() % lanes) * vector; }
  [[nodiscard]] __device__ Element* buffer_at(int buffer) const {
    return buffers_ + buffer * (Layout::buffer_bytes(group_) / static_cast<std::int64_t>(sizeof(Element)));
  }

  /// One cache, the new key and value, and the queries that read them, on their way.
  __device__ void bring(unsigned item, int buffer) const {
    const std::int64_t b = item / heads_;
    const std::int64_t head = item % heads_;
    if (!call_.skipped(b)) {
      Element* const to = buffer_at(buffer);
      bring_row(to, call_.initial.pool.head(call_.initial.slot(b), head), Format::head_elements);
      bring_row(to + Layout::new_key, call_.key.row(b, 0, head), Config::head_dim);
      bring_row(to + Layout::new_value, call_.value.row(b, 0, head), Config::value_dim);
      for (int q = 0; q < group_; ++q) {
        bring_row(to + Layout::queries + q * Config::head_dim, call_.query.row(b, 0, head * group_ + q), Config::head_dim);
      }
    }
  }
  static __device__ void bring_row(Element* to, const Element* from, std::int64_t numbers) {
#pragma unroll 8
    for (int i = thread() * Layout::each; i < numbers; i += Layout::threads * Layout::each) {
      __pipeline_memcpy_async(to + i, from + i, access_bytes);
    }
  }

  __device__ void answer(unsigned item, Element* buffer) {
    const std::int64_t b = item / heads_;
    const std::int64_t head = item % heads_;
    if (call_.skipped(b)) {
      for (int q = 0; q < group_; ++q) {
        for (int c = thread(); c < Config::value_dim; c += Layout::threads) {
          call_.output.row(b, 0, head * group_ + q)[c] = Element{};
        }
      }
      return;
    }
    const std::int64_t cached = larger<std::int64_t>(0, cached_count<Format>(static_cast<const Element*>(buffer)));
    turn_new_key(buffer + Layout::new_key, cached);
    for (int q = 0; q < group_; ++q) {
      answer_query(buffer, cached, buffer + Layout::queries + q * Config::head_dim,
                   call_.output.row(b, 0, head * group_ + q));
    }
    if (!call_.final.empty()) {
      keep(buffer, cached, call_.final.pool.head(call_.final.slot(b), head),
           call_.initial.pool.head(call_.initial.slot(b), head));
    }
  }

  __device__ void turn_new_key(Element* key, std::int64_t position) const {
    if constexpr (Config::Rotary::rotates) {
      constexpr int half = Config::Rotary::half_dim;
      for (int i = thread(); i < half; i += Layout::threads) {
        T first = convert<T>(key[i]);
        T second = convert<T>(key[i + half]);
        turn_pair(rotation_for<Element>(call_.rotary, position, i), first, second);
        key[i] = convert<Element>(first);
        key[i + half] = convert<Element>(second);
      }
      __syncthreads();
    }
  }

  __device__ void answer_query(const Element* buffer, std::int64_t cached, const Element* query, Element* output) {
    const int rows = static_cast<int>(smaller<std::int64_t>(cached, Format::rows));
    // Of a full ring the oldest row, which the new token will replace, is no longer seen.
    const int hidden = cached < Format::rows ? -1 : static_cast<int>(ring_row(cached, Config::left_window));
    T numbers[parts][vector];
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        const int number = column(part) + c;
        numbers[part][c] = number < Config::head_dim
                               ? turned_number(call_.rotary, query, cached, number) * static_cast<T>(call_.scale)
                               : T(0);
      }
    }
    T values[parts][vector] = {};
    T largest = lowest_score();
    T sum = 0;
    for (int first = group(); first - group() <= rows; first += Layout::rounds * Layout::groups) {
      T scores[Layout::rounds];
      T most = largest;
#pragma unroll
      for (int r = 0; r < Layout::rounds; ++r) {
        const int n = first + r * Layout::groups;
        const bool visible = n <= rows && n != hidden;
        const Element* const key = n < rows ? buffer + n * Config::head_dim : buffer + Layout::new_key;
        const T score = dot(numbers, key);
        scores[r] = visible ? score : lowest_score();
        most = most < scores[r] ? scores[r] : most;
      }
      // For a warp as a whole: what is left to bring together is then one row of values each.
#pragma unroll
      for (int distance = lanes; distance < 32; distance *= 2) {
        const T other = __shfl_xor_sync(~0u, most, distance);
        most = most < other ? other : most;
      }
      const T factor = exponential(largest - most);
      largest = most;
      sum *= factor;
      scale(values, factor);
#pragma unroll
      for (int r = 0; r < Layout::rounds; ++r) {
        const int n = first + r * Layout::groups;
        if (n <= rows && n != hidden) {
          const T weight = exponential(scores[r] - most);
          sum += weight;
          const Element* const value =
              n < rows ? buffer + Format::value_offset + n * Config::value_dim : buffer + Layout::new_value;
          add_weighted(values, weight, value);
        }
      }
    }
    finish(values, largest, sum, output);
  }

  /// Of a query and a key, the same in all lanes of a group.
  static __device__ T dot(const T (&query)[parts][vector], const Element* key) {
    T dot = 0;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      if (column(part) < Config::head_dim) {
        Numbers stored;
        stored.load(key + column(part), true);
        T numbers[vector];
        stored.get(numbers);
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          dot += query[part][c] * numbers[c];
        }
      }
    }
#pragma unroll
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      dot += __shfl_xor_sync(~0u, dot, distance);
    }
    return dot;
  }
  static __device__ void scale(T (&values)[parts][vector], T factor) {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        values[part][c] *= factor;
      }
    }
  }
  static __device__ void add_weighted(T (&values)[parts][vector], T weight, const Element* value) {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      if (column(part) < Config::value_dim) {
        Numbers stored;
        stored.load(value + column(part), true);
        T numbers[vector];
        stored.get(numbers);
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          values[part][c] += weight * numbers[c];
        }
      }
    }
  }

  /// Brings groups and warps together.
  __device__ void finish(T (&values)[parts][vector], T largest, T sum, Element* output) {
    const int warp = thread() / 32;
#pragma unroll
    for (int distance = lanes; distance < 32; distance *= 2) {
      sum += __shfl_xor_sync(~0u, sum, distance);
#pragma unroll
      for (int part = 0; part < parts; ++part) {
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          values[part][c] += __shfl_xor_sync(~0u, values[part][c], distance);
        }
      }
    }
    if (thread() % 32 == 0) {
      shared_.largest[warp] = largest;
      shared_.sums[warp] = sum;
    }
    if (thread() % 32 < lanes) {
#pragma unroll
      for (int part = 0; part < parts; ++part) {
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          if (column(part) < Config::value_dim) {
            shared_.values[warp][column(part) + c] = values[part][c];
          }
        }
      }
    }
    __syncthreads();
    T most = lowest_score();
#pragma unroll
    for (int w = 0; w < Layout::warps; ++w) {
      most = most < shared_.largest[w] ? shared_.largest[w] : most;
    }
    for (int c = thread(); c < Config::value_dim; c += Layout::threads) {
      T total = 0;
      T value = 0;
#pragma unroll
      for (int w = 0; w < Layout::warps; ++w) {
        const T factor = exponential(shared_.largest[w] - most);
        total += factor * shared_.sums[w];
        value += factor * shared_.values[w][c];
      }
      output[c] = convert<Element>(value / total);
    }
    if (group_ > 1) {
      __syncthreads();  // before the next query's
    }
  }

  /// The cache with the new token, into `cache`, from the copy of `source`.
  __device__ void keep(const Element* buffer, std::int64_t cached, Element* cache, const Element* source) const {
    const std::int64_t row = ring_row(cached, Config::left_window);
    Element* const key = cache + row * Config::head_dim;
    Element* const value = cache + Format::value_offset + row * Config::value_dim;
    if (cache != source) {
      for (int i = thread() * Layout::each; i < Format::count_offset; i += Layout::threads * Layout::each) {
        const bool replaced = in_row(cache + i, key, Config::head_dim) || in_row(cache + i, value, Config::value_dim);
        if (!replaced) {
          store_vector(cache + i, load_vector<Layout::each>(buffer + i));
        }
      }
    }
    for (int i = thread() * Layout::each; i < Config::head_dim; i += Layout::threads * Layout::each) {
      store_vector(key + i, load_vector<Layout::each>(buffer + Layout::new_key + i));
    }
    for (int i = thread() * Layout::each; i < Config::value_dim; i += Layout::threads * Layout::each) {
      store_vector(value + i, load_vector<Layout::each>(buffer + Layout::new_value + i));
    }
    if (thread() == 0) {
      cached_count<Format>(cache) = cached + 1;
    }
  }
  static __device__ bool in_row(const Element* place, const Element* row, int numbers) {
    return place >= row && place < row + numbers;
  }

  static __device__ T exponential(T x) {
    if constexpr (sizeof(Element) == 2) {
      return __expf(x);  // its error, 2^-21, is less than that of the weights' values
    } else {
      return exp(x);
    }
  }
  /// Of a group without keys; its differences are finite.
  static __device__ constexpr T lowest_score() {
    return sizeof(T) == sizeof(float) ? T(-FLT_MAX / 4) : T(-DBL_MAX / 4);
  }

  const WindowCall<Config>& call_;
  Element* buffers_;
  Shared& shared_;
  unsigned heads_;  // of keys
  int group_;       // queries that read one
};

extern __shared__ __align__(16) std::byte window_step_buffers[];

template <WindowConfig Config>
__global__ void __launch_bounds__(WindowStepLayout<Config>::threads, WindowStepLayout<Config>::blocks)
    answer_window_steps(const __grid_constant__ WindowCall<Config> call, unsigned items) {
  __shared__ typename WindowSteps<Config>::Shared shared;
  await_previous_kernel();
  let_next_kernel_start();
  WindowSteps<Config>(call, reinterpret_cast<typename Config::Element*>(window_step_buffers), shared).run(items);
}

/// Whether a call is one new token for each of some caches, whose rings fit in shared memory. Rows must be aligned.
template <WindowConfig Config>
bool is_window_step(const WindowCall<Config>& call, const Cuda& on) {
  using Layout = WindowStepLayout<Config>;
  const Sequences& sequences = call.sequences;
  return Layout::supported && call.query.tokens == 1 && !call.initial.empty() && call.has_initial == nullptr &&
         !call.stages() && sequences.cu_seqlens == nullptr && sequences.seq_lens == nullptr &&
         sequences.left_pads == nullptr && call.count() * call.key.heads <= INT32_MAX &&
         2 * Layout::buffer_bytes(call.group()) <= on.shared_bytes_per_block() - 8 * 1024;
}

template <WindowConfig Config>
Status launch_window_steps(const char* operation, const WindowCall<Config>& call, const Cuda& on) {
  using Layout = WindowStepLayout<Config>;
  const std::int64_t items = call.count() * call.key.heads;
  const std::int64_t resident = std::int64_t{Layout::blocks} * on.multiprocessors();
  Grid grid{smaller(items, resident), Layout::threads, static_cast<std::size_t>(2 * Layout::buffer_bytes(call.group()))};
  grid.starts_early = can_start_early<answer_window_steps<Config>>();
  return launch(operation, answer_window_steps<Config>, grid, on, call, static_cast<unsigned>(items));
}

}  // namespace jrt::detail::cuda
