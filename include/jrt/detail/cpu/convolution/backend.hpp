// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/convolution.hpp"
#include "jrt/detail/cpu/convolution/convolution.hpp"
#include "jrt/detail/cpu/convolution/gradients.hpp"
#include "jrt/detail/cpu/state/backend.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/shared/convolution/gradients.hpp"
#include "jrt/execution/cpu.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// The convolution on the CPU: check the arguments, hand blocks of channels to the executor.
template <ConvolutionConfig Config, Executor E>
struct MixerBackend<Config, Cpu<E>> {
  template <class Args>
  static Status check(const Args& args) {
    const Status status = check_shapes(args);
    return status.ok() ? check_arrays(args) : status;
  }

  template <class Args>
  static std::size_t workspace_bytes(const Args& /*args*/, const Cpu<E>& /*on*/) {
    return 0;
  }
  static std::size_t workspace_bytes(const BackwardArgs<Config>& args, const Cpu<E>& /*on*/) {
    Arena counting;
    counting.take<ConvolutionCompute<Config>>(partial_sums(args, cpu::convolution_gradient_segment_tokens));
    return counting.bytes_needed();
  }
  static Status run(const BackwardArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    if (checker.ok()) {
      checker.workspace(workspace, workspace_bytes(args, on));
    }
    if (!checker.ok()) {
      return checker.status();
    }
    Arena arena(workspace);
    ConvolutionCompute<Config>* const partials =
        sums_wanted(args)
            ? arena.take<ConvolutionCompute<Config>>(partial_sums(args, cpu::convolution_gradient_segment_tokens))
            : nullptr;
    const std::int64_t segments =
        row_runs(args.sequences, args.input.batch, args.input.tokens, cpu::convolution_gradient_segment_tokens);
    constexpr std::int64_t block = cpu::gradient_channels<Config>;
    for_blocks<block>(segments, args.input.dim, on, [&](std::int64_t segment, std::int64_t channel) {
      cpu::channel_gradients(args, segment, channel, partials);
    });
    if (sums_wanted(args)) {
      for_blocks<block>(1, args.input.dim, on, [&](std::int64_t /*one*/, std::int64_t channel) {
        cpu::add_segments(args, partials, segments, channel);
      });
    }
    if (!args.initial_state_gradient.empty()) {
      for_blocks<block>(sequences_of(args), args.input.dim, on,
                        [&](std::int64_t b, std::int64_t channel) { cpu::initial_state_gradients(args, b, channel); });
    }
    return {};
  }

  static Status run(const PrefillArgs<Config>& args, const Workspace& /*workspace*/, const Cpu<E>& on) {
    const Status status = check(args);
    if (!status.ok()) {
      return status;
    }
    const std::int64_t count = sequences_of(args);
    std::int64_t longest = 0;
    for (std::int64_t b = 0; b < count; ++b) {
      longest = larger(longest, sequence_span(args.sequences, b, args.input.tokens, 0).row_tokens);
    }
    const std::int64_t segment_tokens = tokens_per_task(longest, on);
    const std::int64_t segments = ceil_div(longest, segment_tokens);
    for_blocks(count * segments, args.input.dim, on, [&](std::int64_t task, std::int64_t channel) {
      const std::int64_t first = task % segments * segment_tokens;
      cpu::convolve_rows(args, task / segments, first, first + segment_tokens, channel);
    });
    if (!args.final_state.empty()) {
      for_blocks(count, args.input.dim, on,
                 [&](std::int64_t b, std::int64_t channel) { cpu::store_final_inputs(args, b, channel); });
    }
    return status;
  }
  static Status run(const DecodeArgs<Config>& args, const Workspace& /*workspace*/, const Cpu<E>& on) {
    const Status status = check(args);
    if (status.ok()) {
      for_blocks(args.input.batch, args.input.dim, on,
                 [&](std::int64_t b, std::int64_t channel) { cpu::convolve_step(args, b, channel); });
    }
    return status;
  }
  static Status run(const StagedStepArgs<Config>& args, const Workspace& /*workspace*/, const Cpu<E>& on) {
    const Status status = check(args);
    if (status.ok()) {
      for_blocks(args.input.batch, args.input.dim, on,
                 [&](std::int64_t b, std::int64_t channel) { cpu::convolve_staged(args, b, channel); });
    }
    return status;
  }
  static Status run(const CommitArgs<Config>& args, const Workspace& /*workspace*/, const Cpu<E>& on) {
    const Status status = check(args);
    if (status.ok()) {
      for_blocks(args.staging.sequences, args.staging.heads, on,
                 [&](std::int64_t b, std::int64_t channel) { cpu::commit_inputs(args, b, channel); });
    }
    return status;
  }

 private:
  /// A few tasks for each worker, each long enough that loading the weights and the inputs before it costs little.
  static std::int64_t tokens_per_task(std::int64_t longest, const Cpu<E>& on) {
    const std::int64_t workers = workers_of(on);
    return workers == 1 ? larger<std::int64_t>(longest, 1) : larger<std::int64_t>(64, ceil_div(longest, 4 * workers));
  }

  /// Runs `function(item, first channel)` for every item and block of channels.
  template <std::int64_t block = cpu::convolution_channels<Config>, class Function>
  static void for_blocks(std::int64_t items, std::int64_t channels, const Cpu<E>& on, const Function& function) {
    const std::int64_t blocks = ceil_div(channels, block);
    on.executor().run(items * blocks,
                      [&](std::int64_t task, int /*worker*/) { function(task / blocks, task % blocks * block); });
  }
};

}  // namespace jrt::detail
