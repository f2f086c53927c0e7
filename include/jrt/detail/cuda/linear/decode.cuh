// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/decode.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/core/warp_sum.cuh"
#include "jrt/detail/cuda/linear/expand.cuh"
#include "jrt/detail/cuda/linear/step_call.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/workspace.hpp"

/// Decoding. One block works on one head of one sequence and holds its state in registers:
///
///     load S; for every new token t: S += φ(k_t)v_tᵀ; for every query head g of the group: y_tg = φ(q_tg)ᵀS; store S
///
/// so that the state is read and written once. A thread owns a few neighbouring columns of every `groups`-th row; the sums
/// over rows have one order, whatever the number of tokens and the alignment, so that T tokens give bitwise what T steps
/// give, where the state is stored in the type of the sums.
namespace jrt::detail::cuda {

/// `one_token`: one key and one query, of which the state's numbers stay in registers as they are stored. With 16 bits that
/// is half the registers, and so many more loads on their way; any more keys or queries need the sums unrounded.
template <class Config, bool one_token>
class StepBlock {
 public:
  using Call = StepCall<Config>;
  using Format = typename Call::Format;
  using Scalar = typename Format::Scalar;
  using Element = typename Call::Element;
  using Map = typename Config::FeatureMap;
  using T = typename Call::T;
  using Layout = StepLayout<Format, T>;

  /// Shared memory of a block.
  struct Shared {
    T key_input[Map::input_dim];
    T query_input[Map::input_dim];
    T value[Format::columns];
    T partial_sums[Layout::partial_sums][Format::columns];
    T partial_denominators[Layout::threads / 32];
    // Features and z follow: as many numbers as there are rows may need more than 48 KiB.
  };
  static constexpr std::int64_t row_arrays = 3;
  static constexpr std::size_t shared_bytes =
      round_up(sizeof(Shared), sizeof(T) * 4) + sizeof(T) * row_arrays * Format::rows;

  __device__ StepBlock(const Call& call, std::byte* shared)
      : call_(call),
        shared_(*reinterpret_cast<Shared*>(shared)),
        b_(blockIdx.x / static_cast<unsigned>(call.heads)),
        head_(blockIdx.x % static_cast<unsigned>(call.heads)) {
    normaliser_ = reinterpret_cast<T*>(shared + round_up(sizeof(Shared), sizeof(T) * 4));
    key_features_ = normaliser_ + Format::rows;
    query_features_ = key_features_ + Format::rows;
  }

  __device__ void run() {
    if (sequence_skipped(call_.source, nullptr, call_.destination, b_)) {
      zero_outputs();
      return;
    }
    const Scalar* const source = call_.source.pool.head(call_.source.slot(b_), head_);
    Scalar* const destination =
        call_.destination.empty() ? nullptr : call_.destination.pool.head(call_.destination.slot(b_), head_);
    const std::int64_t keys =
        call_.accepted_tokens == nullptr ? call_.keys : clamped(call_.accepted_tokens[b_], 0, call_.keys);
    evicted_.find(call_, b_, head_, keys);
    if (call_.staging.data != nullptr && call_.accepted_tokens == nullptr) {
      stage();
    }
    for (int pass = 0; pass < Layout::passes; ++pass) {
      // Everything that comes from memory is asked for before anything is waited for.
      if (keys > 0) {
        fetch_token(0);
      }
      if (pass == 0) {
        fetch_normaliser(source);
      }
      fetch_state(source, pass);
      if (pass == 0) {
        place_normaliser();
      }
      if (keys > 0) {
        if (pass > 0) {
          __syncthreads();  // the pass before is done with its last token
        }
        place_token(0);
      }
      convert_state();
      for (std::int64_t t = 0; t < keys; ++t) {
        if (t > 0) {
          __syncthreads();
          place_token(t);
        }
        if (t + 1 < keys) {
          fetch_token(t + 1);
        }
        add_token(pass);
        for (std::int64_t g = 0; t >= call_.already_staged && g < call_.group; ++g) {
          write_output(t, g, pass, destination);
        }
      }
      if (!one_token && destination != nullptr) {
        write_state(destination, pass);
      }
    }
    __syncthreads();
    for (int r = thread(); destination != nullptr && r < Format::rows; r += Layout::threads) {
      destination[Format::normaliser_offset + r] = convert<Scalar>(normaliser_[r]);
    }
  }

 private:
  // What a thread fetches of each.
  static constexpr int normaliser_parts = ceil_div(Format::rows, Layout::threads);
  static constexpr int input_parts = ceil_div(Map::input_dim + Format::columns, Layout::threads);
  static constexpr int query_parts = ceil_div(Map::input_dim, Layout::threads);
  static constexpr int owners = Layout::groups * Layout::lanes;  // threads that own part of the state

  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ int group() { return thread() / Layout::lanes; }
  static __device__ int column() { return thread() % Layout::lanes * Layout::columns; }

