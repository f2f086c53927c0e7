// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/window.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/state/backend.cuh"
#include "jrt/detail/cuda/window/backward.cuh"
#include "jrt/detail/cuda/window/query.cuh"
#include "jrt/detail/cuda/window/sm90/attention.cuh"
#include "jrt/detail/cuda/window/step.cuh"
#include "jrt/detail/cuda/window/tiles.cuh"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/kernels.hpp"

namespace jrt::detail {

/// Window attention on a CUDA stream: check what the host can see, launch. Only the backward pass needs a workspace.
template <WindowConfig Config>
struct MixerBackend<Config, Cuda> {
  /// Checks what the host can see.
  template <class Args>
  static Status check(const Args& args) {
    Checker check(operation_name(args));
    check.take(check_shapes(args));
    check_implicit_slots(check, args, sequences_of(args));
    return check.status();
  }
  static Status check(const BackwardArgs<Config>& args) { return check_shapes(args); }

  template <class Args>
  static std::size_t workspace_bytes(const Args& /*args*/, const Cuda& /*on*/) {
    return 0;
  }
  static std::size_t workspace_bytes(const BackwardArgs<Config>& args, const Cuda& /*on*/) {
    const auto call = window_call(args);
    return counted_bytes(cuda::WindowBackward<Config>(call));
  }

  /// A prefill or a step.
  template <class Args>
  static Status run(const Args& args, const Workspace& /*workspace*/, const Cuda& on) {
    const Status status = check(args);
    return status.ok() ? run_call(operation_name(args), window_call(args), on) : status;
  }
  /// A prefill that leaves alone the outputs of the first `left_out[b]` tokens of each sequence.
  static Status run_without_first(const PrefillArgs<Config>& args, const std::int32_t* left_out, const Cuda& on) {
    const Status status = check(args);
    WindowCall<Config> call = window_call(args);
    call.left_out = left_out;
    return status.ok() ? run_call("prefill", call, on) : status;
  }
  static Status run(const BackwardArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    checker.workspace(workspace, checker.ok() ? workspace_bytes(args, on) : 0);
    if (!checker.ok()) {
      return checker.status();
    }
    const auto call = window_call(args);
    cuda::WindowBackward<Config> backward(call);
    Arena arena(workspace);
    backward.take(arena);
    return backward.run(on);
  }
  static Status run(const CommitArgs<Config>& args, const Workspace& /*workspace*/, const Cuda& on) {
    const Status status = check(args);
    return status.ok()
               ? cuda::launch("commit", cuda::commit_window<Config>,
                              {args.staging.sequences * args.staging.heads, cuda::window_cache_threads, 0}, on, args)
               : status;
  }

  /// A prefill or a step.
  template <class Args>
  static KernelKinds kernels(const Args& args, const Cuda& on) {
    return kernels_of_call(window_call(args), on);
  }
  static KernelKinds kernels(const BackwardArgs<Config>& args, const Cuda& /*on*/) {
    const auto call = window_call(args);
    return cuda::WindowBackward<Config>(call).kernels();
  }
  static KernelKinds kernels(const CommitArgs<Config>& /*args*/, const Cuda& /*on*/) { return {.ordinary_units = true}; }

  /// Those that `run_call` selects.
  static KernelKinds kernels_of_call(const WindowCall<Config>& call, const Cuda& on) {
    cuda::HopperWindowCall<Config> on_hopper;
    const Kernel kernel = select(call, on, on_hopper);
    return {.hopper = kernel == Kernel::hopper,
            .matrix_units = kernel == Kernel::tiles,
            .ordinary_units = kernel == Kernel::step || kernel == Kernel::queries};
  }

