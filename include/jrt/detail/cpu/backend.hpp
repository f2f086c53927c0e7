// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check_arguments.hpp"
#include "jrt/detail/cpu/decode.hpp"
#include "jrt/detail/cpu/execution.hpp"
#include "jrt/detail/cpu/prefill.hpp"
#include "jrt/detail/cpu/state_exchange.hpp"
#include "jrt/detail/cpu/state_operations.hpp"

namespace jrt::detail {

/// Every operation on the CPU: check the arguments, slice the workspace, hand heads to the executor.
template <Executor E>
struct Backend<Cpu<E>> {
  // -- prefill and accumulate --------------------------------------------------------------------------------------------

  template <class Config>
  static std::size_t prefill_workspace_bytes(const PrefillArgs<Config>& args, const Cpu<E>& on) {
    return checked(check_prefill(args)) ? sized(prefill_of(args, on)) : 0;
  }

  template <class Config>
  static Status prefill(const PrefillArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    if (Status status = check_prefill(args); !status.ok()) {
      return status;
    }
    return run_prefill("prefill", prefill_of(args, on), workspace, on);
  }

  template <class Config>
  static std::size_t accumulate_workspace_bytes(const AccumulateArgs<Config>& args, const Cpu<E>& on) {
    if (!checked(check_accumulate(args))) {
      return 0;
    }
    const auto encoder = as_encoder(args);
    return sized(accumulate_of(args, encoder, on));
  }

  template <class Config>
  static Status accumulate(const AccumulateArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    if (Status status = check_accumulate(args); !status.ok()) {
      return status;
    }
    const auto encoder = as_encoder(args);
    return run_prefill("accumulate", accumulate_of(args, encoder, on), workspace, on);
  }

  // -- decoding ----------------------------------------------------------------------------------------------------------

  template <class Config>
  static std::size_t decode_workspace_bytes(const DecodeArgs<Config>& args, const Cpu<E>& on) {
    return checked(check_decode_shapes(args)) ? step_bytes(step_of<Config>(args, 0), on) : 0;
  }

  template <class Config>
  static Status decode_step(const DecodeArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    Status status = check_decode_shapes(args);
    if (status.ok()) {
      status = check_decode_arrays(args);
    }
    return run_heads("decode_step", status, step_of<Config>(args, 0), args.query.batch, args.key.heads, workspace, on,
                     [&](const auto& tokens, std::int64_t b, std::int64_t h) { cpu::decode_head(args, tokens, b, h); });
  }

  template <class Config>
  static std::size_t staged_workspace_bytes(const StagedStepArgs<Config>& args, const Cpu<E>& on) {
    return checked(check_staged_shapes(args)) ? step_bytes(step_of<Config>(args, args.already_staged), on) : 0;
  }

  template <class Config>
  static Status staged_step(const StagedStepArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    Status status = check_staged_shapes(args);
    if (status.ok()) {
      status = check_staged_arrays(args);
    }
    return run_heads("staged_step", status, step_of<Config>(args, args.already_staged), args.query.batch, args.key.heads,
                     workspace, on,
                     [&](const auto& tokens, std::int64_t b, std::int64_t h) { cpu::staged_head(args, tokens, b, h); });
  }

  template <class Config>
  static std::size_t commit_workspace_bytes(const CommitArgs<Config>& args, const Cpu<E>& on) {
    return checked(check_commit_shapes(args)) ? step_bytes(commit_step_of(args), on) : 0;
  }

  template <class Config>
  static Status commit(const CommitArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    Status status = check_commit_shapes(args);
    if (status.ok()) {
      status = check_commit_arrays(args);
    }
    return run_heads("commit", status, commit_step_of(args), args.staging.sequences, args.staging.heads, workspace, on,
                     [&](const auto& tokens, std::int64_t b, std::int64_t h) { cpu::commit_head(args, tokens, b, h); });
  }

  // -- states ------------------------------------------------------------------------------------------------------------

  template <class Format>
  static Status clear_states(const StateSlots<Format>& states, std::int64_t count, const Cpu<E>& on) {
    Checker check("clear_states");
    check_states(check, "states", states, count, states.pool.heads);
    return for_heads(check, states.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (states.slot(b) != skip_slot) {
        cpu::clear_head<Format>(states.pool.head(states.slot(b), h));
      }
    });
  }

