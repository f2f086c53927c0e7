// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/threads.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/core/warp_sum.cuh"
#include "jrt/detail/cuda/linear/step_call.cuh"
#include "jrt/detail/cuda/linear/step_tokens.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/workspace.hpp"

/// Decoding. One block works on one head of one sequence and holds its state in registers:
///
///     load S; for every new token t: S += φ(k_t)v_tᵀ; for every query head g of the group: y_tg = φ(q_tg)ᵀS; store S
///
/// so that the state is read and written once. A thread owns a few neighbouring columns of every `groups`-th row; the order
/// of the sums over rows does not depend on the number of tokens or the alignment, so T tokens give bitwise what T steps
/// give, if the state is stored in the type of the sums.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// How a thread keeps its share of the state in registers: as stored, which with 16 bits takes half the registers, so that
/// more loads are in flight; or in the type of the sums, since several keys or queries need it unrounded.
enum class StateRegisters { as_stored, as_summed };

template <class Config, StateRegisters registers, class Part = WholeBlock<StepCall<Config>::Layout::threads>>
class StepBlock {
 public:
  using Call = StepCall<Config>;
  using Format = typename Call::Format;
  using Scalar = typename Format::Scalar;
  using Element = typename Call::Element;
  using Tokens = StepTokens<Config, Part>;
  using T = typename Call::T;
  using Layout = StepLayout<Format, T>;

  /// Shared memory of a block.
  struct Shared {
    typename Tokens::Shared token;
    T partial_sums[Layout::partial_sums][Format::columns];
    T partial_denominators[Layout::threads / 32];
    // Features and z follow: one value per row each, which may need more than 48 KiB.
  };
  static constexpr std::int64_t row_arrays = 3;
  static constexpr std::size_t shared_bytes =
      round_up(sizeof(Shared), sizeof(T) * 4) + sizeof(T) * row_arrays * Format::rows;

