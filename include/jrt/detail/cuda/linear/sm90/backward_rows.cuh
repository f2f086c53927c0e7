// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/sm90/product_by_rows.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/query_features.cuh"
#include "jrt/tensor_view.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The rows of a chunk of which one warp of four makes the gradients, 16w … 16w + 15, and what both passes and the encoder
/// region do with them. A lane l = 4g + c has rows g and g + 8, of every group of 8 features those numbered 2c and 2c + 1.
template <class Config>
class BackwardRows {
 public:
  using Tiles = BackwardTiles<Config>;
  using Element = typename Config::Element;
  using Numbers = HopperNumbers<Element>;

  __device__ explicit BackwardRows(int warp) : warp_(warp) {}

  static __device__ unsigned lane() { return computed_afresh(threadIdx.x % 32); }
  [[nodiscard]] __device__ int warp() const { return warp_; }
  /// The first of this lane's two rows.
  [[nodiscard]] __device__ int row() const { return 16 * warp_ + static_cast<int>(lane() / 4); }

  static __device__ MatrixDescriptor input_tile(SharedAddress tile) {
    return {tile, 16, 8 * Tiles::input_row, Swizzle::bytes_32};
  }
  /// Columns 16·step … of a tile of values, as the depth of a product.
  static __device__ MatrixDescriptor value_columns(SharedAddress tile, int step) {
    return {tile + step * 32, 16, 8 * Tiles::value_row, Swizzle::bytes_128};
  }
  /// Rows 16·step … of a tile of values, as the depth of a product.
  static __device__ MatrixDescriptor value_rows(SharedAddress tile, int step) {
    return {tile + step * 16 * Tiles::value_row, 0, 8 * Tiles::value_row, Swizzle::bytes_128};
  }

  /// scores (64 x 64) = x·summedᵀ, products = y·valueᵀ, where x and y are this side's tiles.
  static __device__ void multiply_pairs(float (&scores)[32], float (&products)[32], SharedAddress x, SharedAddress summed,
                                        SharedAddress y, SharedAddress value) {
    wgmma_fence();
    multiply_tiles<Element>(scores, input_tile(x).word(), input_tile(summed).word());
    multiply_tiles<Element>(products, value_columns(y, 0).word(), value_columns(value, 0).word());
#pragma unroll
    for (int k = 1; k < 4; ++k) {
      add_tiles<Element>(products, value_columns(y, k).word(), value_columns(value, k).word());
    }
    wgmma_commit();
  }

  /// This warp's rows of a tile of inputs as a left operand.
  __device__ void load_inputs(LeftFragment& rows, SharedAddress tile) const {
    load_blocks(rows.pairs, SharedNumbers::at(tile + (16 * warp_ + lane() % 16) * Tiles::input_row +
                                              ((lane() / 16 * 16) ^ (lane() / 4 % 2 * 16))));
  }

  /// This warp's rows of columns 16·step … of a tile of values as a left operand.
  __device__ void load_values(LeftFragment& rows, SharedAddress tile, int step) const {
    load_blocks(rows.pairs, SharedNumbers::at(tile + (16 * warp_ + lane() % 16) * Tiles::value_row +
                                              ((2 * step + lane() / 16) ^ (lane() % 8)) * 16));
  }

