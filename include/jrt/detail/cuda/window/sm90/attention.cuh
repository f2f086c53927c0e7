// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/sm90/target.cuh"
#include "jrt/detail/cuda/core/sm90/tensor_map.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/sm90/layout.cuh"
#include "jrt/detail/cuda/window/sm90/rotation.cuh"
#include "jrt/detail/cuda/window/sm90/worker.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The warp that loads keys, values and queries, and the outputs so far where there are some.
template <WindowConfig Config>
struct HopperWindowCopies {
  using Layout = HopperWindowLayout<Config>;
  using Run = HopperWindowRun<Config>;
  using Element = typename Config::Element;

  const HopperWindowCall<Config>& call;
  const Run& run;

  __device__ void bring_all() const {
    const int count = run.key_tiles();
    RingPlace<Layout::stages> place;
    for (int j = 0; j < count; ++j) {
      if (const int i = j - (Layout::window_tiles - 1); i >= 0) {
        bring_queries(i);
      }
      if (j >= Layout::stages) {
        barrier_wait(Layout::free + 8 * place.stage, place.parity ^ 1);
      }
      bring_keys(run.key_token(j), place.stage);
      place = place.after(1);
    }
  }

 private:
  __device__ void bring_queries(int i) const {
    const int turn = i / Layout::workers;
    const int buffer = Run::buffer(i % Layout::workers, turn);
    if (turn >= Layout::query_buffers) {
      barrier_wait(Layout::query_free + 8 * buffer, (turn / Layout::query_buffers - 1) % 2);
    }
    const SharedAddress barrier = Layout::query_full + 8 * buffer;
    const int token = run.first_token + i * Layout::tile;
    barrier_expect(barrier, (Layout::key_panels + (Layout::carries ? Layout::value_panels : 0)) * Layout::panel_bytes);
    load_panels<Layout::key_panels>(call.query, Run::queries(buffer), token, run.query_head, barrier);
    if constexpr (Layout::carries) {
      load_panels<Layout::value_panels>(call.before, Run::outputs(buffer), token, run.query_head, barrier);
    }
  }

  __device__ void bring_keys(int token, int stage) const {
    const SharedAddress barrier = Layout::full + 8 * stage;
    const int head = run.query_head / static_cast<int>(call.window.group());
    if (token >= 0 && token + Layout::tile <= run.tokens) {
      barrier_expect(barrier, Layout::stage_bytes);
      load_panels<Layout::key_panels>(call.key, Run::keys(stage), token, head, barrier);
      load_panels<Layout::value_panels>(call.value, Run::values(stage), token, head, barrier);
    } else {
      // Tokens of a cache, or none: row by row. Missing rows are set to 0, as a weight of 0 does not cancel a NaN.
      const WindowSequence<Config> sequence(call.window, run.sequence, head);
      const WindowKeys<Config>& from = sequence.keys;
      copy_rows<Config::head_dim>(Run::keys(stage), token, [&](int t) { return from.key(t); });
      copy_rows<Config::value_dim>(Run::values(stage), token, [&](int t) { return from.value(t); });
      async_proxy_fence();
      barrier_arrive(barrier);
    }
  }

  template <int panels>
  __device__ void load_panels(const CUtensorMap& map, SharedAddress to, int token, int head, SharedAddress barrier) const {
#pragma unroll
    for (int p = 0; p < panels; ++p) {
      load_tile(to + p * Layout::panel_bytes, &map, {p * Layout::panel_columns, run.row + token, head, run.batch_row},
                barrier);
    }
  }

  template <int dim, class RowOf>
  __device__ void copy_rows(SharedAddress to, int token, const RowOf& row_of) const {
    constexpr int parts = ceil_div(dim, Layout::panel_columns) * Layout::panel_columns / 8;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x) % 32; i < Layout::tile * parts; i += 32) {
      const int row = i / parts;
      const int part = i % parts;
      Pair pairs[4] = {};
      if (token + row >= run.lowest && token + row < run.tokens && part * 8 < dim) {
        const auto numbers = load_vector<4>(reinterpret_cast<const Pair*>(row_of(token + row) + part * 8));
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          pairs[c] = numbers[c];
        }
      }
      store_pairs(
          SharedNumbers::at(to + part / 8 * Layout::panel_bytes + row * Layout::panel_row + ((part % 8) ^ (row % 8)) * 16),
          pairs);
    }
  }
};

/// Outputs of the run's rows that are not tokens: 0; called by all threads of a block.
template <WindowConfig Config>
__device__ void zero_rows(const WindowCall<Config>& call, const WindowSequence<Config>& sequence, std::int64_t first,
                          std::int64_t count, std::int64_t query_head) {
  const SequenceSpan& span = sequence.span;
  const std::int64_t end = smaller(first + count, span.row_tokens);
  if (!sequence.skipped && first >= span.left_pad && end <= span.tokens) {
    return;
  }
  constexpr int parts = Config::value_dim / 8;
  for (std::int64_t i = threadIdx.x; i < (end - first) * parts; i += blockDim.x) {
    const std::int64_t row = first + i / parts;
    if (!sequence.has_token(row)) {
      store_vector(call.output.row(span.batch_row, span.first_token + row, query_head) + i % parts * 8,
                   Vector<typename Config::Element, 8>{});
      if (i % parts == 0) {
        call.set_log_sum_exp(span.batch_row, span.first_token + row, query_head, -INFINITY);
      }
    }
  }
}

