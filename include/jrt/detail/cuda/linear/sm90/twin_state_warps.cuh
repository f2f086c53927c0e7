// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/wide_product.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/linear/sm90/key_features.cuh"
#include "jrt/detail/cuda/linear/sm90/repair.cuh"
#include "jrt/detail/cuda/linear/sm90/schedule.cuh"
#include "jrt/detail/cuda/linear/sm90/twin_layout.cuh"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// One of the two groups of state warps of a block with TwinLayout: like StateWarps, but with tile `group` of the state and
/// a part of tile 2. `ring` left operands are in use by the matrix unit at a time. Both groups process the same chunks and
/// do not wait for one another, except where a chunk is repaired.
template <class Config, int group, int ring>
class TwinStateWarps : KeyFeatures<Config, TwinLayout<Config>> {
 public:
  using Layout = TwinLayout<Config>;
  using Packing = typename Layout::Packing;
  using Format = StateFormatOf<Config>;
  using Numbers = HopperNumbers<typename Config::Element>;

  __device__ TwinStateWarps() : Features(warp_uniform(static_cast<int>(threadIdx.x) / 32 % 4)) {}

  __device__ void clear() {
#pragma unroll
    for (float& number : own_) {
      number = 0;
    }
#pragma unroll
    for (float& number : shared_) {
      number = 0;
    }
  }

  /// Reads S and z in the state's format.
  template <class Scalar, class NormaliserScalar>
  __device__ void read(const Scalar* state, const NormaliserScalar* normaliser, int /*column*/) {
    const bool pairs_aligned = reinterpret_cast<std::uintptr_t>(state) % (2 * sizeof(Scalar)) == 0;
    for_rows([&](auto& sums, int first, int h, int r, float scale) {
      const bool present = r >= 0;
      const float factor = 1 / scale;
      constexpr int blocks = sizeof(sums) / sizeof(float[4]);
#pragma unroll
      for (int j = 0; j < blocks; ++j) {
        float values[2] = {};
        if (const int c = first + 8 * j; c < Layout::columns) {
          if (present) {
            const Scalar* const from = state + r * Format::columns + c + lane() % 4 * 2;
            const Vector<Scalar, 2> pair = pairs_aligned ? load_vector<2>(from) : Vector<Scalar, 2>{{from[0], from[1]}};
            values[0] = convert<float>(pair[0]);
            values[1] = convert<float>(pair[1]);
          }
        } else if (present) {
          values[0] = values[1] = convert<float>(normaliser[r]);
        }
        sums[4 * j + 2 * h] = values[0] * factor;
        sums[4 * j + 2 * h + 1] = values[1] * factor;
      }
    });
  }

  /// Writes this group's rows of S and z.
  template <class Scalar>
  __device__ void write(Scalar* state, int /*column*/) {
    const bool pairs_aligned = reinterpret_cast<std::uintptr_t>(state) % (2 * sizeof(Scalar)) == 0;
    for_rows([&](auto& sums, int first, int h, int r, float scale) {
      if (r < 0) {
        return;
      }
      constexpr int blocks = sizeof(sums) / sizeof(float[4]);
#pragma unroll
      for (int j = 0; j < blocks; ++j) {
        const Vector<Scalar, 2> pair{
            {convert<Scalar>(sums[4 * j + 2 * h] * scale), convert<Scalar>(sums[4 * j + 2 * h + 1] * scale)}};
        if (const int c = first + 8 * j; c < Layout::columns) {
          Scalar* const to = state + r * Format::columns + c + lane() % 4 * 2;
          if (pairs_aligned) {
            store_vector(to, pair);
          } else {
            to[0] = pair[0];
            to[1] = pair[1];
          }
        } else if (lane() % 4 == 0) {
          state[Format::normaliser_offset + r] = pair[0];
        }
      }
    });
  }

  /// Sums the chunks of a run. `refill()` is called for each chunk once its first products are in flight.
  template <class Refill>
  __device__ void accumulate(const TokenRun& run, const Refill& refill) {
    int left = run.tokens;
    if (left > 0) {
      await_keys(run, 0, left);
    }
    for (int n = 0; left > 0; ++n, left -= Layout::chunk) {
      add<0, 2>();
      refill();
      add<2, all_products>();
      to_next_chunk(run, n, left);
      barrier_arrive(Layout::keys_free + 8 * ((chunk_ - 1) % Layout::stages));
    }
  }

  /// For each chunk of the block's own run: publishes the state before it, then adds it.
  __device__ void publish_and_accumulate(const TokenRun& run) {
    int left = run.tokens;
    if (left > 0) {
      await_keys(run, 0, left);
    }
    for (int n = 0; left > 0; ++n, left -= Layout::chunk) {
      if (n >= 2) {
        barrier_wait(Layout::state_free + 8 * (n % 2), (n / 2 - 1) % 2);
      }
      publish(n % 2);
      // The first products are in flight while the fence delays the others.
      add<0, 2>();
      announce(n % 2);
      add<2, all_products>();
      to_next_chunk(run, n, left);
    }
  }

  /// Publishes a state that no longer changes.
  __device__ void publish_last() {
    publish(0);
    announce(0);
  }

  /// Index of the next chunk, among all chunks of the block.
  [[nodiscard]] __device__ int chunk() const {
    return chunk_;
  }

 private:
  using Features = KeyFeatures<Config, TwinLayout<Config>>;
  using Features::lane;
  using Features::warp_;

  static constexpr int depth_steps = Layout::chunk / 16;
  static constexpr int all_products = depth_steps * 2;
  static constexpr int shared_tile = 2;
  static constexpr int shared_first = group * Layout::block_columns;  // column
  static constexpr int shared_columns = group == 0 ? Layout::block_columns : Layout::width - Layout::block_columns;

