// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/check/erased.hpp"
#include "jrt/detail/check/mixer.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"

/// What makes the arguments of linear attention valid, and views of tokens of either attention; `check_shapes` and
/// `check_arrays` as in mixer.hpp.
namespace jrt::detail {

/// A view that others are held against, and how messages call it.
struct NamedView {
  AnyView view;
  const char* name;
};

/// A view with the tokens of one and the heads of another.
inline void check_beside(Checker& check, const char* argument, const AnyView& view, const NamedView& tokens,
                         const NamedView& heads, int dim) {
  check.view(argument, view, dim);
  check.same_tokens(argument, view, tokens.name, tokens.view);
  check.equal(argument, "heads", view.heads, heads.view.heads, heads.name);
}
/// The same for one that is written to, if the call has it.
inline void check_optional_output(Checker& check, const char* argument, const AnyView& view, const NamedView& tokens,
                                  const NamedView& heads, int dim) {
  if (view.is_given()) {
    check_beside(check, argument, view, tokens, heads, dim);
    check.rows_apart(argument, view);
  }
}

/// Queries, keys and values, of either attention.
inline void check_inputs(Checker& check, const AnyView& query, const AnyView& key, const AnyView& value, int head_dim,
                         int value_dim) {
  check.view("query", query, head_dim);
  check.view("key", key, head_dim);
  check.view("value", value, value_dim);
  check.same_tokens("key", key, "query's", query);
  check.same_tokens("value", value, "query's", query);
  check.equal("value", "heads", value.heads, key.heads, "key's");
  check.multiple("query", "heads", query.heads, key.heads, "the heads of 'key'");
}

/// Queries, keys, values and outputs of a prefill or a step, of either attention.
inline void check_token_views(Checker& check, const AnyView& query, const AnyView& key, const AnyView& value,
                              const AnyView& output, int head_dim, int value_dim) {
  check_inputs(check, query, key, value, head_dim, value_dim);
  const NamedView queries{query, "query's"};
  check_beside(check, "output", output, queries, queries, value_dim);
  check.rows_apart("output", output);
}
template <class Args>
void check_token_views(Checker& check, const Args& args, int head_dim, int value_dim) {
  check_token_views(check, args.query, args.key, args.value, args.output, head_dim, value_dim);
}

/// Keys and values of the encoder region.
inline void check_encoder_views(Checker& check, const AnyView& key_encoder, const AnyView& value_encoder,
                                const Sequences& sequences, std::int64_t batch, std::int64_t heads, int head_dim,
                                int value_dim) {
  if (key_encoder.tokens != 0 || value_encoder.tokens != 0) {
    check.given("key_encoder", key_encoder, "tokens", value_encoder.tokens, "value_encoder's");
    check.given("value_encoder", value_encoder, "tokens", key_encoder.tokens, "key_encoder's");
    check.same_tokens("value_encoder", value_encoder, "key_encoder's", key_encoder);
    check.view("key_encoder", key_encoder, head_dim);
    check.view("value_encoder", value_encoder, value_dim);
    check.equal("key_encoder", "heads", key_encoder.heads, heads, "key's");
    check.equal("value_encoder", "heads", value_encoder.heads, heads, "key's");
    if (sequences.cu_encoder_seqlens != nullptr) {
      check.equal("key_encoder", "batch", key_encoder.batch, 1, "the batch of packed sequences");
    } else if (sequences.cu_seqlens != nullptr) {
      check.not_null("sequences.cu_encoder_seqlens", sequences.cu_encoder_seqlens);
    } else {
      check.equal("key_encoder", "batch", key_encoder.batch, batch, "query's");
    }
  }
}

/// Sequences and encoder region of a call whose linear attention is `Config`'s.
template <AttentionConfig Config, class Args>
void check_sequences(Checker& check, const Args& args) {
  check.sequence_shapes(args.sequences, args.query.batch);
  if constexpr (Config::Mask::reads_encoder) {
    check_encoder_views(check, args.key_encoder, args.value_encoder, args.sequences, args.query.batch, args.key.heads,
                        Config::FeatureMap::input_dim, Config::value_dim);
  } else {
    check.equal("key_encoder", "tokens", args.key_encoder.tokens, 0, "what a mask without encoder region reads");
    check.equal("value_encoder", "tokens", args.value_encoder.tokens, 0, "what a mask without encoder region reads");
  }
}

/// The positions of sequences that continue from a state, for maps that need them.
template <AttentionConfig Config, class Args>
void check_continued_positions(Checker& check, const Args& args) {
  if (Config::FeatureMap::needs_position && !args.initial_state.empty()) {
    check.not_null("sequences.first_positions (the feature map needs the position)", args.sequences.first_positions);
  }
}

/// Tensors, sequences and states of a prefill whose linear attention is `Config`'s.
template <AttentionConfig Config, class Args>
void check_prefill_views(Checker& check, const Args& args) {
  check.take(check_map(args.feature_map));
  check_token_views(check, args, Config::FeatureMap::input_dim, Config::value_dim);
  check_sequences<Config>(check, args);
  check_prefill_states(check, args, args.key.heads);
}

/// The denominators' place, if the call has one.
template <AttentionConfig Config, class Args>
void check_denominators(Checker& check, const Args& args) {
  const auto& denominators = args.denominators;
  if (denominators.data == nullptr && denominators.tokens == 0) {
    return;
  }
  if constexpr (Config::Normaliser::uses_denominator) {
    const NamedView queries{args.query, "query's"};
    check_beside(check, "denominators", denominators, queries, queries, 1);
    check.rows_apart("denominators", denominators);
  } else {
    check.equal("denominators", "tokens", denominators.tokens, 0, "what an operator that is not normalised has");
  }
}

template <AttentionConfig Config>
Status check_shapes(const PrefillArgs<Config>& args) {
  Checker check("prefill");
  check_prefill_views<Config>(check, args);
  check_denominators<Config>(check, args);
  check_continued_positions<Config>(check, args);
  return check.status();
}

/// Slots and arrays of sequences of a prefill whose linear attention is `Config`'s.
template <AttentionConfig Config, class Args>
void check_prefill_arrays(Checker& check, const Args& args, const Sequences& sequences) {
  const std::int64_t count = sequence_count(sequences, args.query.batch);
  check_prefill_slots(check, args, count);
  check_sequence_arrays(
      check, args, sequences, count,
      {args.query.tokens, args.key_encoder.tokens, Config::Mask::reads_encoder, max_position(args.feature_map)});
}

template <AttentionConfig Config>
Status check_arrays(const PrefillArgs<Config>& args) {
  Checker check("prefill");
  check_prefill_arrays<Config>(check, args, args.sequences);
  return check.status();
}

/// M <= T where both are extents of dense views: what shows of prefixes without a look into the arrays.
template <class Args>
void check_dense_prefix(Checker& check, const Args& args) {
  const Sequences& s = args.sequences;
  if (check.ok() && s.cu_seqlens == nullptr && s.cu_encoder_seqlens == nullptr && s.prefix_lens == nullptr &&
      sequence_count(s, args.query.batch) > 0) {
    check.entry("prefix (key_encoder.tokens)", 0, args.key_encoder.tokens, 0, args.query.tokens, "the sequence's tokens");
  }
}

template <AttentionConfig Config>
Status check_shapes(const AccumulateArgs<Config>& args) {
  Checker check("accumulate");
  check.take(check_map(args.feature_map));
  check.view("key", args.key, Config::FeatureMap::input_dim);
  check.view("value", args.value, Config::value_dim);
  check.same_tokens("value", args.value, "key's", args.key);
  check.equal("value", "heads", args.value.heads, args.key.heads, "key's");
  check.sequence_shapes(args.sequences, args.key.batch);
  check_initial_state(check, args, args.key.heads);
  check.pool("final_state", args.final_state.pool, args.key.heads);
  check_continued_positions<Config>(check, args);
  return check.status();
}

template <AttentionConfig Config>
Status check_arrays(const AccumulateArgs<Config>& args) {
  Checker check("accumulate");
  const std::int64_t count = sequence_count(args.sequences, args.key.batch);
  check_prefill_slots(check, args, count);
  // Neither the encoder's offsets nor prefixes mean anything here.
  Sequences sequences = args.sequences;
  sequences.cu_encoder_seqlens = nullptr;
  sequences.prefix_lens = nullptr;
  check_sequence_arrays(check, args, sequences, count, {args.key.tokens, 0, false, max_position(args.feature_map)});
  return check.status();
}

template <AttentionConfig Config>
Status check_shapes(const DecodeArgs<Config>& args) {
  Checker check("decode_step");
  check.take(check_map(args.feature_map));
  check_token_views(check, args, Config::FeatureMap::input_dim, Config::value_dim);
  check_denominators<Config>(check, args);
  check_step_states(check, args, args.key.heads);
  return check.status();
}

/// Room for `tokens_of(b)` more positions after `first_positions[b]`, in all sequences that are not skipped.
template <class Map>
void check_positions(Checker& check, const Map& map, const std::int32_t* first_positions, std::int64_t count,
                     const OfSequence<std::int64_t>& tokens_of, const OfSequence<bool>& skipped) {
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
Status check_arrays(const DecodeArgs<Config>& args) {
  Checker check("decode_step");
  const std::int64_t count = args.query.batch;
  const auto& destination = destination_of(args);
  check_step_slots(check, args, count);
  check_positions(
      check, args.feature_map, args.first_positions, count, [&](std::int64_t) { return args.query.tokens; },
      [&](std::int64_t b) { return sequence_skipped(args.source, nullptr, destination, b); });
  return check.status();
}

template <AttentionConfig Config>
Status check_shapes(const StagedStepArgs<Config>& args) {
  Checker check("staged_step");
  check.take(check_map(args.feature_map));
  check_token_views(check, args, Config::FeatureMap::input_dim, Config::value_dim);
  check_staged(check, args, {args.query.batch, "query's batch", args.query.tokens, args.key.heads, "key's heads"});
  return check.status();
}

template <AttentionConfig Config>
Status check_arrays(const StagedStepArgs<Config>& args) {
  Checker check("staged_step");
  const std::int64_t count = args.query.batch;
  check_staged_slots(check, args, count);
  check_positions(
      check, args.feature_map, args.first_positions, count,
      [&](std::int64_t) { return args.already_staged + args.query.tokens; },
      [&](std::int64_t b) { return args.state.slot(b) == skip_slot; });
  return check.status();
}

template <AttentionConfig Config>
Status check_shapes(const CommitArgs<Config>& args) {
  Checker check("commit");
  check.take(check_map(args.feature_map));
  check_commit(check, args);
  return check.status();
}

template <AttentionConfig Config>
Status check_arrays(const CommitArgs<Config>& args) {
  Checker check("commit");
  const std::int64_t count = args.staging.sequences;
  const auto& destination = destination_of(args);
  const auto skipped = [&](std::int64_t b) { return sequence_skipped(args.source, nullptr, destination, b); };
  check_commit_arrays(check, args);
  check_positions(
      check, args.feature_map, args.first_positions, count,
      [&](std::int64_t b) { return std::int64_t{args.accepted_tokens[b]}; }, skipped);
  return check.status();
}

}  // namespace jrt::detail
