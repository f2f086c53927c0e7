// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/sm90/layout.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Copies 16 rows of outputs, those of one warp, from a buffer in shared memory to the outputs from `token` on, and
/// releases the buffer for the next queries. `first_row`: of the tile.
template <WindowConfig Config>
__device__ void store_window_outputs(const WindowCall<Config>& call, const HopperWindowRun<Config>& run, int token,
                                     int first_row, int buffer) {
  using Layout = HopperWindowLayout<Config>;
  using Element = typename Config::Element;
  const SharedAddress rows = HopperWindowRun<Config>::outputs(buffer);
  const int count = run.tokens - token;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Eight lanes take a row of a panel, 16 bytes each; the next of their four rows are four rows further on.
  constexpr int each = Layout::value_panels * 4;
  const int at = static_cast<int>(computed_afresh(static_cast<unsigned>(lane)));
  const int part = at % 8;
  const int row = at / 8;
  const SharedAddress from = rows + static_cast<unsigned>((first_row + row) * Layout::panel_row + (part ^ row) * 16);
  const TensorView<Element>& output = call.output;
  Element* const to = output.row(run.batch_row, run.row + token + row, run.query_head) + part * 8;
  const auto load = [&](Pair(&pairs)[4], int n) {
    const int panel = n / 4 * Layout::panel_bytes;
    load_pairs(pairs,
               SharedNumbers::at((from ^ (n % 2 * 64)) + static_cast<unsigned>(panel + n % 4 * 4 * Layout::panel_row)));
  };
  const auto store = [&](const Pair(&pairs)[4], int n) {
    if (row + n % 4 * 4 < count && n / 4 * Layout::panel_columns + part * 8 < Config::value_dim) {
      // The compiler would divide some of them.
      asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};"
                   :
                   : "l"(to + n % 4 * 4 * output.token_stride + n / 4 * Layout::panel_columns), "r"(pairs[0]),
                     "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                   : "memory");
    }
  };
  const auto release = [&] {
    async_proxy_fence();
    barrier_arrive(Layout::query_free + 8 * buffer);
  };
  if constexpr (Layout::narrow) {
    // The fence would wait for the stores, too. (With wide rows this order is the slower one.)
    Pair pairs[each][4];
#pragma unroll
    for (int n = 0; n < each; ++n) {
      load(pairs[n], n);
    }
    release();
#pragma unroll
    for (int n = 0; n < each; ++n) {
      store(pairs[n], n);
    }
  } else {
#pragma unroll
    for (int n = 0; n < each; ++n) {
      Pair pairs[4];
      load(pairs, n);
      store(pairs, n);
    }
    release();
  }
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
