// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/checker.hpp"
#include "jrt/sequences.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// Bytes of workspace that `work` takes. Its tensors and states have addresses while they are counted, which nobody reads:
/// what the mixers' calls need may depend on which ones they are given.
template <class Work>
std::size_t context_bytes(Work work) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  Arena counting(Workspace{reinterpret_cast<void*>(Arena::alignment), 0});
  work.take(counting);
  return counting.bytes_needed();
}

/// A plan that was made, for this rank of this group, and placed where the executing device reads it.
template <class Plan, class C, class Execution>
void check_plan(Checker& check, const Plan* plan, const C& communicator, const Execution& /*on*/) {
  check.not_null("plan", plan);
  if (!check.ok()) {
    return;
  }
  check.at_least("plan (ContextPlan::make has not been called)", "ranks", plan->ranks(), 1);
  check.equal("plan", "ranks", plan->ranks(), communicator.size(), "the communicator's size");
  check.equal("plan", "rank", plan->rank(), communicator.rank(), "the communicator's rank");
  if (!Backend<Execution>::host_reads_arrays && !plan->is_placed()) {
    check.take(Status::error(StatusCode::invalid_argument,
                             "context-parallel call: the plan's indices are in host memory, but this device needs them in "
                             "its own: call ContextPlan::place first."));
  }
}

/// The plan says what the sequences are.
inline void check_no_sequences(Checker& check, const Sequences& sequences, const std::uint8_t* has_initial_state) {
  const bool given = sequences.count != 0 || sequences.cu_seqlens != nullptr || sequences.cu_encoder_seqlens != nullptr ||
                     sequences.seq_lens != nullptr || sequences.prefix_lens != nullptr || sequences.left_pads != nullptr ||
                     sequences.first_positions != nullptr || has_initial_state != nullptr;
  if (check.ok() && given) {
    check.take(
        Status::error(StatusCode::invalid_argument,
                      "context-parallel call: arguments 'local.sequences' and 'local.has_initial_state' must be left "
                      "out, since the plan's layout says how tokens are divided into sequences (left pads are not "
                      "supported)."));
  }
}

/// A view with the plan's tokens.
template <class View>
void check_piece(Checker& check, const char* argument, const View& view, std::int64_t tokens) {
  check.at_least(argument, "heads", view.heads, 1);
  check.equal(argument, "tokens", view.tokens, tokens, "what the plan's layout gives this rank");
  if (tokens > 0) {
    check.equal(argument, "batch", view.batch, 1, "the batch of packed pieces");
  }
}

/// States of the layout's sequences.
template <class Slots>
void check_context_states(Checker& check, const char* argument, const Slots& states, std::int64_t sequences, bool needed) {
  if (needed) {
    check.not_null(argument, states.pool.data);
  }
  if (!states.empty() && states.slots == nullptr) {
    check.at_least(argument, "slots", states.pool.slots, sequences);
  }
}

}  // namespace jrt::detail
