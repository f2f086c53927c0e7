// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/schedule.cuh"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The four warps of a block that keep the state of a pass: those of the prefill (state_warps.cuh has the pictures), with
/// these differences:
///
///     rows are published in the order of PublishedState;
///     pass queries: S − z·mᵀ is published, m the mean of v so far (BackwardLayout::centred), z apart as PublishedMoments;
///     pass keys:    features are multiplied by f of their token; the column of c is a product of its own (mma.sync), since
///                   it differs from token to token:  r += Σ f·φ(q) c, c in two terms in even and odd columns.
template <class Config, BackwardPass pass>
class BackwardStateWarps {
 public:
  using Layout = BackwardLayout<Config, pass>;
  using Packing = typename Layout::Packing;
  using Format = StateFormatOf<Config>;
  using Element = typename Config::Element;
  using Numbers = HopperNumbers<Element>;

  __device__ BackwardStateWarps()
      : warp_(warp_uniform(static_cast<int>(threadIdx.x) / 32 % 4)),
        shifted_lane_((lane() + 4 * (warp_ == 0 ? 4 : warp_)) % 32),
        input_row_(Layout::inputs + (lane() / 16 * 8 + lane() % 8) * Layout::input_row +
                   ((lane() / 8 % 2 * 16) ^ (lane() / 4 % 2 * 16))) {}

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < Packing::row_tiles; ++m) {
#pragma unroll
      for (float& number : state_[m]) {
        number = 0;
      }
#pragma unroll
      for (float& number : column_[m].values) {
        number = 0;
      }
    }
  }

  /// Reads a state, or the gradient of one, in the state's format; empty if there is none.
  template <class Scalar>
  __device__ void read(const Scalar* state) {
    clear();
    if (state != nullptr) {
      add_stored(state);
    }
  }
  /// Adds a state in its format.
  template <class Scalar>
  __device__ void add_stored(const Scalar* state) {
    const bool pairs_aligned = reinterpret_cast<std::uintptr_t>(state) % (2 * sizeof(Scalar)) == 0;
    for_rows([&](int m, int h, int r, float scale) {
      if (r < 0) {
        return;
      }
      const float factor = 1 / scale;
#pragma unroll
      for (int j = 0; j < Layout::columns / 8; ++j) {
        const Scalar* const from = state + r * Format::columns + 8 * j + lane() % 4 * 2;
        Vector<Scalar, 2> pair;
        if (pairs_aligned) {
          pair = load_vector<2>(from);
        } else {
          pair[0] = from[0];
          pair[1] = from[1];
        }
        state_[m][4 * j + 2 * h] += convert<float>(pair[0]) * factor;
        state_[m][4 * j + 2 * h + 1] += convert<float>(pair[1]) * factor;
      }
      const float z = convert<float>(state[Format::normaliser_offset + r]) * factor;
      if constexpr (Layout::queries) {
        state_[m][32 + 2 * h] += z;
        state_[m][33 + 2 * h] += z;
      } else {
        column_[m].values[2 * h] += z;
      }
    });
  }

  __device__ void write(float* state) {
    for_rows([&](int m, int h, int r, float scale) {
      if (r < 0) {
        return;
      }
#pragma unroll
      for (int j = 0; j < Layout::columns / 8; ++j) {
        store_vector(state + r * Format::columns + 8 * j + lane() % 4 * 2,
                     Vector<float, 2>{{state_[m][4 * j + 2 * h] * scale, state_[m][4 * j + 2 * h + 1] * scale}});
      }
      if (lane() % 4 == 0) {
        state[Format::normaliser_offset + r] = normaliser(m, h) * scale;
      }
    });
  }

  /// Sums a run of chunks. `refill()` is called for each once its first products are in flight.
  template <class Refill>
  __device__ void accumulate(const TokenRun& run, const Refill& refill) {
    const int chunks = chunks_of(run);
    if (chunks > 0) {
      await_inputs(run, 0);
    }
    for (int n = 0; n < chunks; ++n) {
      add<0, Packing::row_tiles>();
      refill();
      add<Packing::row_tiles, all_products>();
      to_next_chunk(run, n, chunks);
      barrier_arrive(Layout::summed_free + 8 * ((chunk_ - 1) % Layout::stages));
    }
  }

  /// For each chunk of the block's own run: publishes the state before it, then adds it.
  __device__ void publish_and_accumulate(const TokenRun& run) {
    const int chunks = chunks_of(run);
    if (chunks > 0) {
      await_inputs(run, 0);
    }
    for (int n = 0; n < chunks; ++n) {
      if (n >= 2) {
        barrier_wait(Layout::state_free + 8 * (n % 2), (n / 2 - 1) % 2);
      }
      if constexpr (Layout::centred) {
        update_means(n);
      }
      publish(Layout::states + n % 2 * PublishedState::bytes, Layout::means + n % 4 * mean_bytes);
      if constexpr (Layout::centred) {
        publish_moments(Layout::moments + n % 2 * PublishedMoments::bytes);
      }
      // The first products are in flight while the fence delays the others.
      add<0, Packing::row_tiles>();
      async_proxy_fence();
      barrier_arrive(Layout::state_full + 8 * (n % 2));
      add<Packing::row_tiles, all_products>();
      to_next_chunk(run, n, chunks);
    }
  }

  /// Publishes the state once, for warps that are synchronised otherwise.
  __device__ void publish_at(SharedAddress to) {
    publish(to, 0);
    async_proxy_fence();
  }

  /// Index of the next chunk, among all chunks of the block.
  [[nodiscard]] __device__ int chunk() const { return chunk_; }

 private:
  static constexpr int depth_steps = Layout::chunk / 16;
  static constexpr int all_products = depth_steps * Packing::row_tiles;
  static constexpr int fragments = 2;  // in use by the matrix unit at a time
  static constexpr int mean_bytes = Layout::columns * 4;
  static constexpr Pair one_one = Numbers::power_of_two(0);

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ int chunks_of(const TokenRun& run) { return (run.tokens + Layout::chunk - 1) / Layout::chunk; }
  /// Tokens of a run from its n-th chunk on, in the order of the pass.
  static __device__ int present(const TokenRun& run, int n, int chunks) {
    return run.tokens - (Layout::queries ? n : chunks - 1 - n) * Layout::chunk;
  }

  [[nodiscard]] __device__ float normaliser(int m, int h) const {
    if constexpr (Layout::queries) {
      return state_[m][32 + 2 * h];
    } else {
      return column_[m].values[2 * h] + column_[m].values[2 * h + 1];
    }
  }

  /// Calls `function(tile, h, row of the format or -1, its scale)` for the six rows of which this lane has values. In the
  /// packing all factors are on the query's side: of φ(q) itself, and so of R, they are left out here.
  template <class Function>
  __device__ void for_rows(const Function& function) {
#pragma unroll
    for (int m = 0; m < Packing::row_tiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const TaylorRow row = Packing::row(m, warp_, h, lane() / 4);
        const float weight = row.first < 0 ? 1.0F
                             : row.second < 0 ? 0.25F
                                              : (row.first == row.second ? 1.0F / 32 : 1.0F / 16);
        const float scale = Packing::format_scale(row);
        function(m, h, Packing::format_row(row), Layout::queries ? scale : weight / scale);
      }
    }
  }

  /// Loads the inputs of 16 tokens; `take_inputs` makes them current.
  __device__ void load_next_inputs(int stage, int step) {
    load_blocks_transposed(next_inputs_,
                           SharedNumbers::at(input_row_ + stage * Layout::input_tile + step * 16 * Layout::input_row));
  }
  __device__ void take_inputs(int stage, int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      inputs_[i] = next_inputs_[i];
      shifted_[i] = __shfl_sync(~0u, inputs_[i], shifted_lane_);
    }
    if constexpr (!Layout::queries) {
      const SharedAddress token = Layout::records + stage * TokenRecord::bytes + (16 * step + lane() % 4 * 2) * 2;
      const SharedAddress term = token + (lane() / 4 % 2 == 0 ? TokenRecord::high : TokenRecord::low);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        factors_[i] = load_pair(token + TokenRecord::factor_pairs + 16 * i);
        if constexpr (Layout::normalised) {
          terms_.pairs[i] = load_pair(term + 16 * i);
        }
      }
    }
  }

  /// One factor of every product; pass `keys` multiplies it by f.
  [[nodiscard]] __device__ Pair weighted(int i) const {
    return Layout::queries ? inputs_[i] : Numbers::product(inputs_[i], factors_[i / 2]);
  }

  /// Features of this warp's rows of tile m.
  template <int m>
  __device__ void multiply_inputs(LeftFragment& features) const {
    Pair(&f)[4] = features.pairs;
    if constexpr (m == 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        f[i] = Numbers::product(weighted(i), warp_ == 0 ? inputs_[i] : shifted_[i]);
      }
    } else if constexpr (m == 1) {
      f[0] = Numbers::product(weighted(0), shifted_[1]);
      f[2] = Numbers::product(weighted(2), shifted_[3]);
      if (warp_ == 0) {
        const bool low = lane() / 4 < 4;
        f[1] = Numbers::product(low ? weighted(0) : weighted(1), low ? shifted_[0] : shifted_[1]);
        f[3] = Numbers::product(low ? weighted(2) : weighted(3), low ? shifted_[2] : shifted_[3]);
      } else {
        f[1] = Numbers::product(weighted(1), shifted_[0]);
        f[3] = Numbers::product(weighted(3), shifted_[2]);
      }
    } else if (warp_ == 0) {
      f[0] = Numbers::product(weighted(0), inputs_[1]);
      f[2] = Numbers::product(weighted(2), inputs_[3]);
      f[1] = lane() / 4 == 0 ? (Layout::queries ? one_one : factors_[0]) : 0;
      f[3] = lane() / 4 == 0 ? (Layout::queries ? one_one : factors_[1]) : 0;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        f[i] = warp_ == 1 ? weighted(i) : 0;
      }
    }
  }

  /// Issues products [first, end) of a chunk, three for every 16 tokens. Expects the first 16 in `inputs_`.
  template <int first, int end>
  __device__ void add() {
    const int stage = chunk_ % Layout::stages;
    if constexpr (first < end) {
      constexpr int step = first / Packing::row_tiles;
      constexpr int m = first % Packing::row_tiles;
      LeftFragment& features = features_[first % fragments];
      wgmma_wait<fragments - 1>();
      multiply_inputs<m>(features);
      wgmma_fence();
      if constexpr (Layout::queries) {
        WarpgroupProduct<72>::template add<Element>(state_[m], features, values_and_ones<Layout>(stage, step).word(), 1);
      } else {
        const MatrixDescriptor right(Layout::values + stage * Layout::value_tile + step * 16 * Layout::value_row, 0,
                                     8 * Layout::value_row, Swizzle::bytes_128);
        WarpgroupProduct<64>::template add<Element>(state_[m], features, right.word(), 1);
      }
      wgmma_commit();
      if constexpr (!Layout::queries && Layout::normalised) {
        multiply_add(column_[m], features, terms_);
      }
      if constexpr (m == 1 && step + 1 < depth_steps) {
        load_next_inputs(stage, step + 1);
      } else if constexpr (m == 2 && step + 1 < depth_steps) {
        take_inputs(stage, step + 1);
      }
      add<first + 1, end>();
    }
  }

  __device__ void await_inputs(const TokenRun& run, int n) {
    const int stage = chunk_ % Layout::stages;
    barrier_wait(Layout::full + 8 * stage, chunk_ / Layout::stages % 2);
    if (const int tokens = present(run, n, chunks_of(run)); tokens < Layout::chunk) {
      repair(stage, tokens);
    }
    load_next_inputs(stage, 0);
    take_inputs(stage, 0);
  }

  /// Called when all products of chunk n are in flight: loads the first inputs of the next chunk, if there is one, then
  /// finishes chunk n.
  __device__ void to_next_chunk(const TokenRun& run, int n, int chunks) {
    ++chunk_;
    if (n + 1 < chunks) {
      await_inputs(run, n + 1);
    }
    wgmma_wait<0>();
#pragma unroll
    for (auto& tile : state_) {
      fence_accumulators(tile);
    }
    // Zeroed positions past the last token have been counted. (In pass `keys` their f is 0.)
    if (const int tokens = present(run, n, chunks); Layout::queries && tokens < Layout::chunk && warp_ == 0 && lane() / 4 == 0) {
      const auto rows_past_end = static_cast<float>(Layout::chunk - tokens);
      state_[2][Layout::width / 2 - 2] -= rows_past_end;
      state_[2][Layout::width / 2 - 1] -= rows_past_end;
    }
  }

  /// Zeroes what the copy engine has loaded from past the last token (it may be anything) in the summed tiles.
  static __device__ void repair(int stage, int tokens) {
    const Pair zeros[4] = {};
    const int thread = static_cast<int>(threadIdx.x) % Layout::state_warp_threads;
#pragma unroll 1
    for (int at = tokens * Layout::input_row + thread * 16; at < Layout::input_tile; at += Layout::state_warp_threads * 16) {
      store_pairs(SharedNumbers::at(Layout::inputs + stage * Layout::input_tile + at), zeros);
    }
#pragma unroll 1
    for (int at = tokens * Layout::value_row + thread * 16; at < Layout::value_tile; at += Layout::state_warp_threads * 16) {
      store_pairs(SharedNumbers::at(Layout::values + stage * Layout::value_tile + at), zeros);
    }
    async_proxy_fence();
    named_barrier(1, Layout::state_warp_threads);
  }

  // -- the mean of v ------------------------------------------------------------------------------------------------
  //
  // Warp 0 has the row of the constant feature, Σ v and the count. For publication n it stores the mean at n % 4: from the
  // fourth on two publications early, so that the barriers of the buffers, for which all wait anyway, also order these
  // accesses; the first three are fresh and take a barrier.

  __device__ void update_means(int n) const {
    if (n >= 1) {
      store_mean((n + 2) % 4);
    }
    if (n < 3) {
      store_mean(n % 4);
      named_barrier(1, Layout::state_warp_threads);
    }
  }
  __device__ void store_mean(int slot) const {
    if (warp_ == 0 && lane() < 4) {
      const float count = normaliser(2, 1);
      const float factor = count > 0 ? approximate_reciprocal(count) : 0.0F;
#pragma unroll
      for (int j = 0; j < Layout::columns / 8; ++j) {
        store_floats(Layout::means + slot * mean_bytes + (8 * j + lane() * 2) * 4, state_[2][4 * j + 2] * factor,
                     state_[2][4 * j + 3] * factor);
      }
    }
  }
  static __device__ void store_floats(SharedAddress to, float first, float second) {
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" : : "r"(to), "f"(first), "f"(second) : "memory");
  }
  static __device__ float2 load_floats(SharedAddress from) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(from) : "memory");
    return pair;
  }

  /// Stores the state, rounded, as PublishedState.
  __device__ void publish(SharedAddress state, SharedAddress means) const {
    const SharedAddress row = state + lane() / 8 % 2 * PublishedState::group + lane() / 16 * 128 + lane() % 8 * 16;
#pragma unroll
    for (int m = 0; m < Packing::row_tiles; ++m) {
      if (64 * m + 16 * warp_ >= Packing::rows) {
        continue;
      }
      const SharedAddress to = row + PublishedState::place(m, warp_) * 2 * PublishedState::group;
      const float first = normaliser(m, 0);
      const float second = normaliser(m, 1);
#pragma unroll
      for (int j = 0; j < Layout::columns / 8; j += 2) {
        Pair pairs[4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float2 mean{0, 0};
          if constexpr (Layout::centred) {
            mean = load_floats(means + (8 * (j + i) + lane() % 4 * 2) * 4);
          }
          const float* const numbers = state_[m] + 4 * (j + i);
          pairs[2 * i] = Numbers::rounded(numbers[0] - first * mean.x, numbers[1] - first * mean.y);
          pairs[2 * i + 1] = Numbers::rounded(numbers[2] - second * mean.x, numbers[3] - second * mean.y);
        }
        store_blocks(to + j * 128, pairs[0], pairs[1], pairs[2], pairs[3]);
      }
      if constexpr (!Layout::queries) {
        store_blocks(to + Layout::columns / 8 * 128, two_terms(first), two_terms(second));
      }
    }
  }
  /// Each product of two inputs is on both sides of the diagonal: lane 0 of a row's four stores one of them.
  __device__ void publish_moments(SharedAddress moments) const {
#pragma unroll
    for (int m = 0; m < Packing::row_tiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const TaylorRow row = Packing::row(m, warp_, h, lane() / 4);
        if (row.second >= 0) {
          const bool first = lane() % 4 == 0;
          const SharedAddress to =
              PublishedMoments::at(moments, first ? row.first : row.second, first ? row.second : row.first);
          const auto rounded = static_cast<std::uint16_t>(Numbers::rounded(normaliser(m, h), 0));
          asm volatile("st.shared.u16 [%0], %1;" : : "r"(to), "h"(rounded) : "memory");
        } else if (m == 2 && row.first >= 0) {
          store_pair(SharedNumbers::at(moments + PublishedMoments::linear + row.first * 4),
                     __float_as_uint(4 * normaliser(m, h)));
        }
      }
    }
  }
  static __device__ Pair two_terms(float number) {
    const float high = as_floats(Numbers::rounded(number, 0)).x;
    return Numbers::rounded(high, number - high);
  }

  int chunk_ = 0;
  int warp_;
  int shifted_lane_;
  SharedAddress input_row_;  // of stage 0, for ldmatrix
  float state_[Packing::row_tiles][Layout::width / 2];
  Accumulator column_[Packing::row_tiles];  // pass `keys`: r
  Pair next_inputs_[4];
  Pair inputs_[4];
  Pair shifted_[4];
  Pair factors_[2];      // pass `keys`: f
  RightFragment terms_;  // pass `keys`: c
  LeftFragment features_[fragments];
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