  __device__ void zero_outputs() {
    const std::int64_t row_elements = call_.group * Format::columns;
    for (std::int64_t i = thread(); i < call_.output.tokens * row_elements; i += Layout::threads) {
      const std::int64_t within = i % row_elements;
      call_.output.row(b_, i / row_elements, head_ * call_.group + within / Format::columns)[within % Format::columns] =
          Element{};
    }
  }

  /// The new keys and values go behind the staged ones.
  __device__ void stage() {
    constexpr int row = StagingView<Config>::row_elements;
    for (std::int64_t i = thread(); i < call_.key.tokens * row; i += Layout::threads) {
      const std::int64_t t = i / row;
      const int c = static_cast<int>(i % row);
      call_.staging.row(b_, call_.already_staged + t, head_)[c] =
          c < Map::input_dim ? call_.key.row(b_, t, head_)[c] : call_.value.row(b_, t, head_)[c - Map::input_dim];
    }
  }

  /// Keys and values that earlier calls have staged come from there, new ones from the views.
  [[nodiscard]] __device__ bool from_staging(std::int64_t t) const {
    return call_.accepted_tokens != nullptr || t < call_.already_staged;
  }
  [[nodiscard]] __device__ bool has_key([[maybe_unused]] std::int64_t t) const {
    if constexpr (consumes_evicted_keys<Config>) {
      return t >= evicted_.missing;
    } else {
      return true;
    }
  }
  [[nodiscard]] __device__ const Element* key_row(std::int64_t t) const {
    if constexpr (consumes_evicted_keys<Config>) {
      return has_key(t) ? evicted_.source.key(evicted_.token(t)) : nullptr;
    }
    return from_staging(t) ? call_.staging.row(b_, t, head_) : call_.key.row(b_, t - call_.already_staged, head_);
  }
  [[nodiscard]] __device__ const Element* value_row(std::int64_t t) const {
    if constexpr (consumes_evicted_keys<Config>) {
      return has_key(t) ? evicted_.source.value(evicted_.token(t)) : nullptr;
    }
    return from_staging(t) ? call_.staging.row(b_, t, head_) + Map::input_dim
                           : call_.value.row(b_, t - call_.already_staged, head_);
  }

  [[nodiscard]] __device__ int row(int i, int pass) const { return (pass * Layout::rows + i) * Layout::groups + group(); }

  /// Calls `function(i, offset)` for every row i of this thread in this pass, with the offset of its numbers in a head.
  template <class Function>
  __device__ void for_rows(int pass, const Function& function) const {
#pragma unroll
    for (int i = 0; i < Layout::rows; ++i) {
      const int r = row(i, pass);
      if (r < Format::rows && thread() < owners) {
        function(i, r * Format::columns + column());
      }
    }
  }

  __device__ void fetch_state(const Scalar* source, int pass) {
    const bool aligned = rows_aligned(source);
    for_rows(pass, [&](int i, int offset) { stored_[i].load(source + offset, aligned); });
  }

  __device__ void convert_state() {
#pragma unroll
    for (int i = 0; i < Layout::rows && !one_token; ++i) {
      stored_[i].get(state_[i]);
    }
  }

  __device__ void fetch_normaliser(const Scalar* source) {
#pragma unroll
    for (int i = 0; i < normaliser_parts; ++i) {
      const int r = thread() + i * Layout::threads;
      fetched_normaliser_[i] = r < Format::rows ? source[Format::normaliser_offset + r] : Scalar{};
    }
  }
  __device__ void place_normaliser() {
#pragma unroll
    for (int i = 0; i < normaliser_parts; ++i) {
      if (const int r = thread() + i * Layout::threads; r < Format::rows) {
        normaliser_[r] = convert<T>(fetched_normaliser_[i]);
      }
    }
  }

  __device__ void write_state(Scalar* destination, int pass) {
    const bool aligned = rows_aligned(destination);
    for_rows(pass, [&](int i, int offset) {
      if (!one_token) {
        stored_[i].set(state_[i]);
      }
      stored_[i].store(destination + offset, aligned);
    });
  }

  /// Position of token t, counted from 1.
  [[nodiscard]] __device__ std::int64_t position(std::int64_t t) const {
    return 1 + t + (call_.first_positions == nullptr ? 0 : call_.first_positions[b_]);
  }

  /// Whether a token has queries in this call.
  [[nodiscard]] __device__ bool has_output(std::int64_t t) const {
    return t >= call_.already_staged && call_.group > 0;
  }

