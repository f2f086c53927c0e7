// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/linear/sm90/key_features.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"
#include "jrt/detail/cuda/linear/sm90/repair.cuh"
#include "jrt/detail/cuda/linear/sm90/schedule.cuh"
#include "jrt/numeric.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The four warps of a block that keep the state, in registers in float: S += φ(k)·[v | 1] with S in HopperPacking's order
/// (tiles of 64 rows, of which warp w of the four has rows 16w … 16w + 15), v and the ones from shared memory.
template <class Config>
class StateWarps : KeyFeatures<Config, HopperLayout<Config>> {
 public:
  using Layout = HopperLayout<Config>;
  using Packing = typename Layout::Packing;
  using Format = StateFormatOf<Config>;
  using Numbers = HopperNumbers<typename Config::Element>;

  __device__ StateWarps()
      : KeyFeatures<Config, HopperLayout<Config>>(warp_uniform(static_cast<int>(threadIdx.x) / 32 % 4)),
        published_row_(Layout::states + (warp_ * 2 + lane() / 8 % 2) * Layout::state_row_block + lane() / 16 * 128 +
                       lane() % 8 * 16) {}

  __device__ void clear() {
#pragma unroll
    for (auto& tile : state_) {
#pragma unroll
      for (float& number : tile) {
        number = 0;
      }
    }
  }

  /// Reads S and z in the state's format; all slices need z.
  template <class Scalar, class NormaliserScalar>
  __device__ void read(const Scalar* state, const NormaliserScalar* normaliser, int column) {
    const bool pairs_aligned = reinterpret_cast<std::uintptr_t>(state) % (2 * sizeof(Scalar)) == 0;
    for_rows([&](float(&tile)[Layout::width / 2], int h, int r, float scale) {
      const bool present = r >= 0;
      const float factor = 1 / scale;
#pragma unroll
      for (int j = 0; j < Layout::columns / 8; ++j) {
        const int c = column + 8 * j + lane() % 4 * 2;
        Vector<Scalar, 2> pair{};
        if (present && (Format::columns % Layout::columns == 0 || c < Format::columns)) {
          const Scalar* const from = state + r * Format::columns + c;
          if (pairs_aligned) {
            pair = load_vector<2>(from);
          } else {
            pair[0] = from[0];
            pair[1] = from[1];
          }
        }
        tile[4 * j + 2 * h] = convert<float>(pair[0]) * factor;
        tile[4 * j + 2 * h + 1] = convert<float>(pair[1]) * factor;
      }
      const float z = present ? convert<float>(normaliser[r]) * factor : 0.0F;
      tile[ones_column + 2 * h] = z;
      tile[ones_column + 2 * h + 1] = z;
    });
  }