  template <class From, class To>
  static Status copy_states(const StateSlots<From>& source, const StateSlots<To>& destination, std::int64_t count,
                            const Cpu<E>& on) {
    static_assert(convertible_formats<From, To>,
                  "copy_states: states convert only between storage types and between packings of one Taylor map; these "
                  "formats have different feature maps, input or value dimensions.");
    Checker check("copy_states");
    check_states(check, "source", source, count, source.pool.heads);
    check_states(check, "destination", destination, count, source.pool.heads);
    if constexpr (std::is_same_v<From, To>) {
      check.distinct_slots("source.slots", source, "destination.slots", destination, count);
    } else {
      check.distinct_slots("destination.slots", destination, "destination.slots", destination, count);
    }
    return for_heads(check, source.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (source.slot(b) != skip_slot && destination.slot(b) != skip_slot) {
        cpu::copy_head<From, To>(source.pool.head(source.slot(b), h), destination.pool.head(destination.slot(b), h));
      }
    });
  }

  template <class Format>
  static Status merge_states(const StateSlots<Format>& source, const StateSlots<Format>& destination, std::int64_t count,
                             const Cpu<E>& on) {
    Checker check("merge_states");
    check_states(check, "source", source, count, source.pool.heads);
    check_states(check, "destination", destination, count, source.pool.heads);
    check.distinct_slots("source.slots", source, "destination.slots", destination, count);
    return for_heads(check, source.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (source.slot(b) != skip_slot && destination.slot(b) != skip_slot) {
        cpu::merge_head<Format>(source.pool.head(source.slot(b), h), destination.pool.head(destination.slot(b), h));
      }
    });
  }

  template <class Format, class Scalar>
  static Status export_states(const StateSlots<Format>& source, const DenseStates<Scalar>& destination, std::int64_t count,
                              const Cpu<E>& on) {
    Checker check("export_states");
    check_states(check, "source", source, count, source.pool.heads);
    check.not_null("destination.sums", destination.sums);
    check.not_null("destination.normaliser", destination.normaliser);
    return for_heads(check, source.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (source.slot(b) != skip_slot) {
        cpu::export_head<Format>(source.pool.head(source.slot(b), h), cpu::dense_head(destination, b, h));
      }
    });
  }

  template <class Format, class Scalar>
  static Status import_states(const DenseStates<Scalar>& source, const StateSlots<Format>& destination, std::int64_t count,
                              const Cpu<E>& on) {
    Checker check("import_states");
    check_states(check, "destination", destination, count, destination.pool.heads);
    check.distinct_slots("destination.slots", destination, "destination.slots", destination, count);
    check.not_null("source.sums", source.sums);
    check.not_null("source.normaliser", source.normaliser);
    return for_heads(check, destination.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (destination.slot(b) != skip_slot) {
        cpu::import_head<Format>(cpu::dense_head(source, b, h), destination.pool.head(destination.slot(b), h));
      }
    });
  }

  template <class Format>
  static Status save_states(const StateSlots<Format>& source, std::int64_t count, std::span<std::byte> buffer,
                            const Cpu<E>& on) {
    Checker check("save_states");
    check_states(check, "source", source, count, source.pool.heads);
    check.at_least("buffer", "bytes", static_cast<std::int64_t>(buffer.size()),
                   saved_states_bytes<Format>(count, source.pool.heads));
    if (check.ok()) {
      const SavedStatesHeader header = saved_header<Format>(count, source.pool.heads);
      std::memcpy(buffer.data(), &header, sizeof header);
    }
    return for_heads(check, source.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      std::byte* const to = buffer.data() + saved_offset<Format>(b, h, source.pool.heads);
      if (source.slot(b) != skip_slot) {
        std::memcpy(to, source.pool.head(source.slot(b), h), cpu::saved_head_bytes<Format>);
      } else {
        std::memset(to, 0, cpu::saved_head_bytes<Format>);
      }
    });
  }

  template <class Format>
  static Status load_states(std::span<const std::byte> buffer, const StateSlots<Format>& destination, std::int64_t count,
                            const Cpu<E>& on) {
    Checker check("load_states");
    check_states(check, "destination", destination, count, destination.pool.heads);
    check.distinct_slots("destination.slots", destination, "destination.slots", destination, count);
    if (check.ok()) {
      check.take(check_saved_states<Format>(buffer, count, destination.pool.heads));
    }
    return for_heads(check, destination.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (destination.slot(b) != skip_slot) {
        std::memcpy(destination.pool.head(destination.slot(b), h),
                    buffer.data() + saved_offset<Format>(b, h, destination.pool.heads), cpu::saved_head_bytes<Format>);
      }
    });
  }

 private:
  static bool checked(const Status& status) { return status.ok(); }

  template <class Config>
  static Status check_prefill(const PrefillArgs<Config>& args) {
    Status status = check_prefill_shapes(args);
    return status.ok() ? check_prefill_arrays(args) : status;
  }

  template <class Config>
  static cpu::Prefill<Config> prefill_of(const PrefillArgs<Config>& args, const Cpu<E>& on) {
    return {args, sequence_count(args.sequences, args.query.batch), args.key.heads, on.executor().concurrency()};
  }

  template <class Config>
  static Status check_accumulate(const AccumulateArgs<Config>& args) {
    Status status = check_accumulate_shapes(args);
    return status.ok() ? check_accumulate_arrays(args) : status;
  }

  /// Accumulation is a prefill without queries whose encoder region is the run of keys.
  template <class Config>
  struct EncoderOnly : Config {
    using Mask = PrefixMask;
  };

  template <class Config>
  static PrefillArgs<EncoderOnly<Config>> as_encoder(const AccumulateArgs<Config>& args) {
    PrefillArgs<EncoderOnly<Config>> encoder;
    encoder.query.heads = args.key.heads;
    encoder.key.heads = args.key.heads;
    encoder.key_encoder = args.key;
    encoder.value_encoder = args.value;
    encoder.sequences.cu_encoder_seqlens = args.sequences.cu_seqlens;
    encoder.sequences.prefix_lens = args.sequences.seq_lens;
    encoder.sequences.left_pads = args.sequences.left_pads;
    encoder.sequences.first_positions = args.sequences.first_positions;
    encoder.initial_state = args.initial_state;
    encoder.final_state = args.final_state;
    encoder.has_initial_state = args.has_initial_state;
    encoder.feature_map = args.feature_map;
    return encoder;
  }

  template <class Config>
  static cpu::Prefill<EncoderOnly<Config>> accumulate_of(const AccumulateArgs<Config>& args,
                                                         const PrefillArgs<EncoderOnly<Config>>& encoder,
                                                         const Cpu<E>& on) {
    return {encoder, sequence_count(args.sequences, args.key.batch), args.key.heads, on.executor().concurrency()};
  }

  template <class Work>
  static std::size_t sized(Work work) {
    Arena counting;
    work.take(counting);
    return counting.bytes_needed();
  }

  template <class Work>
  static Status run_prefill(const char* operation, Work work, const Workspace& workspace, const Cpu<E>& on) {
    Checker check(operation);
    check.workspace(workspace, sized(work));
    if (check.ok()) {
      Arena arena(workspace);
      work.take(arena);
      work.run(on.executor());
    }
    return check.status();
  }

  template <class Config, class Args>
  static cpu::StepScratch<Config> step_of(const Args& args, std::int64_t already_staged) {
    const std::int64_t group = args.key.heads > 0 ? args.query.heads / args.key.heads : 0;
    return {already_staged + args.query.tokens, already_staged, group};
  }

  template <class Config>
  static cpu::StepScratch<Config> commit_step_of(const CommitArgs<Config>& args) {
    return {args.staging.tokens, args.staging.tokens, 0};
  }

  template <class Config>
  static std::size_t step_bytes(cpu::StepScratch<Config> scratch, const Cpu<E>& on) {
    Arena counting;
    scratch.take(counting, on.executor().concurrency());
    return counting.bytes_needed();
  }

  /// Runs `head(tokens, b, h)` for every sequence and key/value head, if `status` and the workspace allow it.
  template <class Config, class Head>
  static Status run_heads(const char* operation, const Status& status, cpu::StepScratch<Config> scratch,
                          std::int64_t sequences, std::int64_t heads, const Workspace& workspace, const Cpu<E>& on,
                          const Head& head) {
    Checker check(operation);
    check.take(status);
    if (check.ok()) {
      check.workspace(workspace, step_bytes(scratch, on));
    }
    if (check.ok()) {
      Arena arena(workspace);
      scratch.take(arena, on.executor().concurrency());
      on.executor().run(sequences * heads, [&](std::int64_t task, int worker) {
        head(scratch.tokens_of(worker), task / heads, task % heads);
      });
    }
    return check.status();
  }

  template <class Format>
  static void check_states(Checker& check, const char* argument, const StateSlots<Format>& states, std::int64_t count,
                           std::int64_t heads) {
    check.at_least("count", "value", count, 0);
    check.at_least(argument, "heads", heads, 1);
    check.pool(argument, states.pool, heads);
    check.slots(argument, states, count);
  }

  template <class Head>
  static Status for_heads(const Checker& check, std::int64_t heads, std::int64_t count, const Cpu<E>& on,
                          const Head& head) {
    if (check.ok()) {
      on.executor().run(count * heads, [&](std::int64_t task, int /*worker*/) { head(task / heads, task % heads); });
    }
    return check.status();
  }

  template <class Format>
  static std::size_t saved_offset(std::int64_t b, std::int64_t h, std::int64_t heads) {
    return sizeof(SavedStatesHeader) + static_cast<std::size_t>(b * heads + h) * cpu::saved_head_bytes<Format>;
  }
};

}  // namespace jrt::detail