/// One block per run of rows and query head.
template <WindowConfig Config>
__global__ void __launch_bounds__(hopper_threads<HopperWindowLayout<Config>::threads>, 1)
    window_sm90(const __grid_constant__ HopperWindowCall<Config> call) {
  if constexpr (compiling_for_hopper) {
    using Layout = HopperWindowLayout<Config>;
    const std::int64_t query_head = blockIdx.x / call.runs;
    const std::int64_t run_rows = std::int64_t{call.run_tiles} * Layout::tile;
    RowRun rows(call.window.sequences, call.window.query.tokens, blockIdx.x % call.runs, run_rows);
    rows.first_row += call.window.first_output(rows.b);
    const WindowSequence<Config> sequence(call.window, rows.b, query_head / call.window.group());
    if (!rows.within(sequence.span)) {
      return;
    }
    zero_rows(call.window, sequence, rows.first_row, run_rows, query_head);
    const HopperWindowRun<Config> run(sequence, rows.b, query_head, rows.first_row, call.run_tiles);
    if (sequence.skipped || run.tiles == 0) {
      return;
    }
    if (threadIdx.x == 0) {
      if (shared_address(hopper_shared_memory) != Layout::base) {
        __trap();  // all addresses assume it
      }
      for (int i = 0; i < Layout::stages; ++i) {
        barrier_init(Layout::full + 8 * i, 1);
        barrier_init(Layout::free + 8 * i, 4 * Layout::workers);
        barrier_init(Layout::ready + 8 * i, Layout::rotators);
      }
      for (int i = 0; i < Layout::workers * Layout::query_buffers; ++i) {
        barrier_init(Layout::query_full + 8 * i, 1);
        barrier_init(Layout::query_free + 8 * i, 4);
        barrier_init(Layout::query_ready + 8 * i, Layout::rotators);
      }
      barrier_init_fence();
    }
    __syncthreads();
    const int warp = warp_uniform(static_cast<int>(threadIdx.x) / 32);
    if (warp < 4) {
      give_registers<Layout::copier_registers>();
      if (warp == 0) {
        HopperWindowCopies<Config>{call, run}.bring_all();
      } else if constexpr (Layout::rotates) {
        HopperWindowRotation<Config>(call.window, run, sequence.keys.position(0), warp - 1).rotate_all();
      }
    } else {
      take_registers<Layout::worker_registers>();
      HopperWindowWorker<Config>(call.window, run, warp / 4 - 1).output_all();
    }
  }
}

/// Describes the tensors and launches.
template <WindowConfig Config>
struct HopperWindow {
  using Layout = HopperWindowLayout<Config>;

  /// Whether a kernel for this device exists and is compiled.
  static bool available(const Cuda& on) {
    return on.kernels() == CudaKernels::automatic && on.compute_capability() == 90 &&
           on.reserved_shared_bytes() == static_cast<int>(Layout::base) && tensor_map_encoder() != nullptr &&
           kernel_exists<window_sm90<Config>, Layout::threads>();
  }

  /// Describes the tensors; false if the copy engine cannot read one of them.
  static bool describe_tensors(const WindowCall<Config>& window, HopperWindowCall<Config>& call) {
    const TensorBox box{Layout::tile, Layout::panel_columns, CU_TENSOR_MAP_SWIZZLE_128B};
    call.window = window;
    return describe(window.query, box, call.query) && describe(window.key, box, call.key) &&
           describe(window.value, box, call.value) && (!Layout::carries || describe(window.output, box, call.before));
  }

  static Status run(const char* operation, HopperWindowCall<Config>& call, const Cuda& on) {
    const WindowCall<Config>& window = call.window;
    const auto blocks = [&](int tiles) {
      return row_runs(window.sequences, window.query.batch, window.query.tokens, std::int64_t{tiles} * Layout::tile) *
             window.query.heads;
    };
    // A block's time is that of its tiles and a few more, for the arrival of the first keys and the store of the last
    // outputs.
    const std::int64_t longest = ceil_div(window.query.tokens, std::int64_t{Layout::tile});
    std::int64_t least = INT64_MAX;
    for (int tiles = 1; tiles <= 512; tiles *= 2) {
      const std::int64_t rounds = ceil_div(blocks(tiles), std::int64_t{on.multiprocessors()});
      const std::int64_t time = rounds * (smaller<std::int64_t>(tiles, longest) + Layout::window_tiles + 2);
      if (time < least) {
        least = time;
        call.run_tiles = tiles;
      }
    }
    call.runs = blocks(call.run_tiles) / window.query.heads;
    return launch(operation, window_sm90<Config>, {call.runs * window.query.heads, Layout::threads, Layout::shared_bytes},
                  on, call);
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