  /// Writes this slice's columns of S, and z if it is the first.
  template <class Scalar>
  __device__ void write(Scalar* state, int column) {
    const bool pairs_aligned = reinterpret_cast<std::uintptr_t>(state) % (2 * sizeof(Scalar)) == 0;
    for_rows([&](float(&tile)[Layout::width / 2], int h, int r, float scale) {
      if (r < 0) {
        return;
      }
#pragma unroll
      for (int j = 0; j < Layout::columns / 8; ++j) {
        const int c = column + 8 * j + lane() % 4 * 2;
        if (Format::columns % Layout::columns == 0 || c < Format::columns) {
          const Vector<Scalar, 2> pair{
              {convert<Scalar>(tile[4 * j + 2 * h] * scale), convert<Scalar>(tile[4 * j + 2 * h + 1] * scale)}};
          Scalar* const to = state + r * Format::columns + c;
          if (pairs_aligned) {
            store_vector(to, pair);
          } else {
            to[0] = pair[0];
            to[1] = pair[1];
          }
        }
      }
      if (column == 0 && lane() % 4 == 0) {
        state[Format::normaliser_offset + r] = convert<Scalar>(tile[ones_column + 2 * h] * scale);
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
      add<0, Packing::row_tiles>();
      refill();
      add<Packing::row_tiles, all_products>();
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
      add<0, Packing::row_tiles>();
      announce(n % 2);
      add<Packing::row_tiles, all_products>();
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
  static constexpr int ones_column = 4 * (Layout::columns / 8);
  static constexpr int depth_steps = Layout::chunk / 16;
  static constexpr int all_products = depth_steps * Packing::row_tiles;
  static constexpr int fragments = 2;  // in use by the matrix unit at a time

  using KeyFeatures<Config, HopperLayout<Config>>::lane;
  using KeyFeatures<Config, HopperLayout<Config>>::warp_;

  /// Calls `function(tile, h, row of the format or -1, its scale)` for the rows of which this lane has values.
  template <class Function>
  __device__ void for_rows(const Function& function) {
#pragma unroll
    for (int m = 0; m < Packing::row_tiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const TaylorRow row = Packing::row(m, warp_, h, lane() / 4);
        const int inputs = row.first < 0 ? 0 : (row.second < 0 ? 1 : 2);
        const auto shifted = static_cast<float>(1 << (inputs * Numbers::key_shift));
        function(state_[m], h, Packing::format_row(row), Packing::format_scale(row) * shifted);
      }
    }
  }

  /// Issues products [first, end) of a chunk, `row_tiles` for 16 tokens. Expects the keys of the first 16 in `inputs_`.
  template <int first, int end>
  __device__ void add() {
    const int stage = chunk_ % Layout::stages;
    if constexpr (first < end) {
      constexpr int step = first / Packing::row_tiles;
      constexpr int m = first % Packing::row_tiles;
      LeftFragment& features = features_[first % fragments];
      wgmma_wait<fragments - 1>();
      this->template multiply_inputs<m>(features);
      const std::uint64_t right = values_and_ones<Layout>(stage, step).word();
      wgmma_fence();
      WarpgroupProduct<Layout::width>::template add<typename Config::Element>(state_[m], features, right, 1);
      wgmma_commit();
      // Loads the keys of the next 16 tokens early: this step no longer needs shifted halves.
      if constexpr (step + 1 < depth_steps && m == larger(Packing::row_tiles - 2, 0)) {
        this->load_next_inputs(stage, step + 1);
      }
      if constexpr (step + 1 < depth_steps && m == Packing::row_tiles - 1) {
        this->take_inputs();
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
#pragma unroll
    for (auto& tile : state_) {
      fence_accumulators(tile);
    }
    if (left < Layout::chunk && warp_ == 0 && lane() / 4 == Packing::constant_row) {  // h = 1: the constant feature
      const auto rows_past_end = static_cast<float>(Layout::chunk - left);
      state_[Packing::constant_tile][ones_column + 2] -= rows_past_end;
      state_[Packing::constant_tile][ones_column + 3] -= rows_past_end;
    }
  }

  /// Publishes the state, rounded to the element type, in shared memory: contiguous blocks of 8 rows by 8 columns, as the
  /// matrix unit reads them without a swizzle. If a value would leave the type's range, the warp's rows are scaled down by
  /// a power of two; its exponent, the excess, is published with them.
  __device__ void publish(int buffer) const {
    if constexpr (!Numbers::narrow_range) {
      publish(buffer, [](float number) { return number; });
    } else {
      float largest = 0;
      for (const auto& tile : state_) {
        for (const float number : tile) {
          largest = fmaxf(largest, fabsf(number));
        }
      }
      const unsigned bits = __reduce_max_sync(~0u, __float_as_uint(largest));
      const int exponent = static_cast<int>(bits >> 23) - 127;
      const int excess = clamped(exponent - 14, 0, 100);
      if (lane() == 0) {
        store_pair(SharedNumbers::at(Layout::state_excess + 16 * buffer + 4 * warp_), static_cast<Pair>(excess));
      }
      if (excess == 0) {
        publish(buffer, [](float number) { return number; });
      } else {
        const float factor = __int_as_float((127 - excess) << 23);
        publish(buffer, [factor](float number) { return number * factor; });
      }
    }
  }
  template <class Scale>
  __device__ void publish(int buffer, const Scale& scale) const {
    const SharedAddress to = published_row_ + buffer * Layout::state_tile;
    const auto pair = [&](int m, int i) { return Numbers::rounded(scale(state_[m][i]), scale(state_[m][i + 1])); };
#pragma unroll
    for (int m = 0; m < Packing::row_tiles; ++m) {
      if (64 * m + 16 * warp_ < Packing::rows) {
        const SharedAddress tile = to + m * 8 * Layout::state_row_block;
#pragma unroll
        for (int j = 0; j + 1 < Layout::width / 8; j += 2) {
          store_blocks(tile + j * 128, pair(m, 4 * j), pair(m, 4 * j + 2), pair(m, 4 * j + 4), pair(m, 4 * j + 6));
        }
        if constexpr (Layout::width / 8 % 2 == 1) {
          constexpr int j = Layout::width / 8 - 1;
          store_blocks(tile + j * 128, pair(m, 4 * j), pair(m, 4 * j + 2));
        }
      }
    }
  }

  __device__ void announce(int buffer) const {
    async_proxy_fence();
    barrier_arrive(Layout::state_full + 8 * buffer);
  }

  int chunk_ = 0;
  SharedAddress published_row_;  // of buffer 0, for stmatrix
  float state_[Packing::row_tiles][Layout::width / 2];
  LeftFragment features_[fragments];
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
