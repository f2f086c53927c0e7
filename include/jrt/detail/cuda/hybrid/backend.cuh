// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/check/hybrid.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/hybrid/step.cuh"
#include "jrt/detail/cuda/linear/backward.cuh"
#include "jrt/detail/cuda/linear/prefill.cuh"
#include "jrt/detail/cuda/linear/step.cuh"
#include "jrt/detail/cuda/window/backend.cuh"
#include "jrt/detail/cuda/window/backward.cuh"
#include "jrt/detail/shared/hybrid/gradients.hpp"
#include "jrt/detail/shared/hybrid/parts.hpp"
#include "jrt/detail/shared/hybrid/steps.hpp"
#include "jrt/kernels.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

namespace cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The linear part of a prefill. Operators that run on the matrix unit take the steps of shared/hybrid/steps.hpp, with one
/// state per sequence in the workspace between them: the encoder region and all but the first L + 1 tokens on the fastest
/// kernels available, those first tokens on ordinary units (no such step where sequences start empty). Other operators take
/// one step on ordinary units.
template <HybridConfig Config>
class LinearPartPrefill {
 public:
  using Parts = HybridParts<Config>;
  using Steps = LinearPartSteps<Config>;
  using Whole = typename Parts::LinearPart;
  using Denominators = typename Parts::Denominators;
  using Format = StateFormatOf<Whole>;

  static constexpr bool in_steps = MmaEngine<typename Steps::Others>::supported;

  LinearPartPrefill(const PrefillArgs<Config>& args, const Cuda& on)
      : args_(args), steps_(args), on_(on), sequences_(sequence_count(args.sequences, args.query.batch)) {}

  void take(Arena& arena) {
    if (in_steps) {
      between_ = arena.take<std::byte>(Format::slot_bytes(args_.key.heads) * sequences_);
    }
    rest_.bytes = rest_bytes();
    rest_.data = arena.take<std::byte>(static_cast<std::int64_t>(rest_.bytes));
  }

  /// Those of the steps that `run` takes.
  [[nodiscard]] KernelKinds kernels() const {
    if constexpr (in_steps) {
      KernelKinds kinds;
      if constexpr (Steps::reads_encoder) {
        kinds = steps_.has_encoder() ? selected(fastest<typename Steps::Encoder>(steps_.encoder(between()))) : kinds;
      }
      kinds = steps_.has_first() ? kinds | portable_kernels<typename Steps::First> : kinds;
      return steps_.has_others() ? kinds | selected(fastest<typename Steps::Others>(steps_.others(between(), {}))) : kinds;
    } else {
      return portable_kernels<Whole>;
    }
  }

  Status run(const Denominators& denominators) const {
    if constexpr (in_steps) {
      return run_steps(denominators);
    } else {
      return run_part(portable<Whole>(Parts::linear(args_, denominators)));
    }
  }

 private:
  [[nodiscard]] StateSlots<Format> between() const {
    return {view_pool<Format>(reinterpret_cast<typename Format::Scalar*>(between_), sequences_, args_.key.heads)};
  }
  template <class Part>
  [[nodiscard]] PortablePrefill<Part> portable(const PrefillInputOf<Part>& step) const {
    return {step, sequences_, args_.key.heads, on_};
  }
  template <class Part>
  [[nodiscard]] Prefill<Part> fastest(const PrefillInputOf<Part>& step) const {
    return {step, sequences_, args_.key.heads, on_};
  }

  [[nodiscard]] std::size_t rest_bytes() const {
    if constexpr (in_steps) {
      // The workspace is sized before it is known which steps there will be.
      std::size_t bytes = larger(counted_bytes(portable<typename Steps::First>(steps_.first(between(), {}))),
                                 fastest<typename Steps::Others>(steps_.others(between(), {})).workspace_bytes());
      if constexpr (Steps::reads_encoder) {
        bytes = larger(bytes, fastest<typename Steps::Encoder>(steps_.encoder(between())).workspace_bytes());
      }
      return bytes;
    } else {
      return counted_bytes(portable<Whole>(Parts::linear(args_, {})));
    }
  }

