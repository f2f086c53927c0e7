// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/convolution.hpp"
#include "jrt/detail/cuda/convolution/call.cuh"
#include "jrt/detail/cuda/convolution/gradient_launch.cuh"
#include "jrt/detail/cuda/convolution/launch.cuh"
#include "jrt/detail/cuda/state/backend.cuh"
#include "jrt/execution/cuda.cuh"
#include "jrt/kernels.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// The convolution on a CUDA stream: check what the host can see, launch.
template <ConvolutionConfig Config>
struct MixerBackend<Config, Cuda> {
  /// Checks what the host can see.
  template <class Args>
  static Status check(const Args& args) {
    Checker check(operation_name(args));
    check.take(check_shapes(args));
    check_implicit_slots(check, args, sequences_of(args));
    return check.status();
  }

  template <class Args>
  static KernelKinds kernels(const Args& /*args*/, const Cuda& /*on*/) {
    return {.ordinary_units = true};
  }

  template <class Args>
  static std::size_t workspace_bytes(const Args& /*args*/, const Cuda& /*on*/) {
    return 0;
  }
  static std::size_t workspace_bytes(const BackwardArgs<Config>& args, const Cuda& on) {
    return counted_bytes(cuda::ConvolutionGradientWork<Config>(args, on));
  }
  static Status run(const BackwardArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    if (!checker.ok()) {
      return checker.status();
    }
    cuda::ConvolutionGradientWork<Config> work(args, on);
    checker.workspace(workspace, counted_bytes(work));
    if (!checker.ok()) {
      return checker.status();
    }
    Arena arena(workspace);
    work.take(arena);
    return cuda::launch_gradients(operation_name(args), work.call, on);
  }

  static Status run(const PrefillArgs<Config>& args, const Workspace& /*workspace*/, const Cuda& on) {
    return run_without_first(args, nullptr, on);
  }
  /// A prefill that leaves alone the outputs of the first `left_out[b]` tokens of each sequence; null: none.
  static Status run_without_first(const PrefillArgs<Config>& args, const std::int32_t* left_out, const Cuda& on) {
    const Status status = check(args);
    if (!status.ok()) {
      return status;
    }
    auto call = call_of_tokens(args);
    call.sequences = args.sequences;
    call.source = args.initial_state;
    call.has_source = args.has_initial_state;
    call.destination = args.final_state;
    call.count = sequences_of(args);
    call.left_out = left_out;
    return cuda::launch_prefill("prefill", call, on);
  }
  static Status run(const DecodeArgs<Config>& args, const Workspace& /*workspace*/, const Cuda& on) {
    const Status status = check(args);
    if (!status.ok()) {
      return status;
    }
    auto call = call_of_tokens(args);
    call.source = args.source;
    call.destination = destination_of(args);
    return cuda::launch_step("decode_step", call, on);
  }
  static Status run(const StagedStepArgs<Config>& args, const Workspace& /*workspace*/, const Cuda& on) {
    const Status status = check(args);
    if (!status.ok()) {
      return status;
    }
    auto call = call_of_tokens(args);
    call.source = args.state;
    call.staging = args.staging;
    call.already_staged = args.already_staged;
    return cuda::launch_step("staged_step", call, on);
  }
  static Status run(const CommitArgs<Config>& args, const Workspace& /*workspace*/, const Cuda& on) {
    const Status status = check(args);
    if (!status.ok()) {
      return status;
    }
    cuda::ConvolutionCall<Config> call;
    call.source = args.source;
    call.destination = destination_of(args);
    call.staging = args.staging;
    call.accepted_tokens = args.accepted_tokens;
    call.count = args.staging.sequences;
    call.channels = args.staging.heads;
    return cuda::launch_stores("commit", call, cuda::takes_vectors(call), on);
  }

 private:
  /// The fields shared by a prefill and a step.
  template <class Args>
  static cuda::ConvolutionCall<Config> call_of_tokens(const Args& args) {
    cuda::ConvolutionCall<Config> call;
    call.input = args.input;
    call.gate = args.gate;
    call.output = args.output;
    call.weight = args.weight;
    call.bias = args.bias;
    call.count = args.input.batch;
    call.channels = args.input.dim;
    return call;
  }
};

}  // namespace jrt::detail
