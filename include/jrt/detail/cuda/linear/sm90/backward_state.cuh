// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_layout.cuh"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The state of a pass in the registers of the four warps that keep it, how it gets there and how it is published. Its rows
/// are in HopperPacking's order: three tiles of 64 rows, of which warp w has rows 16w … 16w + 15. Published is
///
///     pass queries: S − z·mᵀ, m the mean of v so far (BackwardLayout::centred), and z apart as PublishedMoments;
///     pass keys:    R with r as its last columns.
template <class Config, BackwardPass pass>
class BackwardState {
 public:
  using Layout = BackwardLayout<Config, pass>;
  using Packing = typename Layout::Packing;
  using Element = typename Config::Element;
  using Numbers = HopperNumbers<Element>;

  __device__ BackwardState() : warp_(warp_uniform(static_cast<int>(threadIdx.x) / 32 % 4)) {}

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

  /// Reads a state, or the gradient of one; empty if there is none.
  template <class Format, class Scalar>
  __device__ void read(const StateSlice<Format, const Scalar>& stored) {
    clear();
    if (stored.state != nullptr) {
      add_stored(stored);
    }
  }
  template <class Format, class Scalar>
  __device__ void add_stored(const StateSlice<Format, const Scalar>& stored) {
    const bool pairs_aligned = reinterpret_cast<std::uintptr_t>(stored.state) % (2 * sizeof(Scalar)) == 0;
    for_rows([&](int m, int h, int r, float scale) {
      if (r < 0) {
        return;
      }
      const float factor = 1 / scale;
#pragma unroll
      for (int j = 0; j < Layout::columns / 8; ++j) {
        const int column = 8 * j + lane() % 4 * 2;
        if (!stored.has(column)) {
          continue;
        }
        const Scalar* const from = stored.at(r, column);
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
      const float z = stored.with_normaliser ? convert<float>(stored.normaliser(r)) * factor : 0.0F;
      if constexpr (Layout::queries) {
        state_[m][32 + 2 * h] += z;
        state_[m][33 + 2 * h] += z;
      } else {
        column_[m].values[2 * h] += z;
      }
    });
  }

  /// Writes R of the block's slice, in its format.
  __device__ void write(float* state) {
    using Format = GradientSliceFormat<Config>;
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

  /// Publishes the state once, for warps that are synchronised otherwise.
  __device__ void publish_at(SharedAddress to) {
    publish(to, 0);
    async_proxy_fence();
  }

 protected:
  static constexpr int mean_bytes = Layout::columns * 4;

  static __device__ int lane() {
    return static_cast<int>(threadIdx.x) % 32;
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
        const float weight = row.first < 0    ? 1.0F
                             : row.second < 0 ? 0.25F
                                              : (row.first == row.second ? 1.0F / 32 : 1.0F / 16);
        const float scale = Packing::format_scale(row);
        function(m, h, Packing::format_row(row), Layout::queries ? scale : weight / scale);
      }
    }
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
    const float high = first_of(Numbers::rounded(number, 0));
    return Numbers::rounded(high, number - high);
  }

  int warp_;
  float state_[Packing::row_tiles][Layout::width / 2];
  Accumulator column_[Packing::row_tiles];  // pass `keys`: r
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
