// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/sm90/layout.cuh"
#include "jrt/detail/cuda/window/sm90/outputs.cuh"
#include "jrt/detail/cuda/window/sm90/weights.cuh"
#include "jrt/detail/cuda/window/tile_products.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Four warps that compute the outputs of every `workers`-th tile of queries.
template <WindowConfig Config>
class HopperWindowWorker : private HopperWindowWeights<Config> {
  using Weights = HopperWindowWeights<Config>;
  using typename Weights::Numbers;
  using typename Weights::Softmax;
  using Weights::exponential_;
  using Weights::lane;
  using Weights::run_;
  using Weights::softmax_;
  using Weights::warp_;

 public:
  using Layout = HopperWindowLayout<Config>;
  using Run = HopperWindowRun<Config>;
  using Element = typename Config::Element;
  static constexpr int group_tiles = Layout::group_tiles;

  __device__ HopperWindowWorker(const WindowCall<Config>& call, const Run& run, int worker)
      : Weights(call, run), call_(call), worker_(worker) {}

  __device__ void output_all() {
    int released = 0;
    Place released_place;
    place_ = Place{}.after(worker_);
    for (int turn = 0; turn * Layout::workers + worker_ < run_.tiles; ++turn) {
      const int i = turn * Layout::workers + worker_;
      const int buffer = Run::buffer(worker_, turn);
      barrier_wait(Layout::query_full + 8 * buffer, turn / Layout::query_buffers % 2);
      if constexpr (Layout::rotates) {
        barrier_wait(Layout::query_ready + 8 * buffer, turn / Layout::query_buffers % 2);
      }
      attend(i, Run::queries(buffer));
      // The copies wait for all workers, so each also releases tiles that it does not use, once they have arrived.
      for (const int last = smaller(i + Layout::workers, run_.key_tiles()); released < last; ++released) {
        if (released >= i + Layout::window_tiles) {
          await_keys(released_place);
        }
        barrier_arrive(Layout::free + 8 * released_place.stage);
        released_place = released_place.after(1);
      }
      write(i, buffer);
      place_ = place_.after(Layout::workers);
    }
  }

 private:
  using Place = RingPlace<Layout::stages>;
  static __device__ void await_keys(const Place& place) {
    barrier_wait(Layout::full + 8 * place.stage, place.parity);
    if constexpr (Layout::rotates) {
      barrier_wait(Layout::ready + 8 * place.stage, place.parity);
    }
  }

  static __device__ MatrixDescriptor descriptor(SharedAddress tile) { return {tile, 16, 1024, Swizzle::bytes_128}; }

