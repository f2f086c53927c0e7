// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/backward.hpp"
#include "jrt/decode.hpp"
#include "jrt/detail/check/checker.hpp"
#include "jrt/detail/check/erased.hpp"
#include "jrt/prefill.hpp"

/// What states, slots and staging buffers must be in the arguments of any mixer. Each mixer's header beside this one says
/// when its arguments are valid: `check_shapes` looks at extents, strides and pointers only and serves every backend;
/// `check_arrays` reads the int32 arrays and needs them in host memory.
namespace jrt::detail {

/// A state that may be left out; slots without a pool are a mistake, not an omission.
inline void check_state(Checker& check, const char* argument, const AnySlots& state, std::int64_t heads) {
  if (!state.empty() || state.slots != nullptr) {
    check.pool(argument, state.pool, heads);
  }
}

/// The states that sequences start from, and which do.
template <class Args>
void check_initial_state(Checker& check, const Args& args, std::int64_t heads) {
  check_state(check, "initial_state", args.initial_state, heads);
  if (args.has_initial_state != nullptr) {
    check.not_null("initial_state", args.initial_state.pool.data);
  }
}

/// The states of a prefill, of any mixer.
template <class Args>
void check_prefill_states(Checker& check, const Args& args, std::int64_t heads) {
  check_initial_state(check, args, heads);
  check_state(check, "final_state", args.final_state, heads);
}

/// The states of a backward pass, of a mixer whose states have gradients.
template <class Args>
void check_gradient_states(Checker& check, const Args& args, std::int64_t heads) {
  check_initial_state(check, args, heads);
  check_state(check, "final_state_gradient", args.final_state_gradient, heads);
  check_state(check, "initial_state_gradient", args.initial_state_gradient, heads);
}

/// The states of a step or a commit, of any mixer.
template <class Args>
void check_step_states(Checker& check, const Args& args, std::int64_t heads) {
  check.pool("source", args.source.pool, heads);
  check_state(check, "destination", args.destination, heads);
}

/// A `StagingView`, without its type.
struct AnyStaging {
  const void* data;
  std::size_t alignment;
  std::int64_t sequences;
  std::int64_t tokens;
  std::int64_t heads;
  std::int64_t heads_apart;

