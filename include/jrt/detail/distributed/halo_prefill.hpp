// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/halo_plan.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/prefill.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state_operations.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// The sequences of a rank's pieces, and of its halos and edges.
inline Sequences piece_sequences(const HaloPlan& plan) {
  Sequences sequences;
  sequences.count = plan.pieces;
  sequences.cu_seqlens = plan.arrays[piece_offsets];
  return sequences;
}
inline Sequences halo_sequences(const HaloPlan& plan, HaloArray offsets) {
  Sequences sequences;
  sequences.count = plan.halos;
  sequences.cu_seqlens = plan.arrays[offsets];
  return sequences;
}

/// A prefill of a mixer that needs the rows before a piece: all pieces at once, beside the exchange, from states that lack
/// other ranks' rows (from none, if the caller neither gives nor wants any); then, of pieces that begin inside a sequence,
/// the first tokens once more, from the states of their halos: later tokens do not look at those.
///
/// `Carried` makes the states of halos: `take(arena)`, `receive(communicator, on)`, `states()`. `Mixer` derives from this
/// class and has
///
///     static std::int64_t state_heads(const PrefillArgs<Config>& local);
///     static void slice(PrefillArgs<Config>& args, const auto& part);      // part(view) for each view of tokens
///     Status count_tokens_before(const StateSlots<Format>& states) const;  // of pieces behind halos
template <class Mixer, class Config, class Execution, class Carried>
class HaloPrefill {
 public:
  using Format = StateFormatOf<Config>;
  using Slots = StateSlots<Format>;

  [[nodiscard]] Status check_inner() const {
    return plan_.pieces == 0 ? Status() : MixerBackend<Config, Execution>::check(prefill_args());
  }

  void take(Arena& arena) {
    carried_.take(arena);
    const std::int64_t heads = Mixer::state_heads(local_);
    states_ = view_pool<Format>(arena.take<typename Format::Scalar>(plan_.pieces * heads * Format::head_elements),
                                plan_.pieces, heads);
    if (plan_.pieces > 0) {
      inner_.bytes = prefill_workspace_bytes(prefill_args(), on_);
    }
    for (std::int64_t i = 0; i < plan_.halos; ++i) {
      inner_.bytes = larger(inner_.bytes, prefill_workspace_bytes(edge_args(i), on_));
    }
    inner_.data = arena.take<std::byte>(static_cast<std::int64_t>(inner_.bytes));
  }

  template <class C, class Meanwhile>
  Status run(C& communicator, const Meanwhile& meanwhile) {
    Status status = overlapped(
        communicator, on_, [&](const Execution& beside) { return carried_.receive(communicator, beside); },
        [&](const Execution&) {
          const Status of_pieces = plan_.pieces > 0 ? prefill_pieces() : Status();
          return of_pieces.ok() ? meanwhile() : of_pieces;
        });
    for (std::int64_t i = 0; status.ok() && i < plan_.halos; ++i) {
      if (plan_.edge(i).tokens > 0) {
        status = prefill(edge_args(i), inner_, on_);
      }
    }
    if (local_.final_state.empty() || plan_.pieces == 0) {
      return status;
    }
    if (status.ok() && plan_.halos > 0) {
      status = copy_states(Slots{carried_.states()}, Slots{states_, plan_.arrays[short_pieces]}, plan_.halos, on_);
    }
    return status.ok() ? copy_states(Slots{states_, plan_.arrays[final_pieces]}, local_.final_state, plan_.sequences, on_)
                       : status;
  }

 protected:
  /// `carried`: arguments of `Carried` after the plan and before the execution.
  template <class... CarriedArgs>
  explicit HaloPrefill(const ContextPrefillArgs<Config>& args, const Execution& on, const CarriedArgs&... carried)
      : local_(args.local), plan_(args.plan->details()), on_(on), carried_(plan_, carried..., on) {}

  [[nodiscard]] const HaloPlan& plan() const { return plan_; }
  [[nodiscard]] const Execution& on() const { return on_; }

 private:
  [[nodiscard]] bool has_states() const { return plan_.reads_initial_state || !local_.final_state.empty(); }

  Status prefill_pieces() const {
    if (!has_states()) {
      return prefill(prefill_args(), inner_, on_);
    }
    Status status = clear_states(Slots{states_}, plan_.pieces, on_);
    if (status.ok() && plan_.reads_initial_state) {
      status = copy_states(local_.initial_state, Slots{states_, plan_.arrays[initial_pieces]}, plan_.sequences, on_);
    }
    if (status.ok() && plan_.halos > 0) {
      status = static_cast<const Mixer&>(*this).count_tokens_before(Slots{states_, plan_.arrays[halo_pieces]});
    }
    return status.ok() ? prefill(prefill_args(), inner_, on_) : status;
  }

  [[nodiscard]] PrefillArgs<Config> prefill_args() const {
    PrefillArgs<Config> args = local_;
    args.sequences = piece_sequences(plan_);
    return with_states(args, has_states() ? Slots{states_} : Slots{});
  }
  /// The first tokens of the piece after halo `i`.
  [[nodiscard]] PrefillArgs<Config> edge_args(std::int64_t i) const {
    const HaloPlan::Edge edge = plan_.edge(i);
    PrefillArgs<Config> args = local_;
    Mixer::slice(
        args, [&](const auto& view) { return view.data == nullptr ? view : view.slice_tokens(edge.first, edge.tokens); });
    Slots states{carried_.states()};
    states.pool.data = carried_.states().head(i, 0);
    states.pool.slots = 1;
    return with_states(args, states);
  }
  /// From and, where the caller wants final states, to `states`.
  [[nodiscard]] PrefillArgs<Config> with_states(PrefillArgs<Config> args, const Slots& states) const {
    args.initial_state = states;
    args.final_state = {};
    if (!local_.final_state.empty()) {
      args.final_state = args.initial_state;
    }
    return args;
  }

  const PrefillArgs<Config>& local_;
  const HaloPlan& plan_;
  const Execution& on_;
  Carried carried_;
  StatePoolView<Format> states_;
  Workspace inner_;
};

}  // namespace jrt::detail
