// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/cuda/window/sm90/layout.cuh"
#include "jrt/detail/cuda/window/tile_products.cuh"
#include "jrt/detail/integer.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Elements 4i … 4i + 3 of a key or query in shared memory.
struct FourElements {
  Pair pairs[2];

  static __device__ FourElements load(SharedAddress from) {
    FourElements four;
    asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(four.pairs[0]), "=r"(four.pairs[1]) : "r"(from) : "memory");
    return four;
  }
  __device__ void store(SharedAddress to) const {
    asm volatile("st.shared.v2.b32 [%0], {%1,%2};" : : "r"(to), "r"(pairs[0]), "r"(pairs[1]) : "memory");
  }
};

/// The warps beside the one that copies: they rotate tiles of keys and queries where the copy engine has put them, before
/// the workers may read them. A tile of queries has the positions of the last tile of keys that it sees, so both are
/// rotated by the same sines and cosines, computed once. Keys get the bits that the cache gets (rotated_value), which keys
/// of earlier calls have already.
///
///     copier      keys j, queries j − 2 |  keys j + 1, queries j − 1 | …         a window of 128
///     rotators                          |  keys j and queries j − 2  | …
///     workers                                                        |  tile j − 2 of queries
template <WindowConfig Config>
class HopperWindowRotation {
 public:
  using Layout = HopperWindowLayout<Config>;
  using Run = HopperWindowRun<Config>;
  using Element = typename Config::Element;
  using Rotary = typename Config::Rotary;

  /// `warp` of Layout::rotators.
  __device__ HopperWindowRotation(const WindowCall<Config>& call, const Run& run, std::int64_t first_position, int warp)
      : run_(run), warp_(warp), column_(lane() % lanes * each) {
#pragma unroll
    for (int n = 0; n < each; ++n) {
      turns_[n] = call.rotary.phase(1, column_ + n);
    }
    first_position_ = first_position;
    offsets_[0] = offset(column_);
    offsets_[1] = offset(column_ + half);
  }

  __device__ void rotate_all() const {
    const int count = run_.key_tiles();
    for (int j = 0; j < count; ++j) {
      const int stage = Run::stage(j);
      const int i = j - (Layout::window_tiles - 1);
      barrier_wait(Layout::full + 8 * stage, Run::lap(j) % 2);
      if (i < 0) {
        if (run_.key_token(j) >= 0) {
          rotate<false>(run_.key_token(j), Run::keys(stage), 0);
        }
      } else {
        const int turn = i / Layout::workers;
        const int buffer = Run::buffer(i % Layout::workers, turn);
        barrier_wait(Layout::query_full + 8 * buffer, turn / Layout::query_buffers % 2);
        rotate<true>(run_.key_token(j), Run::keys(stage), Run::queries(buffer));
      }
      async_proxy_fence();
      if (i >= 0) {
        barrier_arrive(Layout::query_ready + 8 * Run::buffer(i % Layout::workers, i / Layout::workers));
      }
      barrier_arrive(Layout::ready + 8 * stage);
    }
  }

 private:
  static constexpr int half = Config::head_dim / 2;  // elements c and c + half are a pair
  static constexpr int each = 4;                     // pairs of a lane in a row
  static constexpr int lanes = half / each;          // of a row
  static constexpr int power_of_two(int most) {
    int power = 1;
    while (2 * power <= most) {
      power *= 2;
    }
    return power;
  }
  static constexpr int rows = power_of_two(32 / lanes);  // of a warp at a time
  static constexpr int passes = Layout::tile / rows;
  /// Rows that lanes read together are so far apart that they are in different banks.
  static constexpr int row_step = smaller(8, larger(1, power_of_two(lanes) / 2));

  static __device__ int lane() {
    return static_cast<int>(threadIdx.x) % 32;
  }
  static __device__ unsigned row_of(int pass) {
    const unsigned n = static_cast<unsigned>(pass * rows + lane() / lanes);
    return n / 8 * 8 + n * row_step % 8 + n % 8 * row_step / 8;
  }
  /// Of four elements from a column on, in row 0 of a tile. Row r has its 16-byte parts in places that differ by r mod 8.
  static __device__ SharedAddress offset(int column) {
    return column / Layout::panel_columns * Layout::panel_bytes + column % Layout::panel_columns * 2;
  }
  static __device__ SharedAddress in_row(SharedAddress offset, unsigned row) {
    return (offset ^ (row % 8 * 16)) + row * Layout::panel_row;
  }

  /// Rotates keys, and with `both` queries, of the tokens from `first` on.
  template <bool both>
  __device__ void rotate(int first, SharedAddress keys, SharedAddress queries) const {
    if (lane() >= rows * lanes) {
      return;
    }
    std::uint64_t phases[each];
#pragma unroll
    for (int n = 0; n < each; ++n) {
      phases[n] = (first_position_ + first) * turns_[n];
      asm volatile("" : "+l"(phases[n]));  // not to be multiplied afresh for every row
    }
#pragma unroll 1
    for (int pass = warp_; pass < passes; pass += Layout::rotators) {
      const unsigned row = row_of(pass);
      const SharedAddress at[2] = {in_row(offsets_[0], row), in_row(offsets_[1], row)};
      // Asked for before the angles are computed.
      FourElements key[2] = {FourElements::load(keys + at[0]), FourElements::load(keys + at[1])};
      FourElements query[2];
      if constexpr (both) {
        query[0] = FourElements::load(queries + at[0]);
        query[1] = FourElements::load(queries + at[1]);
      }
      Rotation<float> rotations[each];
#pragma unroll
      for (int n = 0; n < each; ++n) {
        rotations[n] = fast_rotation(phases[n] + row * turns_[n]);
      }
      rotate_elements(rotations, key);
      key[0].store(keys + at[0]);
      key[1].store(keys + at[1]);
      if constexpr (both) {
        rotate_elements(rotations, query);
        query[0].store(queries + at[0]);
        query[1].store(queries + at[1]);
      }
    }
  }

  static __device__ void rotate_elements(const Rotation<float> (&rotations)[each], FourElements (&elements)[2]) {
#pragma unroll
    for (int p = 0; p < each / 2; ++p) {
      float a[2];
      float b[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        a[n] = number_of<Element>(elements[0].pairs[p], n);
        b[n] = number_of<Element>(elements[1].pairs[p], n);
        rotate_pair(rotations[2 * p + n], a[n], b[n]);
      }
      elements[0].pairs[p] = HopperNumbers<Element>::rounded(a[0], a[1]);
      elements[1].pairs[p] = HopperNumbers<Element>::rounded(b[0], b[1]);
    }
  }

  const Run& run_;
  int warp_;
  int column_;
  std::uint64_t first_position_ = 0;  // of token 0
  std::uint64_t turns_[each];         // of this lane's pairs, per token
  SharedAddress offsets_[2];          // of this lane's first and second elements
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
