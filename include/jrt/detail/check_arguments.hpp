// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/decode.hpp"
#include "jrt/detail/check.hpp"
#include "jrt/prefill.hpp"

/// What makes the arguments of an operation valid. `*_shapes` looks at extents, strides and pointers only and serves every
/// backend; `*_arrays` reads the int32 arrays and needs them in host memory.
namespace jrt::detail {

/// A state that may be left out; slots without a pool are a mistake, not an omission.
template <class Format>
void check_state(Checker& check, const char* argument, const StateSlots<Format>& state, std::int64_t heads) {
  if (!state.empty() || state.slots != nullptr) {
    check.pool(argument, state.pool, heads);
  }
}

/// Queries, keys, values and outputs of a prefill or a step.
template <AttentionConfig Config, class Args>
void check_token_views(Checker& check, const Args& args) {
  constexpr int d = Config::FeatureMap::input_dim;
  constexpr int dv = Config::value_dim;
  check.take(check_map(args.feature_map));
  check.view("query", args.query, d);
  check.view("key", args.key, d);
  check.view("value", args.value, dv);
  check.view("output", args.output, dv);
  check.same_tokens("key", args.key, "query's", args.query);
  check.same_tokens("value", args.value, "query's", args.query);
  check.same_tokens("output", args.output, "query's", args.query);
  check.equal("value", "heads", args.value.heads, args.key.heads, "key's");
  check.equal("output", "heads", args.output.heads, args.query.heads, "query's");
  check.multiple("query", "heads", args.query.heads, args.key.heads, "the heads of 'key'");
  check.rows_apart("output", args.output);
}

template <AttentionConfig Config>
Status check_prefill_shapes(const PrefillArgs<Config>& args) {
  constexpr int d = Config::FeatureMap::input_dim;
  constexpr int dv = Config::value_dim;
  Checker check("prefill");
  check_token_views<Config>(check, args);
  check.sequence_shapes(args.sequences, args.query.batch);
  check.same_tokens("value_encoder", args.value_encoder, "key_encoder's", args.key_encoder);
  if constexpr (Config::Mask::reads_encoder) {
    if (args.key_encoder.tokens != 0) {
      check.view("key_encoder", args.key_encoder, d);
      check.view("value_encoder", args.value_encoder, dv);
      check.equal("key_encoder", "heads", args.key_encoder.heads, args.key.heads, "key's");
      check.equal("value_encoder", "heads", args.value_encoder.heads, args.key.heads, "key's");
      if (args.sequences.cu_encoder_seqlens != nullptr) {
        check.equal("key_encoder", "batch", args.key_encoder.batch, 1, "the batch of packed sequences");
      } else if (args.sequences.cu_seqlens != nullptr) {
        check.not_null("sequences.cu_encoder_seqlens", args.sequences.cu_encoder_seqlens);
      } else {
        check.equal("key_encoder", "batch", args.key_encoder.batch, args.query.batch, "query's");
      }
    }
  } else {
    check.equal("key_encoder", "tokens", args.key_encoder.tokens, 0, "what a mask without encoder region reads");
  }
  check_state(check, "initial_state", args.initial_state, args.key.heads);
  check_state(check, "final_state", args.final_state, args.key.heads);
  if (args.has_initial_state != nullptr) {
    check.not_null("initial_state", args.initial_state.pool.data);
  }
  if (Config::FeatureMap::needs_position && !args.initial_state.empty()) {
    check.not_null("sequences.first_positions (the feature map needs the position)", args.sequences.first_positions);
  }
  return check.status();
}

/// Slots within their pools, and no state used twice.
template <class Format>
void check_slot_arrays(Checker& check, const char* source_name, const StateSlots<Format>& source,
                       const std::uint8_t* has_source, const char* destination_name, const StateSlots<Format>& destination,
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

template <AttentionConfig Config>
Status check_prefill_arrays(const PrefillArgs<Config>& args) {
  Checker check("prefill");
  const std::int64_t count = sequence_count(args.sequences, args.query.batch);
  check_slot_arrays(check, "initial_state.slots", args.initial_state, args.has_initial_state, "final_state.slots",
                    args.final_state, count);
  check.sequence_arrays(args.sequences, count, args.query.tokens, args.key_encoder.tokens, Config::Mask::reads_encoder,
                        max_position(args.feature_map), [&](std::int64_t b) {
                          return sequence_skipped(args.initial_state, args.has_initial_state, args.final_state, b);
                        });
  return check.status();
}

template <AttentionConfig Config>
Status check_accumulate_shapes(const AccumulateArgs<Config>& args) {
  Checker check("accumulate");
  check.take(check_map(args.feature_map));
  check.view("key", args.key, Config::FeatureMap::input_dim);
  check.view("value", args.value, Config::value_dim);
  check.same_tokens("value", args.value, "key's", args.key);
  check.equal("value", "heads", args.value.heads, args.key.heads, "key's");
  check.sequence_shapes(args.sequences, args.key.batch);
  check_state(check, "initial_state", args.initial_state, args.key.heads);
  check.pool("final_state", args.final_state.pool, args.key.heads);
  if (args.has_initial_state != nullptr) {
    check.not_null("initial_state", args.initial_state.pool.data);
  }
  if (Config::FeatureMap::needs_position && !args.initial_state.empty()) {
    check.not_null("sequences.first_positions (the feature map needs the position)", args.sequences.first_positions);
  }
  return check.status();
}

template <AttentionConfig Config>
Status check_accumulate_arrays(const AccumulateArgs<Config>& args) {
  Checker check("accumulate");
  const std::int64_t count = sequence_count(args.sequences, args.key.batch);
  check_slot_arrays(check, "initial_state.slots", args.initial_state, args.has_initial_state, "final_state.slots",
                    args.final_state, count);
  // Neither the encoder's offsets nor prefixes mean anything here.
  Sequences sequences = args.sequences;
  sequences.cu_encoder_seqlens = nullptr;
  sequences.prefix_lens = nullptr;
  check.sequence_arrays(sequences, count, args.key.tokens, 0, false, max_position(args.feature_map), [&](std::int64_t b) {
    return sequence_skipped(args.initial_state, args.has_initial_state, args.final_state, b);
  });
  return check.status();
}

template <AttentionConfig Config>
Status check_decode_shapes(const DecodeArgs<Config>& args) {
  Checker check("decode_step");
  check_token_views<Config>(check, args);
  check.pool("source", args.source.pool, args.key.heads);
  check_state(check, "destination", args.destination, args.key.heads);
  return check.status();
}

/// Room for `tokens_of(b)` more positions after `first_positions[b]`, in all sequences that are not skipped.
template <class Map, class TokensOf, class Skipped>
void check_positions(Checker& check, const Map& map, const std::int32_t* first_positions, std::int64_t count,
                     const TokensOf& tokens_of, const Skipped& skipped) {
  if constexpr (Map::needs_position) {
    check.not_null("first_positions (the feature map needs the position)", first_positions);
  }
  for (std::int64_t b = 0; check.ok() && first_positions != nullptr && b < count; ++b) {
    if (!skipped(b)) {
      check.entry("first_positions", b, first_positions[b], 0, max_position(map) - tokens_of(b),
                  "the feature map's max_position less the new tokens");
    }
  }
}

template <AttentionConfig Config>
Status check_decode_arrays(const DecodeArgs<Config>& args) {
  Checker check("decode_step");
  const std::int64_t count = args.query.batch;
  const auto& destination = destination_of(args);
  check_slot_arrays(check, "source.slots", args.source, nullptr,
                    args.destination.empty() ? "source.slots" : "destination.slots", destination, count);
  check_positions(
      check, args.feature_map, args.first_positions, count, [&](std::int64_t) { return args.query.tokens; },
      [&](std::int64_t b) { return sequence_skipped(args.source, nullptr, destination, b); });
  return check.status();
}

template <class Config>
void check_staging(Checker& check, const StagingView<Config>& staging) {
  check.at_least("staging", "sequences", staging.sequences, 0);
  check.at_least("staging", "tokens", staging.tokens, 0);
  check.at_least("staging", "heads", staging.heads, 1);
  if (staging.sequences > 0 && staging.tokens > 0) {
    check.not_null("staging", staging.data);
    check.aligned("staging", staging.data, alignof(typename Config::Element));
  }
}

template <AttentionConfig Config>
Status check_staged_shapes(const StagedStepArgs<Config>& args) {
  Checker check("staged_step");
  check_token_views<Config>(check, args);
  check.pool("state", args.state.pool, args.key.heads);
  check_staging(check, args.staging);
  check.equal("staging", "sequences", args.staging.sequences, args.query.batch, "query's batch");
  check.equal("staging", "heads", args.staging.heads, args.key.heads, "key's heads");
  check.at_least("already_staged", "value", args.already_staged, 0);
  check.at_least("staging", "tokens", args.staging.tokens, args.already_staged);
  if (check.ok()) {
    check.at_least("staging", "tokens left", args.staging.tokens - args.already_staged, args.query.tokens);
  }
  return check.status();
}

template <AttentionConfig Config>
Status check_staged_arrays(const StagedStepArgs<Config>& args) {
  Checker check("staged_step");
  const std::int64_t count = args.query.batch;
  for (std::int64_t b = 0; b < count; ++b) {
    check.slot("state.slots", args.state, b);
  }
  check_positions(
      check, args.feature_map, args.first_positions, count,
      [&](std::int64_t) { return args.already_staged + args.query.tokens; },
      [&](std::int64_t b) { return args.state.slot(b) == skip_slot; });
  return check.status();
}

template <AttentionConfig Config>
Status check_commit_shapes(const CommitArgs<Config>& args) {
  Checker check("commit");
  check.take(check_map(args.feature_map));
  check_staging(check, args.staging);
  check.not_null("accepted_tokens", args.accepted_tokens);
  check.pool("source", args.source.pool, args.staging.heads);
  check_state(check, "destination", args.destination, args.staging.heads);
  return check.status();
}

template <AttentionConfig Config>
Status check_commit_arrays(const CommitArgs<Config>& args) {
  Checker check("commit");
  const std::int64_t count = args.staging.sequences;
  const auto& destination = destination_of(args);
  const auto skipped = [&](std::int64_t b) { return sequence_skipped(args.source, nullptr, destination, b); };
  check_slot_arrays(check, "source.slots", args.source, nullptr,
                    args.destination.empty() ? "source.slots" : "destination.slots", destination, count);
  for (std::int64_t b = 0; check.ok() && b < count; ++b) {
    if (!skipped(b)) {
      check.entry("accepted_tokens", b, args.accepted_tokens[b], 0, args.staging.tokens, "the staging buffer's tokens");
    }
  }
  check_positions(
      check, args.feature_map, args.first_positions, count,
      [&](std::int64_t b) { return std::int64_t{args.accepted_tokens[b]}; }, skipped);
  return check.status();
}

}  // namespace jrt::detail