  /// sums (64 x 16) = weights·tile. The caller commits the products.
  static __device__ void multiply_inputs(float (&sums)[8], const LeftFragment (&weights)[4], SharedAddress tile) {
#pragma unroll
    for (float& sum : sums) {
      sum = 0;
    }
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      WarpgroupProduct<16>::template add<Element>(sums, weights[k], input_tile(tile + k * 16 * Tiles::input_row).word(), 1);
    }
  }

  /// features' gradients (64 x 80, one half) = values·Sᵀ. The caller commits the products.
  static __device__ void multiply_state(float (&sums)[40], SharedAddress values, SharedAddress half_state) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      add_by_rows<Element>(sums, value_columns(values, k).word(), PublishedState::values_deep(half_state, k).word(),
                           k > 0 ? 1 : 0);
    }
  }
  /// The same with [values | 1]·[R | r]ᵀ.
  static __device__ void multiply_state_and_column(float (&sums)[40], SharedAddress values, SharedAddress half_state) {
    const Pair eighth = computed_afresh(Numbers::power_of_two(-3));  // the 16 columns are r's two terms eight times
    const LeftFragment eighths{{eighth, eighth, eighth, eighth}};
    multiply_state(sums, values, half_state);
    add_by_rows<Element>(sums, eighths, PublishedState::normaliser_deep(half_state).word(), 1);
  }

  /// sums (64 x 64) += φ(x)·S, first the four steps whose features have no shift or one by four.
  __device__ void add_unshifted(float (&sums)[32], SharedAddress x, SharedAddress state, int keep) const {
    LeftFragment features[4];
    QueryFeatures<Config>(warp_).unshifted(x, features);
    wgmma_fence();
    add(sums, state, 7, features[0], keep);
    add(sums, state, 8, features[1]);
    add(sums, state, 9, features[2]);
    add(sums, state, 0, features[3]);
    wgmma_commit();
  }
  /// The other six steps.
  __device__ void add_shifted(float (&sums)[32], SharedAddress x, SharedAddress state) const {
    LeftFragment features[6];
    QueryFeatures<Config>(warp_).shifted(x, features);
    wgmma_fence();
    add(sums, state, 5, features[0]);
    add(sums, state, 6, features[1]);
    add(sums, state, 3, features[2]);
    add(sums, state, 4, features[3]);
    add(sums, state, 1, features[4]);
    add(sums, state, 2, features[5]);
    wgmma_commit();
  }

  /// Stages this warp's rows of 64 columns, rounded, in the tile at `tile`, and stores those of the `present` tokens from
  /// row 0 of the tile on that exist.
  __device__ void store_values(const float (&sums)[32], SharedAddress tile, const TensorView<Element>& view,
                               const CUtensorMap& map, TileCoordinates at, int present) const {
    const unsigned lane = BackwardRows::lane();
    const SharedAddress own = tile + 16 * warp_ * Tiles::value_row;
    const SharedAddress to = own + lane % 16 * Tiles::value_row;
    const auto pair = [&](int j, int h) { return Numbers::rounded(sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]); };
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      store_blocks(to + ((j + lane / 16) ^ (lane % 8)) * 16, pair(j, 0), pair(j, 1), pair(j + 1, 0), pair(j + 1, 1));
    }
    at.token += 16 * warp_;
    const int rows = present - 16 * warp_;
    if (rows >= 16) {
      async_proxy_fence();
      __syncwarp();
      store_tile(&map, own, at);
    } else if (rows > 0) {  // another sequence may follow
      __syncwarp();
      const int piece = static_cast<int>(lane % 8);
#pragma unroll 1
      for (int t = static_cast<int>(lane / 8); t < rows; t += 4) {
        if (Config::value_dim % Tiles::columns != 0 && at.column + 8 * piece >= Config::value_dim) {
          break;
        }
        if (key_delay<Config> != 0 && at.token + t < 0) {
          continue;
        }
        Pair pairs[4];
        load_pairs(pairs, SharedNumbers::at(own + t * Tiles::value_row + (piece ^ (t % 8)) * 16));
        *reinterpret_cast<uint4*>(view.row(at.row, at.token + t, at.head) + at.column + 8 * piece) =
            make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      }
      __syncwarp();
    }
  }

 private:
  static __device__ void add(float (&sums)[32], SharedAddress state, int place, const LeftFragment& features,
                             int keep = 1) {
    WarpgroupProduct<64>::template add<Element>(sums, features, PublishedState::features_deep(state, place).word(), keep);
  }

  int warp_;
};