  /// Of item `index`, head after head of one sequence after another.
  __device__ StepBlock(const Call& call, unsigned index, std::byte* shared, const Part& part = {})
      : part_(part),
        call_(call),
        shared_(*reinterpret_cast<Shared*>(shared)),
        b_(index / static_cast<unsigned>(call.heads)),
        head_(index % static_cast<unsigned>(call.heads)),
        normaliser_(reinterpret_cast<T*>(shared + round_up(sizeof(Shared), sizeof(T) * 4))),
        tokens_(call, b_, head_, shared_.token, normaliser_ + Format::rows, normaliser_ + 2 * Format::rows, part) {}

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
    tokens_.find_evicted(keys);
    for (int pass = 0; pass < Layout::passes; ++pass) {
      // All loads are issued before waiting for the first.
      if (keys > 0) {
        tokens_.fetch(0);
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
          part_.sync();  // the pass before is done with its last token
        }
        tokens_.place(0);
      }
      convert_state();
      for (std::int64_t t = 0; t < keys; ++t) {
        if (t > 0) {
          if (t <= call_.already_staged || call_.group == 0) {
            part_.sync();  // the token before had no output, for which all wait once they have used it
          }
          tokens_.place(t);
        }
        if (t + 1 < keys) {
          tokens_.fetch(t + 1);
        }
        add_token(pass);
        for (std::int64_t g = 0; t >= call_.already_staged && g < call_.group; ++g) {
          write_output(t, g, pass, destination);
        }
      }
      if (!as_stored && destination != nullptr) {
        write_state(destination, pass);
      }
    }
    part_.sync();
    for (int r = thread(); destination != nullptr && r < Format::rows; r += Layout::threads) {
      destination[Format::normaliser_offset + r] = convert<Scalar>(normaliser_[r]);
    }
  }

 private:
  static constexpr bool as_stored = registers == StateRegisters::as_stored;
  static constexpr bool stores_denominators = has_denominators<Config> && !as_stored;  // it has no registers for that
  static constexpr int normaliser_parts = ceil_div(Format::rows, Layout::threads);     // fetched by a thread
  static constexpr int owners = Layout::groups * Layout::lanes;  // threads that own elements of the state

  [[nodiscard]] __device__ int thread() const { return part_.rank(); }
  [[nodiscard]] __device__ int group() const { return thread() / Layout::lanes; }
  [[nodiscard]] __device__ int column() const { return thread() % Layout::lanes * Layout::columns; }

  __device__ void zero_outputs() {
    const std::int64_t row_elements = call_.group * Format::columns;
    for (std::int64_t i = thread(); i < call_.output.tokens * row_elements; i += Layout::threads) {
      const std::int64_t within = i % row_elements;
      const std::int64_t query_head = head_ * call_.group + within / Format::columns;
      const std::int64_t element = within % Format::columns;
      call_.output.row(b_, i / row_elements, query_head)[element] = Element{};
      if (stores_denominators && element == 0) {
        store_denominator(call_.denominators, b_, i / row_elements, query_head, T(0));
      }
    }
  }

  [[nodiscard]] __device__ int row(int i, int pass) const { return (pass * Layout::rows + i) * Layout::groups + group(); }

  /// Calls `function(i, offset)` for every row i of this thread in this pass, with the offset of its values in a head.
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
    for (int i = 0; i < Layout::rows && !as_stored; ++i) {
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
      if (!as_stored) {
        stored_[i].set(state_[i]);
      }
      stored_[i].store(destination + offset, aligned);
    });
  }

  /// S += φ(k_t)v_tᵀ for the rows of this pass; z += φ(k_t) in the first. A single token is added by `write_output`
  /// instead.
  __device__ void add_token(int pass) {
    if (pass == 0) {
      for (int r = thread(); r < Format::rows; r += Layout::threads) {
        normaliser_[r] += tokens_.key_features()[r];
      }
    }
#pragma unroll
    for (int i = 0; i < Layout::rows && !as_stored; ++i) {
      if (const int r = row(i, pass); r < Format::rows) {
        add_to_row(state_[i], r);
      }
    }
  }
  __device__ void add_to_row(T (&numbers)[Layout::columns], int r) const {
    const T feature = tokens_.key_features()[r];
#pragma unroll
    for (int c = 0; c < Layout::columns; ++c) {
      numbers[c] += feature * tokens_.value()[column() + c];
    }
  }

  /// Writes the output of query head g for token t; with several passes, adds this pass's share of it. With a single token
  /// it also adds the token to the state and stores the state.
  __device__ void write_output(std::int64_t t, std::int64_t g, int pass, Scalar* destination) {
    if (g > 0) {
      tokens_.read_query(t, g);
    }
    T sums[Layout::columns] = {};
#pragma unroll
    for (int i = 0; i < Layout::rows; ++i) {
      if (const int r = row(i, pass); r < Format::rows) {
        if constexpr (as_stored) {
          T numbers[Layout::columns];
          stored_[i].get(numbers);
          add_to_row(numbers, r);
          add_product(sums, tokens_.query_features()[r], numbers);
          stored_[i].set(numbers);
        } else {
          add_product(sums, tokens_.query_features()[r], state_[i]);
        }
      }
    }
    if (as_stored && destination != nullptr) {
      write_state(destination, pass);  // in flight while outputs are reduced
    }
    // Tree reduction over the threads of a warp that have the same columns.
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
        denominator += tokens_.query_features()[r] * normaliser_[r];
      }
      denominator = warp_sum<32>(denominator);
      if (thread() % 32 == 0) {
        shared_.partial_denominators[thread() / 32] = denominator;
      }
    }
    part_.sync();
    finish(t, g, pass);
  }

  static __device__ void add_product(T (&sums)[Layout::columns], T feature, const T (&numbers)[Layout::columns]) {
#pragma unroll
    for (int c = 0; c < Layout::columns; ++c) {
      sums[c] += feature * numbers[c];
    }
  }

  /// Sums the threads' shares of one output.
  __device__ void finish(std::int64_t t, std::int64_t g, int pass) {
    T denominator = 0;
    if (Config::Normaliser::uses_denominator && pass == 0) {
      for (int w = 0; w < Layout::threads / 32; ++w) {
        denominator += shared_.partial_denominators[w];
      }
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
    if (stores_denominators && pass == 0 && thread() == 0) {
      store_denominator(call_.denominators, b_, t - call_.already_staged, head_ * call_.group + g, denominator);
    }
  }

  [[no_unique_address]] Part part_;
  const Call& call_;
  Shared& shared_;
  std::int64_t b_;
  std::int64_t head_;
  T* normaliser_;  // [rows]
  Tokens tokens_;
  Scalar fetched_normaliser_[normaliser_parts] = {};
  StoredNumbers<Scalar, Layout::columns> stored_[Layout::rows];  // as in memory
  T state_[Layout::rows][Layout::columns];                       // unused where values stay as stored
};

extern __shared__ __align__(16) std::byte step_shared_memory[];

template <class Config, StateRegisters registers>
inline constexpr int step_blocks = StepCall<Config>::Layout::blocks_per_multiprocessor(registers ==
                                                                                       StateRegisters::as_stored);

template <class Config, StateRegisters registers>
__global__ void __launch_bounds__(StepCall<Config>::Layout::threads, step_blocks<Config, registers>)
    step_states(const __grid_constant__ StepCall<Config> call) {
  await_previous_kernel();
  let_next_kernel_start();
  StepBlock<Config, registers>(call, blockIdx.x, step_shared_memory).run();
}

template <class Config>
Status launch_step(const char* operation, StepCall<Config> call, const Workspace& workspace, const Cuda& on) {
  using Layout = typename StepCall<Config>::Layout;
  Arena arena(workspace);
  call.sums = arena.take<typename StepCall<Config>::T>(call.sum_elements());
  Grid grid{call.sequences * call.heads, Layout::threads, StepBlock<Config, StateRegisters::as_summed>::shared_bytes};
  if constexpr (Layout::keeps_stored) {
    if (call.keys == 1 && call.group == 1 && call.already_staged == 0 && call.accepted_tokens == nullptr &&
        call.denominators.data == nullptr) {
      constexpr auto kernel = step_states<Config, StateRegisters::as_stored>;
      grid.starts_early = can_start_early<kernel>(on);
      return launch(operation, kernel, grid, on, call);
    }
  }
  constexpr auto kernel = step_states<Config, StateRegisters::as_summed>;
  // A step of a few sequences is shorter than the time between two launches; commits may run beside one another.
  grid.starts_early = call.accepted_tokens == nullptr && can_start_early<kernel>(on);
  return launch(operation, kernel, grid, on, call);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