  template <class Part>
  static KernelKinds selected(Part part) {
    part.select();
    return part.kernels();
  }

  Status run_steps(const Denominators& denominators) const {
    Status status;
    if (!steps_.has_first()) {
      const std::int64_t count = denominators.batch * denominators.batch_stride;
      status = device_status(
          "prefill", cudaMemsetAsync(denominators.data, 0, sizeof(*denominators.data) * static_cast<std::size_t>(count),
                                     on_.stream()));
    }
    if constexpr (Steps::reads_encoder) {
      if (status.ok() && steps_.has_encoder()) {
        status = run_part(fastest<typename Steps::Encoder>(steps_.encoder(between())));
      }
    }
    if (status.ok() && steps_.has_first()) {
      status = run_part(portable<typename Steps::First>(steps_.first(between(), denominators)));
    }
    if (status.ok() && steps_.has_others()) {
      status = run_part(fastest<typename Steps::Others>(steps_.others(between(), denominators)));
    }
    return status;
  }

  template <class Part>
  Status run_part(Part part) const {
    Arena arena(rest_);
    part.take(arena);
    return part.run("prefill", on_);
  }

  const PrefillArgs<Config>& args_;
  Steps steps_;
  const Cuda& on_;
  std::int64_t sequences_;
  std::byte* between_ = nullptr;
  Workspace rest_{};
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace cuda

namespace cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The backward pass: that of the linear part, then the window's, which adds to its gradients. One workspace for both.
template <HybridConfig Config>
class HybridBackward {
 public:
  using Parts = HybridGradientParts<Config>;

  HybridBackward(const BackwardArgs<Config>& args, const Cuda& on)
      : window_call_(Parts::window(args)),
        linear_(Parts::linear(args), sequence_count(args.sequences, args.query.batch), on),
        window_(window_call_) {}
  HybridBackward(const HybridBackward&) = delete;  // one part refers to another
  HybridBackward& operator=(const HybridBackward&) = delete;
  ~HybridBackward() = default;

  [[nodiscard]] std::size_t workspace_bytes() const { return larger(linear_.workspace_bytes(), counted_bytes(window_)); }

  [[nodiscard]] KernelKinds kernels() const { return linear_.kernels() | window_.kernels(); }

  Status run(const Workspace& workspace, const Cuda& on) {
    Arena of_linear(workspace);
    linear_.take(of_linear);
    const Status status = linear_.run("backward", on);
    Arena of_window(workspace);
    window_.take(of_window);
    return status.ok() ? window_.run(on) : status;
  }

 private:
  WindowBackwardCall<typename Parts::Window> window_call_;
  Backward<typename Parts::Linear> linear_;
  WindowBackward<typename Parts::Window> window_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace cuda

/// Linear and window attention in one mixer, on a CUDA stream: the linear part's kernels, then the window's, with the
/// denominators between them in the workspace.
template <HybridConfig Config>
struct MixerBackend<Config, Cuda> {
  /// Checks what the host can see.
  template <class Args>
  static Status check(const Args& args) {
    Checker check(operation_name(args));
    check.take(check_shapes(args));
    check_implicit_slots(check, args, sequences_of(args));
    if constexpr (requires { args.key_encoder; }) {
      check_dense_prefix(check, args);
    }
    return check.status();
  }
  static Status check(const BackwardArgs<Config>& args) {
    Checker check(operation_name(args));
    check.take(check_shapes(args));
    check_dense_prefix(check, args);
    return check.status();
  }

  template <class Args>
  static std::size_t workspace_bytes(const Args& args, const Cuda& on) {
    Arena counting;
    auto part = part_of(args, on);
    static_cast<void>(take(counting, args, part));
    return counting.bytes_needed();
  }
  static std::size_t workspace_bytes(const CommitArgs<Config>& args, const Cuda& /*on*/) {
    return step_bytes(Parts::linear(args));
  }

  static std::size_t workspace_bytes(const BackwardArgs<Config>& args, const Cuda& on) {
    return cuda::HybridBackward<Config>(args, on).workspace_bytes();
  }