  /// Outputs of tile i of queries, not yet divided, and their softmax.
  __device__ void attend(int i, SharedAddress queries) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      softmax_[h] = {};
    }
    output_groups<0>(i, queries);
  }
  template <int first>
  __device__ void output_groups(int i, SharedAddress queries) {
    output_group<first, smaller(group_tiles, Layout::window_tiles - first)>(i, queries);
    if constexpr (first + group_tiles < Layout::window_tiles) {
      output_groups<first + group_tiles>(i, queries);
    }
  }

  /// Adds the contribution of `tiles` tiles of keys, from the first-th of the window on. The products of a stage are issued
  /// without a branch between them.
  template <int first, int tiles>
  __device__ void output_group(int i, SharedAddress queries) {
    float scores[tiles][32];
    SharedAddress stages[tiles];
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      const Place place = place_.after(first + t);
      await_keys(place);
      stages[t] = Run::keys(place.stage);
    }
    wgmma_fence();
    const MatrixDescriptor left_tile = descriptor(queries);
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      const MatrixDescriptor right_tile = descriptor(stages[t]);
#pragma unroll
      for (int k = 0; k < Config::head_dim / 16; ++k) {
        const int at = k / 4 * Layout::panel_bytes + k % 4 * 32;
        const std::uint64_t left_word = left_tile.after(at).word();
        const std::uint64_t right_word = right_tile.after(at).word();
        if (k == 0) {
          multiply_tiles<Element>(scores[t], left_word, right_word);
        } else {
          add_tiles<Element>(scores[t], left_word, right_word);
        }
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      fence_accumulators(scores[t]);
    }
    LeftFragment weights[tiles][4];
    Weights::template form_weights<first>(i, scores, weights, [&](const float(&factors)[2]) {
      rescale(outputs_, factors);
      rescale(others_, factors);
    });
    if constexpr (first == 0) {
      clear(outputs_);
      clear(others_);
    }
    if constexpr (Layout::carries && first + tiles == Layout::window_tiles) {
      load_before(i);
    }
    wgmma_fence();
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      const MatrixDescriptor values = descriptor(stages[t] + Layout::key_bytes);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int at = c * 16 * Layout::panel_row;
        WarpgroupProduct<Layout::first_columns>::template add<Element>(outputs_, weights[t][c], values.after(at).word(), 1);
        if constexpr (Layout::value_panels > 1) {
          WarpgroupProduct<Layout::other_columns>::template add<Element>(others_, weights[t][c],
                                                                         values.after(at + Layout::panel_bytes).word(), 1);
        }
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
    fence_accumulators(outputs_);
    if constexpr (Layout::value_panels > 1) {
      fence_accumulators(others_);
    }
  }

  /// Asks for the denominators of the softmax carry-in, when the scores have left the registers.
  __device__ void load_before(int i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int token = run_.first_token + i * Layout::tile + 16 * warp_ + 8 * h + lane() / 4;
      before_[h] = token < run_.tokens ? call_.before.denominator(run_.batch_row, run_.row + token, run_.query_head) : 0.0F;
    }
  }

  template <int count>
  static __device__ void clear(float (&outputs)[count]) {
#pragma unroll
    for (int n = 0; n < count; ++n) {
      outputs[n] = 0;
    }
  }
  template <int count>
  static __device__ void rescale(float (&outputs)[count], const float (&factors)[2]) {
#pragma unroll
    for (int n = 0; n < count; ++n) {
      outputs[n] *= factors[n / 2 % 2];
    }
  }

  /// Writes the outputs of tile i, through shared memory.
  __device__ void write(int i, int buffer) {
    const SharedAddress rows = Run::outputs(buffer);
    const int token = run_.first_token + i * Layout::tile + 16 * warp_;
    const int count = run_.tokens - token;
    float inverse[2];
    float carried[2];  // factors of the softmax carry-in
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Softmax softmax = softmax_[h];
      float factor = 1;
      if constexpr (Layout::carries) {
        // Its largest score is 0. Of the four lanes of a row, one has its denominator and ε.
        factor = softmax.absorb(fmaxf(softmax.maximum, 0.0F), exponential_);
        carried[h] = softmax.weight(0, exponential_);
        softmax.denominator += lane() % 4 == 0 ? carried[h] * (before_[h] + static_cast<float>(Config::epsilon)) : 0.0F;
      }
      softmax.denominator += __shfl_xor_sync(~0u, softmax.denominator, 1);
      softmax.denominator += __shfl_xor_sync(~0u, softmax.denominator, 2);
      const float reciprocal = approximate_reciprocal(softmax.denominator);
      inverse[h] = factor * reciprocal;
      if constexpr (Layout::carries) {
        carried[h] *= before_[h] * reciprocal;
      }
      if (const int row = lane() / 4 + 8 * h; lane() % 4 == 0 && row < count) {
        call_.set_log_sum_exp(run_.batch_row, run_.row + token + row, run_.query_head, softmax.log_sum(exponential_));
      }
    }
    rescale(outputs_, inverse);
    if constexpr (Layout::carries) {
      add_panel(outputs_, rows, carried);
    }
    store_panel(rows, outputs_);
    if constexpr (Layout::value_panels > 1) {
      rescale(others_, inverse);
      if constexpr (Layout::carries) {
        add_panel(others_, rows + Layout::panel_bytes, carried);
      }
      store_panel(rows + Layout::panel_bytes, others_);
    }
    __syncwarp();
    store_window_outputs(call_, run_, token, 16 * warp_, buffer);
  }

  /// Address of this lane's row of the first 16x16 block of a panel, of 8x8 blocks as `store_blocks` takes them; that of
  /// block c is `first ^ 32c`.
  [[nodiscard]] __device__ SharedAddress block_row(SharedAddress rows) const {
    const int lane = static_cast<int>(computed_afresh(static_cast<unsigned>(Weights::lane())));
    const int block = lane / 8;
    const int row = 16 * warp_ + block % 2 * 8 + lane % 8;
    return rows + row * Layout::panel_row + ((block / 2) ^ (row % 8)) * 16;
  }

  /// Adds the outputs so far. Where nothing was summed, they are 0, whatever is stored.
  template <int count>
  __device__ void add_panel(float (&outputs)[count], SharedAddress rows, const float (&factors)[2]) const {
    const SharedAddress first = block_row(rows);
#pragma unroll
    for (int c = 0; c < count / 8; ++c) {
      Pair pairs[4];
      load_blocks(pairs, SharedNumbers::at(first ^ (32 * c)));
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const Pair pair = before_[p % 2] == 0 ? 0 : pairs[p];
        outputs[8 * c + 2 * p] += number_of<Element>(pair, 0) * factors[p % 2];
        outputs[8 * c + 2 * p + 1] += number_of<Element>(pair, 1) * factors[p % 2];
      }
    }
    __syncwarp();  // before other lanes store these rows
  }

  template <int count>
  __device__ void store_panel(SharedAddress rows, const float (&outputs)[count]) const {
    const SharedAddress first = block_row(rows);
#pragma unroll
    for (int c = 0; c < count / 8; ++c) {
      Pair pairs[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        pairs[p] = Numbers::rounded(outputs[8 * c + 2 * p], outputs[8 * c + 2 * p + 1]);
      }
      store_blocks(first ^ (32 * c), pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }

  const WindowCall<Config>& call_;
  int worker_;
  Place place_;  // of the first tile of keys that this tile of queries sees
  float outputs_[Layout::first_columns / 2];
  float others_[Layout::other_columns / 2];  // of the second panel
  float before_[2];                          // denominators of the softmax carry-in of this lane's two rows
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