  template <class Config>
  AnyStaging(const StagingView<Config>& staging)
      : data(staging.data),
        alignment(alignof(typename Config::Element)),
        sequences(staging.sequences),
        tokens(staging.tokens),
        heads(staging.heads),
        heads_apart(staging.heads_apart) {}
};

/// What a mixer says of its tokens in a staged step, for messages.
struct StagedTokens {
  std::int64_t batch;
  const char* batch_name;
  std::int64_t tokens;
  std::int64_t heads;
  const char* heads_name;
};

/// Whether anything of a staging buffer is set. Of a layer's in a stack, the heads always are.
template <class Staging>
bool staging_given(const Staging& staging) {
  return staging.data != nullptr || staging.sequences != 0 || staging.tokens != 0;
}

/// A staging buffer by itself.
inline void check_staging(Checker& check, const AnyStaging& staging) {
  check.at_least("staging", "sequences", staging.sequences, 0);
  check.at_least("staging", "tokens", staging.tokens, 0);
  check.at_least("staging", "heads", staging.heads, 1);
  check.at_least("staging", "heads_apart", staging.heads_apart, staging.heads_apart == 0 ? 0 : staging.heads);
  if (staging.sequences > 0 && staging.tokens > 0) {
    check.not_null("staging", staging.data);
    check.aligned("staging", staging.data, staging.alignment);
  }
}

/// State and staging buffer of a staged step.
inline void check_staged(Checker& check, const AnyPool& state, const AnyStaging& staging, std::int64_t already_staged,
                         const StagedTokens& call) {
  check.pool("state", state, call.heads);
  check.given("staging", call.batch == 0 || staging_given(staging), "sequences", call.batch, call.batch_name);
  check_staging(check, staging);
  check.equal("staging", "sequences", staging.sequences, call.batch, call.batch_name);
  check.equal("staging", "heads", staging.heads, call.heads, call.heads_name);
  check.at_least("already_staged", "value", already_staged, 0);
  check.at_least("staging", "tokens", staging.tokens, already_staged);
  if (check.ok()) {
    check.at_least("staging", "tokens left", staging.tokens - already_staged, call.tokens);
  }
}
template <class Args>
void check_staged(Checker& check, const Args& args, const StagedTokens& call) {
  check_staged(check, args.state.pool, args.staging, args.already_staged, call);
}

/// Staging buffer, counts and states of a commit, of any mixer.
template <class Config>
void check_commit(Checker& check, const CommitArgs<Config>& args) {
  check.not_null("source", args.source.pool.data);
  check.given("staging", staging_given(args.staging) || args.staging.heads != 0, "heads", args.source.pool.heads,
              "source's");
  check_staging(check, args.staging);
  check.not_null("accepted_tokens", args.accepted_tokens);
  check_step_states(check, args, args.staging.heads);
}

/// Name of the operation, as messages spell it.
template <class Config>
const char* operation_name(const PrefillArgs<Config>& /*args*/) {
  return "prefill";
}
template <class Config>
const char* operation_name(const BackwardArgs<Config>& /*args*/) {
  return "backward";
}
template <class Config>
const char* operation_name(const DecodeArgs<Config>& /*args*/) {
  return "decode_step";
}
template <class Config>
const char* operation_name(const StagedStepArgs<Config>& /*args*/) {
  return "staged_step";
}
template <class Config>
const char* operation_name(const CommitArgs<Config>& /*args*/) {
  return "commit";
}

/// Sequences of a call.
template <class Args>
std::int64_t sequences_of(const Args& args) {
  if constexpr (requires { args.accepted_tokens; }) {
    return args.staging.sequences;
  } else {
    std::int64_t batch = 0;
    if constexpr (requires { args.input; }) {
      batch = args.input.batch;
    } else {
      batch = args.query.batch;
    }
    if constexpr (requires { args.sequences; }) {
      return sequence_count(args.sequences, batch);
    } else {
      return batch;
    }
  }
}

/// What the host sees of slots when the arrays are in device memory: that without an array there are enough. Slots of
/// sequences that start empty do not count, and which those are it cannot see.
template <class Args>
void check_implicit_slots(Checker& check, const Args& args, std::int64_t count) {
  if constexpr (requires { args.final_state_gradient; }) {
    if (args.has_initial_state == nullptr) {
      check.implicit_slots("initial_state", args.initial_state, count);
    }
    check.implicit_slots("final_state_gradient", args.final_state_gradient, count);
    check.implicit_slots("initial_state_gradient", args.initial_state_gradient, count);
    check.at_least("sequences.max_tokens", "value", args.sequences.max_tokens, 0);
  } else if constexpr (requires { args.final_state; }) {
    if (args.has_initial_state == nullptr) {
      check.implicit_slots("initial_state", args.initial_state, count);
    }
    check.implicit_slots("final_state", args.final_state, count);
    check.at_least("sequences.max_tokens", "value", args.sequences.max_tokens, 0);
  } else if constexpr (requires { args.state; }) {
    check.implicit_slots("state", args.state, count);
  } else {
    check.implicit_slots("source", args.source, count);
    check.implicit_slots("destination", args.destination, count);
  }
}

/// Slots within their pools, and no state used twice.
inline void check_slot_arrays(Checker& check, const char* source_name, const AnySlots& source,
                              const std::uint8_t* has_source, const char* destination_name, const AnySlots& destination,
                              std::int64_t count) {
  for (std::int64_t b = 0; b < count; ++b) {
    if (!source.empty() && (has_source == nullptr || has_source[b] != 0)) {
      check.slot(source_name, source, b);
    }
    if (!destination.empty()) {
      check.slot(destination_name, destination, b);
    }
  }
  if (check.ok() && !destination.empty()) {
    const auto skipped = [&](std::int64_t b) { return sequence_skipped(source, has_source, destination, b); };
    check.states_apart(
        source_name,
        [&](std::int64_t b) {
          const bool reads = !skipped(b) && (has_source == nullptr || has_source[b] != 0);
          return reads ? Checker::memory_of(source, b) : Checker::StateMemory{};
        },
        destination_name,
        [&](std::int64_t b) { return skipped(b) ? Checker::StateMemory{} : Checker::memory_of(destination, b); }, count);
  }
}

template <class Args>
void check_prefill_slots(Checker& check, const Args& args, std::int64_t count) {
  check_slot_arrays(check, "initial_state.slots", args.initial_state, args.has_initial_state, "final_state.slots",
                    args.final_state, count);
}
/// The same of a backward pass: no gradient of an initial state lies where another sequence has a state.
template <class Args>
void check_gradient_slots(Checker& check, const Args& args, std::int64_t count) {
  const AnySlots initial = args.initial_state;
  const AnySlots final_gradient = args.final_state_gradient;
  const AnySlots initial_gradient = args.initial_state_gradient;
  const auto reads_initial = [&](std::int64_t b) {
    return reads_initial_state(args.initial_state, args.has_initial_state, b);
  };
  for (std::int64_t b = 0; b < count; ++b) {
    if (reads_initial(b)) {
      check.slot("initial_state.slots", initial, b);
    }
    if (!final_gradient.empty()) {
      check.slot("final_state_gradient.slots", final_gradient, b);
    }
    if (!initial_gradient.empty()) {
      check.slot("initial_state_gradient.slots", initial_gradient, b);
    }
  }
  if (!check.ok() || initial_gradient.empty()) {
    return;
  }
  const auto memory_of = [&](const AnySlots& state, std::int64_t b) {
    return gradients_skipped(args, b) ? Checker::StateMemory{} : Checker::memory_of(state, b);
  };
  const char* const written = "initial_state_gradient.slots";
  const auto written_by = [&](std::int64_t b) { return memory_of(initial_gradient, b); };
  check.states_apart(
      "final_state_gradient.slots", [&](std::int64_t b) { return memory_of(final_gradient, b); }, written, written_by,
      count);
  check.states_apart(
      "initial_state.slots",
      [&](std::int64_t b) { return reads_initial(b) ? memory_of(initial, b) : Checker::StateMemory{}; }, written,
      written_by, count);
}

template <class Args>
void check_step_slots(Checker& check, const Args& args, std::int64_t count) {
  check_slot_arrays(check, "source.slots", args.source, nullptr,
                    args.destination.empty() ? "source.slots" : "destination.slots", destination_of(args), count);
}
template <class Args>
void check_staged_slots(Checker& check, const Args& args, std::int64_t count) {
  const AnySlots state = args.state;
  for (std::int64_t b = 0; b < count; ++b) {
    check.slot("state.slots", state, b);
  }
}

/// What the arrays of a call's sequences are held against.
struct SequenceBounds {
  std::int64_t tokens;
  std::int64_t encoder_tokens;
  bool has_encoder;
  std::int64_t max_position;
};

/// The arrays of a prefill's sequences.
inline void check_sequence_arrays(Checker& check, const AnySlots& initial, const std::uint8_t* has_initial_state,
                                  const AnySlots& final, const Sequences& sequences, std::int64_t count,
                                  const SequenceBounds& bounds) {
  check.sequence_arrays(sequences, count, bounds.tokens, bounds.encoder_tokens, bounds.has_encoder, bounds.max_position,
                        [&](std::int64_t b) { return sequence_skipped(initial, has_initial_state, final, b); });
}
template <class Args>
void check_sequence_arrays(Checker& check, const Args& args, const Sequences& sequences, std::int64_t count,
                           const SequenceBounds& bounds) {
  check_sequence_arrays(check, args.initial_state, args.has_initial_state, args.final_state, sequences, count, bounds);
}

/// Slots of a commit, and how many staged rows each sequence takes; of any mixer.
template <class Config>
void check_commit_arrays(Checker& check, const CommitArgs<Config>& args) {
  check_step_slots(check, args, args.staging.sequences);
  for (std::int64_t b = 0; check.ok() && b < args.staging.sequences; ++b) {
    if (!sequence_skipped(args.source, nullptr, destination_of(args), b)) {
      check.entry("accepted_tokens", b, args.accepted_tokens[b], 0, args.staging.tokens, "the staging buffer's tokens");
    }
  }
}

/// Slots and lengths of a prefill in which neither an encoder nor a given position means anything.
template <class Config>
void check_plain_prefill_arrays(Checker& check, const PrefillArgs<Config>& args, std::int64_t batch, std::int64_t tokens) {
  const std::int64_t count = sequence_count(args.sequences, batch);
  check_prefill_slots(check, args, count);
  Sequences sequences = args.sequences;
  sequences.cu_encoder_seqlens = nullptr;
  sequences.prefix_lens = nullptr;
  sequences.first_positions = nullptr;
  check_sequence_arrays(check, args, sequences, count, {tokens, 0, false, INT64_MAX / 2});
}

}  // namespace jrt::detail