  /// Calls `function(sums, their first column, h, row of the format or -1, its scale)` for the rows of which this lane has
  /// values.
  template <class Function>
  __device__ void for_rows(const Function& function) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto call = [&](int m, auto& sums, int first) {
        const TaylorRow row = Packing::row(m, warp_, h, lane() / 4);
        function(sums, first, h, Packing::format_row(row), Packing::format_scale(row));
      };
      call(group, own_, 0);
      call(shared_tile, shared_, shared_first);
    }
  }

  /// Issues products [first, end) of a chunk, two for 16 tokens. Expects the keys of the first 16 in the features' inputs.
  template <int first, int end>
  __device__ void add() {
    const int stage = chunk_ % Layout::stages;
    if constexpr (first < end) {
      using Element = typename Config::Element;
      constexpr int step = first / 2;
      constexpr bool own = first % 2 == 0;
      LeftFragment& features = features_[first % ring];
      wgmma_wait<ring - 1>();
      this->template multiply_inputs<own ? group : shared_tile>(features);
      wgmma_fence();
      if constexpr (own) {
        WarpgroupProduct<Layout::width>::template add<Element>(own_, features, Layout::right_operand(stage, step, 0).word(),
                                                               1);
      } else {
        WarpgroupProduct<shared_columns>::template add<Element>(shared_, features,
                                                                Layout::right_operand(stage, step, shared_first).word(), 1);
      }
      wgmma_commit();
      // Loads the keys of the next 16 tokens early: this step no longer needs shifted halves.
      if constexpr (step + 1 < depth_steps) {
        if constexpr (own) {
          this->load_next_inputs(stage, step + 1);
        } else {
          this->take_inputs();
        }
      }
      add<first + 1, end>();
    }
  }

  /// Waits for chunk n of a run, which has `left` tokens from this chunk on, and loads the keys of its first 16 tokens.
  __device__ void await_keys(const TokenRun& run, int n, int left) {
    const int stage = chunk_ % Layout::stages;
    barrier_wait(Layout::keys_full + 8 * stage, chunk_ / Layout::stages % 2);
    if (left < Layout::chunk || (Config::Padding::keeps_padded_keys && run.zero_keys > n * Layout::chunk)) {
      repair<Layout>(stage, left, Config::Padding::keeps_padded_keys ? run.zero_keys - n * Layout::chunk : 0);
    }
    this->load_next_inputs(stage, 0);
    this->take_inputs();
  }

  /// Called when all products of chunk n are in flight: loads the first keys of the next chunk, if there is one, then
  /// finishes chunk n.
  __device__ void to_next_chunk(const TokenRun& run, int n, int left) {
    ++chunk_;
    if (left > Layout::chunk) {
      await_keys(run, n + 1, left - Layout::chunk);
    }
    finish(left);
  }

  /// Waits for the products of a chunk, with `left` tokens of the run from it on, and subtracts what positions past the
  /// last token have added to the count of tokens.
  __device__ void finish(int left) {
    wgmma_wait<0>();
    fence_accumulators(own_);
    fence_accumulators(shared_);
    static_assert(Packing::constant_tile == shared_tile);
    if constexpr (group == 1) {
      if (left < Layout::chunk && warp_ == 0 && lane() / 4 == Packing::constant_row) {  // h = 1: the constant feature
        constexpr int ones_column = 4 * ((Layout::columns - shared_first) / 8);
        const auto rows_past_end = static_cast<float>(Layout::chunk - left);
        shared_[ones_column + 2] -= rows_past_end;
        shared_[ones_column + 3] -= rows_past_end;
      }
    }
  }

  /// Publishes the state, rounded to the element type, in shared memory: contiguous blocks of 8 rows by 8 columns, as the
  /// matrix unit reads them without a swizzle.
  __device__ void publish(int buffer) const {
    const SharedAddress to = published_row() + buffer * Layout::state_tile;
    publish(own_, to + group * 8 * Layout::state_row_block);
    if (64 * shared_tile + 16 * warp_ < Packing::rows) {
      publish(shared_, to + shared_tile * 8 * Layout::state_row_block + shared_first / 8 * 128);
    }
  }
  template <int count>
  __device__ void publish(const float (&sums)[count], SharedAddress to) const {
    constexpr int blocks = count / 4;
    const auto pair = [&](int i) { return Numbers::rounded(sums[i], sums[i + 1]); };
#pragma unroll
    for (int j = 0; j + 1 < blocks; j += 2) {
      store_blocks(to + j * 128, pair(4 * j), pair(4 * j + 2), pair(4 * j + 4), pair(4 * j + 6));
    }
    if constexpr (blocks % 2 == 1) {
      constexpr int j = blocks - 1;
      store_blocks(to + j * 128, pair(4 * j), pair(4 * j + 2));
    }
  }

  /// Of buffer 0, for stmatrix; computed where it is used, as there is no register to keep it.
  [[nodiscard]] __device__ SharedAddress published_row() const {
    const unsigned lane = computed_afresh(threadIdx.x) % 32;
    return Layout::states + (warp_ * 2 + lane / 8 % 2) * Layout::state_row_block + lane / 16 * 128 + lane % 8 * 16;
  }

  __device__ void announce(int buffer) const {
    async_proxy_fence();
    barrier_arrive(Layout::state_full + 8 * buffer);
  }

  int chunk_ = 0;
  float own_[Layout::width / 2];
  float shared_[shared_columns / 2];
  LeftFragment features_[ring];
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