/// The gradient of this lane's inputs from the gradients of their features, in registers:
///
///     dx = (G x + 4 g_lin)/16,    G the symmetric matrix of the products' gradients
///
/// (weights of 1/16 for pairs, 1/32 for squares, 1/4 for linear features are in the formula). A lane has features u = 2c
/// and 2c + 1 of each group x[a + u]·x[b + (u + r) mod 8]. Their gradient goes, times the second factor, to its own u
/// (`direct_`), and times the first to u + r of another lane (`rotating_`): groups are taken by falling r, and rotated by
/// one from each to the next, so that everything has come home in the end:
///
///     r = 4: add  → rotate → r = 3: add → rotate → r = 2: add → rotate → r = 1: add → rotate → direct
///
/// A rotation by one moves one of a lane's two elements to its neighbour: two shuffles a row.
template <class Config>
class InputGradient {
 public:
  using Tiles = BackwardTiles<Config>;
  using Numbers = HopperNumbers<typename Config::Element>;

  /// Starts with sums (64 x 16) of the chunk's own pairs, in units of 16 like all sums here.
  __device__ void start(const float (&sums)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      direct_[i / 2 % 2][i % 2 + i / 4 * 2] = sums[i];
    }
  }
  __device__ void start() {
#pragma unroll
    for (auto& row : direct_) {
      row[0] = row[1] = row[2] = row[3] = 0;
    }
  }

  /// Adds the first half of the features: shifts by four, three and two. `x` is the tile of inputs.
  template <bool summed>
  __device__ void add_first(SharedAddress x, int warp, const float (&g)[40], float (&features_sum)[2]) {
    const bool low = lane() % 4 < 2;
    const int from = neighbour();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Words words(x, warp, h);
      if constexpr (summed) {
        float own = 0;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          own += words.low(e) * direct_[h][e] + words.high(e) * direct_[h][2 + e];
        }
        features_sum[h] -= own / 32;
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float cross = g[2 * h + e];
        const float within = g[4 + 2 * h + e];
        const float within_low = low ? within : 0.0F;
        const float within_high = low ? 0.0F : within;
        direct_[h][e] += cross * words.high(e + 4) + within_low * words.low(e + 4);
        direct_[h][2 + e] += within_high * words.high(e + 4);
        rotating_[h][e] = within_low * words.low(e);
        rotating_[h][2 + e] = cross * words.low(e) + within_high * words.high(e);
      }
      rotate(h, from);
      add_four<3>(words, g + 8, h);
      rotate(h, from);
      add_four<2>(words, g + 24, h);
      rotate(h, from);
    }
  }

  /// The words of this lane's inputs that the second half needs, so that the tile may be overwritten.
  struct Inputs;

  /// Adds the second half: shift by one, squares, L·H, linear. With `summed`, also adds this lane's part of
  ///
  ///     φ(x)·g = g_0 + x·g_lin/4 + x·(G x)/32
  ///
  /// to `features_sum`, from which `add_first` has subtracted what the chunk's own pairs will contribute.
  template <bool summed>
  __device__ void add_second(const Inputs& inputs, const float (&g)[40], float (&features_sum)[2]) {
    const int from = neighbour();
    [[maybe_unused]] const bool first = lane() % 4 == 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Words& words = inputs.words[h];
      add_four<1>(words, g, h);
      rotate(h, from);
      float sum = 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float low = words.low(e);
        const float high = words.high(e);
        const float product = g[24 + 2 * h + e];
        const float low_linear = g[32 + 2 * h + e];
        const float high_linear = g[36 + 2 * h + e];
        direct_[h][e] += rotating_[h][e] + g[16 + 2 * h + e] * low + product * high;
        direct_[h][2 + e] += rotating_[h][2 + e] + g[20 + 2 * h + e] * high + product * low;
        if constexpr (summed) {
          sum += low * fmaf(8, low_linear, direct_[h][e]) + high * fmaf(8, high_linear, direct_[h][2 + e]);
        }
        direct_[h][e] += 4 * low_linear;
        direct_[h][2 + e] += 4 * high_linear;
      }
      if constexpr (summed) {
        features_sum[h] += sum / 32 + (first ? g[28 + 2 * h] : 0.0F);
      }
    }
  }

  /// Adds a multiple of sums (64 x 16) for each row.
  __device__ void add(const float (&sums)[8], const float (&factors)[2]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      direct_[i / 2 % 2][i % 2 + i / 4 * 2] += factors[i / 2 % 2] * sums[i];
    }
  }

  /// Stores the gradients of this lane's rows `token` and `token` + 8 of a chunk with `present` tokens.
  __device__ void store(const TensorView<typename Config::Element>& view, const TileCoordinates& at, int token, int present,
                        float first_factor, float second_factor) const {
    if (view.data == nullptr) {
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float factor = (h == 0 ? first_factor : second_factor) / 16;
      if (token + 8 * h < present && (key_delay<Config> == 0 || at.token + token + 8 * h >= 0)) {
        auto* const to = reinterpret_cast<Pair*>(view.row(at.row, at.token + token + 8 * h, at.head)) + lane() % 4;
        to[0] = Numbers::rounded(direct_[h][0] * factor, direct_[h][1] * factor);
        to[4] = Numbers::rounded(direct_[h][2] * factor, direct_[h][3] * factor);
      }
    }
  }

 private:
  static __device__ unsigned lane() {
    return computed_afresh(threadIdx.x % 32);
  }

  /// Inputs 2c … 2c + 5 (mod 8) of both halves of one row.
  struct Words {
    Pair low_words[3];
    Pair high_words[3];

    Words() = default;
    __device__ Words(SharedAddress x, int warp, int h) {
      const unsigned own = lane();
      const unsigned row = 16 * warp + own / 4;
      const SharedAddress at = x + (row + 8 * h) * Tiles::input_row;
#pragma unroll
      for (unsigned i = 0; i < 3; ++i) {
        const SharedAddress word = at + (((own + i) % 4 * 4) ^ (row / 4 % 2 * 16));
        low_words[i] = load_pair(word);
        high_words[i] = load_pair(word ^ 16);
      }
    }
    [[nodiscard]] __device__ float low(int i) const {
      return element(low_words[i / 2], i);
    }
    [[nodiscard]] __device__ float high(int i) const {
      return element(high_words[i / 2], i);
    }
    static __device__ float element(Pair pair, int i) {
      return i % 2 == 0 ? first_of(pair) : second_of(pair);
    }
  };

  /// The four groups of one shift: L·L^r, H·H^r, L·H^r, H·L^r.
  template <int r>
  __device__ void add_four(const Words& words, const float* g, int h) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float low_low = g[2 * h + e];
      const float high_high = g[4 + 2 * h + e];
      const float low_high = g[8 + 2 * h + e];
      const float high_low = g[12 + 2 * h + e];
      direct_[h][e] += low_low * words.low(e + r);
      direct_[h][e] += low_high * words.high(e + r);
      direct_[h][2 + e] += high_high * words.high(e + r);
      direct_[h][2 + e] += high_low * words.low(e + r);
      rotating_[h][e] += low_low * words.low(e);
      rotating_[h][e] += high_low * words.high(e);
      rotating_[h][2 + e] += high_high * words.high(e);
      rotating_[h][2 + e] += low_high * words.low(e);
    }
  }

  static __device__ int neighbour() {
    const unsigned own = lane();
    return static_cast<int>((own & ~3U) | ((own + 3) & 3U));
  }
  __device__ void rotate(int h, int neighbour) {
    float* const t = rotating_[h];
    const float low = __shfl_sync(~0u, t[1], neighbour);
    const float high = __shfl_sync(~0u, t[3], neighbour);
    t[1] = t[0];
    t[0] = low;
    t[3] = t[2];
    t[2] = high;
  }

  float direct_[2][4];  // [row][L, L, H, H]
  float rotating_[2][4];

 public:
  struct Inputs {
    Words words[2];
    __device__ Inputs(SharedAddress x, int warp) : words{Words(x, warp, 0), Words(x, warp, 1)} {}
  };
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