  /// A token's key, value and first query on their way to registers.
  __device__ void fetch_token(std::int64_t t) {
    const Element* const key = key_row(t);
    const Element* const value = value_row(t);
#pragma unroll
    for (int i = 0; i < input_parts; ++i) {
      const int c = thread() + i * Layout::threads;
      if (c < Map::input_dim + Format::columns) {
        if (has_key(t)) {
          fetched_input_[i] = c < Map::input_dim ? key[c] : value[c - Map::input_dim];
        } else {
          fetched_input_[i] = Element{};
        }
      }
    }
    if (has_output(t)) {
      const Element* const query = query_row(t, 0);
#pragma unroll
      for (int i = 0; i < query_parts; ++i) {
        if (const int c = thread() + i * Layout::threads; c < Map::input_dim) {
          fetched_query_[i] = query[c];
        }
      }
    }
  }

  /// What was fetched goes to shared memory, and is expanded there.
  __device__ void place_token(std::int64_t t) {
#pragma unroll
    for (int i = 0; i < input_parts; ++i) {
      const int c = thread() + i * Layout::threads;
      if (c < Map::input_dim) {
        shared_.key_input[c] = convert<T>(fetched_input_[i]);
      } else if (c < Map::input_dim + Format::columns) {
        shared_.value[c - Map::input_dim] = convert<T>(fetched_input_[i]);
      }
    }
    if (has_output(t)) {
#pragma unroll
      for (int i = 0; i < query_parts; ++i) {
        if (const int c = thread() + i * Layout::threads; c < Map::input_dim) {
          shared_.query_input[c] = convert<T>(fetched_query_[i]);
        }
      }
    }
    __syncthreads();
    if (has_key(t)) {
      expand<Side::key>(shared_.key_input, key_features_, position(t), 0);
    } else {
      for (int r = thread(); r < Format::rows; r += Layout::threads) {
        key_features_[r] = T(0);
      }
    }
    if (has_output(t)) {
      expand<Side::query>(shared_.query_input, query_features_, position(t), Layout::threads - 1);
    }
    __syncthreads();
  }

  /// S += φ(k_t)v_tᵀ for the rows of this pass; z += φ(k_t) in the first. The one token is added by `write_output`.
  __device__ void add_token(int pass) {
    if (pass == 0) {
      for (int r = thread(); r < Format::rows; r += Layout::threads) {
        normaliser_[r] += key_features_[r];
      }
    }
#pragma unroll
    for (int i = 0; i < Layout::rows && !one_token; ++i) {
      if (const int r = row(i, pass); r < Format::rows) {
        add_to_row(state_[i], r);
      }
    }
  }
  __device__ void add_to_row(T (&numbers)[Layout::columns], int r) const {
    const T feature = key_features_[r];
#pragma unroll
    for (int c = 0; c < Layout::columns; ++c) {
      numbers[c] += feature * shared_.value[column() + c];
    }
  }

  [[nodiscard]] __device__ const Element* query_row(std::int64_t t, std::int64_t g) const {
    return call_.query.row(b_, t - call_.already_staged, head_ * call_.group + g);
  }

  __device__ void read_query(std::int64_t t, std::int64_t g) {
    const Element* const query = query_row(t, g);
    for (int i = thread(); i < Map::input_dim; i += Layout::threads) {
      shared_.query_input[i] = convert<T>(query[i]);
    }
  }

  /// By all threads where rows are independent; by thread `one`, where not.
  template <Side side>
  __device__ void expand(const T* x, T* features, std::int64_t position, int one) {
    if constexpr (is_taylor2<Map>) {
      for (int r = thread(); r < Format::rows; r += Layout::threads) {
        features[r] = taylor_feature<side, Map>(x, r);
      }
    } else if (thread() == one) {
      expand_vector<side>(call_.map, x, features, position);
    }
  }

  /// Output of query head g for token t; with several passes, this pass's part of it. With one token, also its sum, and the
  /// way back to memory.
  __device__ void write_output(std::int64_t t, std::int64_t g, int pass, Scalar* destination) {
    if (g > 0) {
      __syncthreads();
      read_query(t, g);
      __syncthreads();
      expand<Side::query>(shared_.query_input, query_features_, position(t), 0);
      __syncthreads();
    }
    T sums[Layout::columns] = {};
#pragma unroll
    for (int i = 0; i < Layout::rows; ++i) {
      if (const int r = row(i, pass); r < Format::rows) {
        if constexpr (one_token) {
          T numbers[Layout::columns];
          stored_[i].get(numbers);
          add_to_row(numbers, r);
          add_product(sums, query_features_[r], numbers);
          stored_[i].set(numbers);
        } else {
          add_product(sums, query_features_[r], state_[i]);
        }
      }
    }
    if (one_token && destination != nullptr) {
      write_state(destination, pass);  // on its way while outputs are summed up
    }
    // Threads of a warp that have the same columns, as a tree.
#pragma unroll
    for (int distance = 16; distance >= Layout::lanes && Layout::sums_in_warps; distance /= 2) {
#pragma unroll
      for (int c = 0; c < Layout::columns; ++c) {
        sums[c] += __shfl_xor_sync(~0u, sums[c], distance);
      }
    }
    if (Layout::sums_in_warps ? thread() % 32 < Layout::lanes : thread() < owners) {
#pragma unroll
      for (int c = 0; c < Layout::columns; ++c) {
        shared_.partial_sums[Layout::sums_in_warps ? thread() / 32 : group()][column() + c] = sums[c];
      }
    }
    constexpr bool uses_denominator = Config::Normaliser::uses_denominator;
    if (uses_denominator && pass == 0) {
      T denominator = 0;
      // Each thread reads what it has written itself in add_token.
      for (int r = thread(); r < Format::rows; r += Layout::threads) {
        denominator += query_features_[r] * normaliser_[r];
      }
      denominator = warp_sum<32>(denominator);
      if (thread() % 32 == 0) {
        shared_.partial_denominators[thread() / 32] = denominator;
      }
    }
    __syncthreads();
    finish(t, g, pass);
  }

