// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_state.cuh"
#include "jrt/detail/cuda/linear/sm90/schedule.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The four warps of a block that keep the state of a pass: those of the prefill (state_warps.cuh has the pictures). In
/// pass `keys` features are multiplied by f of their token, and the column of c is a product of its own (mma.sync), since
/// it differs from token to token:  r += Σ f·φ(q) c, c in two terms in even and odd columns.
template <class Config, BackwardPass pass>
class BackwardStateWarps : public BackwardState<Config, pass> {
 public:
  using Base = BackwardState<Config, pass>;
  using typename Base::Layout, typename Base::Packing, typename Base::Element, typename Base::Numbers;

  __device__ BackwardStateWarps()
      : shifted_lane_((lane() + 4 * (warp_ == 0 ? 4 : warp_)) % 32),
        input_row_(Layout::inputs + (lane() / 16 * 8 + lane() % 8) * Layout::input_row +
                   ((lane() / 8 % 2 * 16) ^ (lane() / 4 % 2 * 16))) {}

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
        this->update_means(n);
      }
      this->publish(Layout::states + n % 2 * PublishedState::bytes, Layout::means + n % 4 * Base::mean_bytes);
      if constexpr (Layout::centred) {
        this->publish_moments(Layout::moments + n % 2 * PublishedMoments::bytes);
      }
      // The first products are in flight while the fence delays the others.
      add<0, Packing::row_tiles>();
      async_proxy_fence();
      barrier_arrive(Layout::state_full + 8 * (n % 2));
      add<Packing::row_tiles, all_products>();
      to_next_chunk(run, n, chunks);
    }
  }

  /// Index of the next chunk, among all chunks of the block.
  [[nodiscard]] __device__ int chunk() const { return chunk_; }

 private:
  using Base::lane, Base::warp_, Base::state_, Base::column_;
  static constexpr int depth_steps = Layout::chunk / 16;
  static constexpr int all_products = depth_steps * Packing::row_tiles;
  static constexpr int fragments = 2;  // in use by the matrix unit at a time
  static constexpr Pair one_one = Numbers::power_of_two(0);

  static __device__ int chunks_of(const TokenRun& run) { return (run.tokens + Layout::chunk - 1) / Layout::chunk; }
  /// Tokens of a run from its n-th chunk on, in the order of the pass.
  static __device__ int present(const TokenRun& run, int n, int chunks) {
    return run.tokens - (Layout::queries ? n : chunks - 1 - n) * Layout::chunk;
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
    if (const int tokens = present(run, n, chunks);
        Layout::queries && tokens < Layout::chunk && warp_ == 0 && lane() / 4 == 0) {
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
    for (int at = tokens * Layout::input_row + thread * 16; at < Layout::input_tile;
         at += Layout::state_warp_threads * 16) {
      store_pairs(SharedNumbers::at(Layout::inputs + stage * Layout::input_tile + at), zeros);
    }
#pragma unroll 1
    for (int at = tokens * Layout::value_row + thread * 16; at < Layout::value_tile;
         at += Layout::state_warp_threads * 16) {
      store_pairs(SharedNumbers::at(Layout::values + stage * Layout::value_tile + at), zeros);
    }
    async_proxy_fence();
    named_barrier(1, Layout::state_warp_threads);
  }

  int chunk_ = 0;
  int shifted_lane_;
  SharedAddress input_row_;  // of stage 0, for ldmatrix
  Pair next_inputs_[4];
  Pair inputs_[4];
  Pair shifted_[4];
  Pair factors_[2];      // pass `keys`: f
  RightFragment terms_;  // pass `keys`: c
  LeftFragment features_[fragments];
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