  /// Writes outputs, then the caches or the staging buffer; arguments are checked. The hybrid mixer calls this, too.
  static Status run_call(const char* operation, const WindowCall<Config>& call, const Cuda& on) {
    cuda::HopperWindowCall<Config> on_hopper;
    const Kernel kernel = select(call, on, on_hopper);
    if constexpr (cuda::WindowStepLayout<Config>::supported) {
      if (kernel == Kernel::step) {
        return cuda::launch_window_steps(operation, call, on);
      }
    }
    const Status status = launch(operation, call, kernel, on_hopper, on);
    const bool is_staged = kernel == Kernel::queries && call.stages();  // by the same kernel
    if (!status.ok() || (call.final.empty() && (is_staged || !call.stages()))) {
      return status;
    }
    return cuda::launch(operation, cuda::update_window_cache<Config>,
                        {call.count() * call.key.heads, cuda::window_update_threads, 0}, on, call);
  }

 private:
  enum class Kernel { step, hopper, tiles, queries };

  static constexpr bool has_hopper = cuda::targets_hopper && cuda::HopperWindowLayout<Config>::supported;

  /// The kernel for a call; if it is Hopper's own, `on_hopper` describes the tensors.
  static Kernel select(const WindowCall<Config>& call, const Cuda& on, cuda::HopperWindowCall<Config>& on_hopper) {
    const bool aligned = rows_aligned_everywhere(call);
    if (aligned && call.left_out == nullptr && cuda::is_window_step(call, on)) {
      return Kernel::step;
    }
    if constexpr (has_hopper) {
      if (aligned && call.query.tokens >= cuda::HopperWindowLayout<Config>::tile &&
          cuda::HopperWindow<Config>::available(on) && cuda::HopperWindow<Config>::describe_tensors(call, on_hopper)) {
        return Kernel::hopper;
      }
    }
    // A tile of rows pays from a few queries on.
    return cuda::WindowTileLayout<Config>::supported && aligned && call.query.tokens >= cuda::window_tiles_tuning.min_tokens
               ? Kernel::tiles
               : Kernel::queries;
  }

  static Status launch(const char* operation, const WindowCall<Config>& call, Kernel kernel,
                       cuda::HopperWindowCall<Config>& on_hopper, const Cuda& on) {
    if constexpr (has_hopper) {
      if (kernel == Kernel::hopper) {
        return cuda::HopperWindow<Config>::run(operation, on_hopper, on);
      }
    }
    if constexpr (cuda::WindowTileLayout<Config>::supported) {
      using Layout = cuda::WindowTileLayout<Config>;
      if (kernel == Kernel::tiles) {
        const std::int64_t runs = runs_of(call, Layout::rows);
        return cuda::launch(operation, cuda::window_tiles<Config>,
                            {runs * call.query.heads, Layout::threads, Layout::shared_bytes}, on, call, runs);
      }
    }
    cuda::Grid grid{runs_of(call, 1) * call.query.heads, cuda::QueryLayout<Config>::threads, 0};
    grid.starts_early = cuda::can_start_early<cuda::window_queries<Config>>(on);
    return cuda::launch(operation, cuda::window_queries<Config>, grid, on, call, rows_aligned_everywhere(call));
  }

  static std::int64_t runs_of(const WindowCall<Config>& call, std::int64_t run) {
    return row_runs(call.sequences, call.query.batch, call.query.tokens, run);
  }

  /// Whether all rows of keys, values, queries and outputs can be read and written 16 bytes at a time; rows of caches can
  /// if their length allows it.
  static bool rows_aligned_everywhere(const WindowCall<Config>& call) {
    const auto aligned = [](const auto& view) {
      return cuda::rows_aligned(view.data, view.batch_stride, view.token_stride, view.head_stride);
    };
    constexpr int each = cuda::access_bytes / static_cast<int>(sizeof(typename Config::Element));
    return Config::head_dim % each == 0 && Config::value_dim % each == 0 && aligned(call.query) && aligned(call.key) &&
           aligned(call.value) && aligned(call.output) && cuda::rows_aligned(call.staging.data);
  }
};

}  // namespace jrt::detail