  static __device__ void add_product(T (&sums)[Layout::columns], T feature, const T (&numbers)[Layout::columns]) {
#pragma unroll
    for (int c = 0; c < Layout::columns; ++c) {
      sums[c] += feature * numbers[c];
    }
  }

  /// Adds up what the threads have for one output.
  __device__ void finish(std::int64_t t, std::int64_t g, int pass) {
    T denominator = 0;
    if (Config::Normaliser::uses_denominator && pass == 0) {
      for (int w = 0; w < Layout::threads / 32; ++w) {
        denominator += shared_.partial_denominators[w];
      }
    }
    if (keeps_denominators<Config> && pass == 0 && thread() == 0) {
      denominators_of(call_.evicted).put(b_, t - call_.already_staged, head_ * call_.group + g, denominator);
    }
    const std::int64_t query = (t - call_.already_staged) * call_.group + g;
    T* const sums = Layout::passes == 1
                        ? nullptr
                        : call_.sums + ((b_ * call_.heads + head_) * call_.queries() + query) * (Format::columns + 1);
    if (Layout::passes > 1 && pass > 0) {
      denominator = sums[Format::columns];
    }
    for (int c = thread(); c < Format::columns; c += Layout::threads) {
      T sum = 0;
      for (int i = 0; i < Layout::partial_sums; ++i) {
        sum += shared_.partial_sums[i][c];
      }
      if (Layout::passes > 1) {
        if (pass > 0) {
          sum += sums[c];
        }
        if (pass + 1 < Layout::passes) {
          sums[c] = sum;
          continue;
        }
      }
      call_.output.row(b_, t - call_.already_staged, head_ * call_.group + g)[c] =
          convert<Element>(sum * Config::Normaliser::factor(denominator));
    }
    if (Layout::passes > 1 && pass == 0 && thread() == 0) {
      sums[Format::columns] = denominator;
    }
  }

  const Call& call_;
  Shared& shared_;
  std::int64_t b_;
  std::int64_t head_;
  [[no_unique_address]] StepEvicted<Config> evicted_;
  T* normaliser_;      // [rows]
  T* key_features_;    // [rows]
  T* query_features_;  // [rows]
  Scalar fetched_normaliser_[normaliser_parts] = {};
  Element fetched_input_[input_parts] = {};
  Element fetched_query_[query_parts] = {};
  StoredNumbers<Scalar, Layout::columns> stored_[Layout::rows];  // as in memory
  T state_[Layout::rows][Layout::columns];                       // with one token, not in use
};

extern __shared__ __align__(16) std::byte step_shared_memory[];

template <class Config, bool one_token>
inline constexpr int step_blocks = StepCall<Config>::Layout::blocks_per_multiprocessor(one_token);

template <class Config, bool one_token>
__global__ void __launch_bounds__(StepCall<Config>::Layout::threads, step_blocks<Config, one_token>)
    step_states(const __grid_constant__ StepCall<Config> call) {
  StepBlock<Config, one_token>(call, step_shared_memory).run();
}

template <class Config>
Status launch_step(const char* operation, StepCall<Config> call, const Workspace& workspace, const Cuda& on) {
  using Layout = typename StepCall<Config>::Layout;
  Arena arena(workspace);
  call.sums = arena.take<typename StepCall<Config>::T>(call.sum_elements());
  const Grid grid{call.sequences * call.heads, Layout::threads, StepBlock<Config, false>::shared_bytes};
  if constexpr (Layout::keeps_stored) {
    if (call.keys == 1 && call.group == 1 && call.already_staged == 0 && call.accepted_tokens == nullptr) {
      return launch(operation, step_states<Config, true>, grid, on, call);
    }
  }
  return launch(operation, step_states<Config, false>, grid, on, call);
}

}  // namespace jrt::detail::cuda
