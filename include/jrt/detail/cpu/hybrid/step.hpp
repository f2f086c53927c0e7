// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/linear/step.hpp"
#include "jrt/detail/shared/hybrid/parts.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// The linear part of a step, a staged step or a commit, of one head: keys that leave the window are added to the state,
/// and queries read it. The window part writes the outputs of skipped sequences.
template <AttentionConfig Config>
void linear_part_step_head(const LinearPartStep<Config>& step, StepTokens<Config> tokens, std::int64_t b,
                           std::int64_t head) {
  if (step.source.slot(b) == skip_slot || (!step.destination.empty() && step.destination.slot(b) == skip_slot)) {
    return;
  }
  if (step.accepted_tokens != nullptr) {
    tokens.keys = step.accepted_tokens[b];
    tokens.keys_without_query = tokens.keys;
  }
  const auto keys =
      step.evicted.keys(b, head, step.accepted_tokens != nullptr ? tokens.keys : step.already_staged, step.key, step.value);
  tokens.tokens_without_key = smaller(tokens.keys, EvictedStep<Config>::tokens_without_key(keys));
  for (std::int64_t t = tokens.tokens_without_key; t < tokens.keys; ++t) {
    const std::int64_t token = EvictedStep<Config>::evicted(keys, t);
    tokens.read_key(t, keys.key(token), keys.value(token));
  }
  if (tokens.queries() > 0) {
    read_queries<Config>(step, tokens, b, head);
  }
  tokens.expand(step.feature_map, 1);
  HeadStep<Config>(tokens, step.source.pool.head(step.source.slot(b), head),
                   step.destination.empty() ? nullptr : step.destination.pool.head(step.destination.slot(b), head))
      .run();
  if (tokens.queries() > 0) {
    write_outputs<Config>(step, tokens, b, head);
    write_denominators(step.denominators, tokens, b, head);
  }
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