  /// A prefill or a step.
  template <class Args>
  static Status run(const Args& args, const Workspace& workspace, const Cuda& on) {
    const char* const operation = operation_name(args);
    Checker checker(operation);
    checker.take(check(args));
    checker.workspace(workspace, checker.ok() ? workspace_bytes(args, on) : 0);
    if (!checker.ok()) {
      return checker.status();
    }
    if (on.error() != cudaSuccess) {
      return cuda::device_status(operation, on.error());
    }
    Arena arena(workspace);
    auto part = part_of(args, on);
    const auto denominators = Parts::denominators(args, take(arena, args, part));
    const Status status = part.run(denominators);
    return status.ok()
               ? MixerBackend<typename Parts::Ring, Cuda>::run_call(operation, Parts::window(args, denominators), on)
               : status;
  }
  static Status run(const CommitArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    checker.workspace(workspace, checker.ok() ? workspace_bytes(args, on) : 0);
    if (checker.ok()) {
      checker.take(cuda::launch_step("commit", cuda::step_of(Parts::linear(args)), workspace, on));
    }
    if (checker.ok()) {
      checker.take(cuda::launch("commit", cuda::commit_window<typename Parts::Ring>,
                                {args.staging.sequences * args.staging.heads, cuda::window_cache_threads, 0}, on,
                                Parts::window(args)));
    }
    return checker.status();
  }

  static Status run(const BackwardArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    checker.workspace(workspace, checker.ok() ? workspace_bytes(args, on) : 0);
    if (!checker.ok()) {
      return checker.status();
    }
    return on.error() == cudaSuccess ? cuda::HybridBackward<Config>(args, on).run(workspace, on)
                                     : cuda::device_status("backward", on.error());
  }

  template <class Args>
  static KernelKinds kernels(const Args& args, const Cuda& on) {
    return part_of(args, on).kernels() |
           MixerBackend<typename Parts::Ring, Cuda>::kernels_of_call(Parts::window(args, {}), on);
  }
  static KernelKinds kernels(const CommitArgs<Config>& /*args*/, const Cuda& /*on*/) { return {.ordinary_units = true}; }
  static KernelKinds kernels(const BackwardArgs<Config>& args, const Cuda& on) {
    return cuda::HybridBackward<Config>(args, on).kernels();
  }

 private:
  using Parts = HybridParts<Config>;
  using Denominator = typename Parts::Denominator;
  using LinearPart = typename Parts::LinearPart;

  /// Denominators first, then the linear part's workspace; the window part needs none.
  template <class Args, class Part>
  static Denominator* take(Arena& arena, const Args& args, Part& part) {
    auto* const denominators = arena.take<Denominator>(Parts::denominator_count(args));
    part.take(arena);
    return denominators;
  }

  /// The linear part of a step, and its workspace.
  class StepPart {
   public:
    template <class Args>
    StepPart(const Args& args, const Cuda& on) : step_(Parts::linear(args, {})), on_(on), name_(operation_name(args)) {}

    void take(Arena& arena) {
      rest_.bytes = step_bytes(step_);
      rest_.data = arena.take<std::byte>(static_cast<std::int64_t>(rest_.bytes));
    }
    [[nodiscard]] static KernelKinds kernels() { return {.ordinary_units = true}; }
    Status run(const typename Parts::Denominators& denominators) {
      step_.denominators = denominators;
      return cuda::launch_step(name_, cuda::step_of(step_), rest_, on_);
    }

   private:
    LinearPartStep<LinearPart> step_;
    const Cuda& on_;
    const char* name_;
    Workspace rest_{};
  };

  static cuda::LinearPartPrefill<Config> part_of(const PrefillArgs<Config>& args, const Cuda& on) { return {args, on}; }
  template <class Args>
  static StepPart part_of(const Args& args, const Cuda& on) {
    return {args, on};
  }

  static std::size_t step_bytes(const LinearPartStep<LinearPart>& step) {
    Arena counting;
    counting.take<typename cuda::StepCall<LinearPart>::T>(cuda::step_of(step).sum_elements());
    return counting.bytes_needed();
  }
};

}  // namespace jrt::detail
