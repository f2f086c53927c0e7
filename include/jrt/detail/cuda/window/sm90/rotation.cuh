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
///     copies      keys j, queries j − 2 |  keys j + 1, queries j − 1 | …         a window of 128
///     rotations                         |  keys j and queries j − 2  | …
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
      : run_(run), first_group_(warp) {
    const int column = lane() % lanes * each;
    const auto row = static_cast<unsigned>(first_row());
#pragma unroll
    for (int n = 0; n < each; ++n) {
      turns_[n] = call.rotary.phase(1, column + n);
    }
#pragma unroll
    for (int n = 0; n < each; ++n) {
      phases_[n] = (first_position + run.key_token(0) + warp * group + row) * turns_[n];
    }
    offsets_[0] = offset(column, row);
    offsets_[1] = offset(column + half, row);
  }

  __device__ void rotate_all() {
    const int count = run_.key_tiles();
    RingPlace<Layout::stages> place;
    for (int j = 0; j < count; ++j) {
      const int i = j - (Layout::window_tiles - 1);
      const int turn = i / Layout::workers;
      const int buffer = Run::buffer(i % Layout::workers, turn);
      barrier_wait(Layout::full + 8 * place.stage, place.parity);
      if (i < 0) {
        if (run_.key_token(j) >= 0) {
          rotate<false>(Run::keys(place.stage), 0);
        } else {
          advance(static_cast<unsigned>(groups_here() * stride));
        }
      } else {
        barrier_wait(Layout::query_full + 8 * buffer, turn / Layout::query_buffers % 2);
        rotate<true>(Run::keys(place.stage), Run::queries(buffer));
      }
      first_group_ += groups_here() * Layout::rotators - groups;
      async_proxy_fence();
      if (i >= 0) {
        barrier_arrive(Layout::query_ready + 8 * buffer);
      }
      barrier_arrive(Layout::ready + 8 * place.stage);
      place = place.after(1);
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
  /// A warp takes every `rotators`-th group of rows, counted on from one tile to the next: then the warps have as many in
  /// the long run, and from one to the next it is always as far. Rows that lanes read together are so far apart that they
  /// are in different banks.
  static constexpr int group = larger(8, rows);
  static constexpr int groups = Layout::tile / group;
  static constexpr int stride = Layout::rotators * group;
  static constexpr int passes = group / rows;  // over a group
  static constexpr int row_step = smaller(8, larger(1, power_of_two(lanes) / 2));
  static constexpr int pass_rows = rows * row_step % 8 + rows * row_step / 8;  // from one pass to the next

  static __device__ int lane() {
    return static_cast<int>(threadIdx.x) % 32;
  }
  /// How many groups of the next tile are this warp's.
  [[nodiscard]] __device__ int groups_here() const {
    return (groups - first_group_ + Layout::rotators - 1) / Layout::rotators;
  }
  /// The first row of this lane in a group.
  static __device__ int first_row() {
    const int n = lane() / lanes;
    return n / 8 * 8 + n * row_step % 8 + n % 8 * row_step / 8;
  }
  /// Of four elements from a column on, in a row of a tile. Row r has its 16-byte parts in places that differ by r mod 8.
  static __device__ SharedAddress offset(int column, unsigned row) {
    const SharedAddress in_row = column / Layout::panel_columns * Layout::panel_bytes + column % Layout::panel_columns * 2;
    return (in_row ^ (row % 8 * 16)) + row * Layout::panel_row;
  }

  /// The same in the row of a pass, whose number differs from the first one's by bits that are 0 in that.
  static __device__ SharedAddress at_pass(SharedAddress first, int pass) {
    return first ^ static_cast<unsigned>(pass * pass_rows * (16 + Layout::panel_row));
  }

  __device__ void advance(unsigned tokens) {
    // Computed afresh, or its products would be kept in registers.
    const unsigned count = computed_afresh(tokens);
#pragma unroll
    for (int n = 0; n < each; ++n) {
      phases_[n] += static_cast<std::uint64_t>(count) * turns_[n];
    }
  }

  /// Rotates the next tile of keys, and with `both` that of queries.
  template <bool both>
  __device__ void rotate(SharedAddress keys, SharedAddress queries) {
    if (lane() >= rows * lanes) {
      return;
    }
    keys += first_group_ * group * Layout::panel_row;
    queries += first_group_ * group * Layout::panel_row;
    const int count = groups_here() * passes;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const int pass = i % passes;
      const SharedAddress at[2] = {at_pass(offsets_[0], pass), at_pass(offsets_[1], pass)};
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
        rotations[n] = fast_rotation(phases_[n]);
      }
      rotate_elements(rotations, key);
      key[0].store(keys + at[0]);
      key[1].store(keys + at[1]);
      if constexpr (both) {
        rotate_elements(rotations, query);
        query[0].store(queries + at[0]);
        query[1].store(queries + at[1]);
      }
      const bool ends = pass + 1 == passes;
      advance(static_cast<unsigned>(ends ? stride - (passes - 1) * pass_rows : pass_rows));
      keys += ends ? stride * Layout::panel_row : 0;
      queries += ends ? stride * Layout::panel_row : 0;
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
  int first_group_;             // of the next tile's groups
  std::uint64_t turns_[each];   // of this lane's pairs, per token
  std::uint64_t phases_[each];  // of its next row
  SharedAddress offsets_[2];    // of this lane's first and second elements
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
