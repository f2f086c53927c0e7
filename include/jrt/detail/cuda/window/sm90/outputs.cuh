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
  constexpr int parts = Config::value_dim / 8;
  constexpr int each = parts / 2;  // of a lane: 16 rows for 32 lanes
  const int at = static_cast<int>(computed_afresh(static_cast<unsigned>(lane)));
  const TensorView<Element>& output = call.output;
  Element* const to = output.row(run.batch_row, run.row + token, run.query_head);
  const auto load = [&](Pair(&pairs)[4], int n) {
    const int row = (at + 32 * n) / parts;
    const int part = (at + 32 * n) % parts;
    load_pairs(pairs, SharedNumbers::at(rows + part / 8 * Layout::panel_bytes + (first_row + row) * Layout::panel_row +
                                        ((part % 8) ^ (row % 8)) * 16));
  };
  const auto store = [&](const Pair(&pairs)[4], int n) {
    const int row = (at + 32 * n) / parts;
    if (row < count) {
      store_vector(reinterpret_cast<Pair*>(to + row * output.token_stride + (at + 32 * n) % parts * 8),
                   Vector<Pair, 4>{{pairs[0], pairs[1], pairs[2], pairs[3]}});
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
