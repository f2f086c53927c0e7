// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/halo_plan.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/numeric.hpp"
#include "jrt/prefill.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state_operations.hpp"
#include "jrt/tensor_view.hpp"
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

/// A prefill of a mixer that needs the rows before a piece: all pieces at once, from states that lack other ranks' rows
/// (from none, if the caller neither gives nor wants any); beside that the exchange, which makes the states of halos, and
/// from these the first tokens of pieces that begin inside a sequence (the edges): later tokens do not look at halos. In
/// the end the edges' outputs replace those of the same tokens, unless the backend's prefill can leave these out
/// (`prefill_without_edges`).
///
/// `Carried` makes the states of halos: `take(arena)`, `receive(communicator, on)`, `states()`. `Mixer` derives from this
/// class and has
///
///     static std::int64_t state_heads(const PrefillArgs<Config>& local);
///     static void slice(PrefillArgs<Config>& args, const auto& part);      // part(view) for each view of tokens
///     static bool leaves_room(const PrefillArgs<Config>& local);           // for an exchange beside it
///     Status count_tokens_before(const StateSlots<Format>& states) const;  // of pieces behind halos
template <class Mixer, class Config, class Execution, class Carried>
class HaloPrefill {
 public:
  using Format = StateFormatOf<Config>;
  using Slots = StateSlots<Format>;
  using Element = typename Config::Element;

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
      inner_.data = arena.take<std::byte>(static_cast<std::int64_t>(inner_.bytes));
    }
    const auto results = [&](auto& of_edges, const auto& like) {
      using Value = std::remove_pointer_t<decltype(like.data)>;
      const std::int64_t tokens = edges_in_place ? 0 : plan_.edge_rows - plan_.halo_rows;
      of_edges = view_bthd(arena.take<Value>(like.data == nullptr ? 0 : tokens * like.heads * like.dim),
                           {.tokens = tokens, .heads = like.heads, .dim = like.dim});
    };
    results(edge_output_, local_.output);
    if constexpr (has_log_sum_exp) {
      results(edge_log_sum_exp_, local_.log_sum_exp);
    }
    for (std::int64_t i = 0; i < plan_.halos; ++i) {
      edge_inner_.bytes = larger(edge_inner_.bytes, prefill_workspace_bytes(edge_args(i, 0), on_));
    }
    edge_inner_.data = arena.take<std::byte>(static_cast<std::int64_t>(edge_inner_.bytes));
  }

  template <class C, class Meanwhile>
  Status run(C& communicator, const Meanwhile& meanwhile) {
    const auto transfers = [&](const Execution& beside) {
      const Status received = carried_.receive(communicator, beside);
      return received.ok() ? prefill_edges(Backend::for_few_rows(beside)) : received;
    };
    const auto work = [&](const Execution&) {
      const Status of_pieces = plan_.pieces > 0 ? prefill_pieces() : Status();
      return of_pieces.ok() ? meanwhile() : of_pieces;
    };
    Status status = Mixer::leaves_room(local_) ? overlapped(communicator, on_, transfers, work)
                                               : one_after_the_other(on_, transfers, work);
    if (status.ok() && !edges_in_place) {
      status = take_from_edges();
    }
    if (local_.final_state.empty() || plan_.pieces == 0) {
      return status;
    }
    if (status.ok() && any_short()) {
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
  using Backend = ContextBackend<Execution>;
  static constexpr bool has_log_sum_exp = requires(const PrefillArgs<Config>& args) { args.log_sum_exp; };
  /// Whether the prefill of pieces leaves the edges' outputs alone, so that these are written to their place.
  static constexpr bool edges_in_place = requires(const PrefillArgs<Config>& args, const Execution& on) {
    Backend::prefill_without_edges(args, nullptr, on);
  };

  /// Whether pieces start from states: the caller's, or such as count the tokens before.
  [[nodiscard]] bool starts_from_states() const {
    return plan_.reads_initial_state || (!local_.final_state.empty() && plan_.halos > 0);
  }

  Status prefill_pieces() const {
    if (!starts_from_states()) {
      return prefill_without_edges();
    }
    Status status = clear_states(Slots{states_}, plan_.pieces, on_);
    if (status.ok() && plan_.reads_initial_state) {
      status = copy_states(local_.initial_state, Slots{states_, plan_.arrays[initial_pieces]}, plan_.sequences, on_);
    }
    if (status.ok() && plan_.halos > 0) {
      status = static_cast<const Mixer&>(*this).count_tokens_before(Slots{states_, plan_.arrays[halo_pieces]});
    }
    return status.ok() ? prefill_without_edges() : status;
  }
  Status prefill_without_edges() const {
    if constexpr (edges_in_place) {
      return Backend::prefill_without_edges(prefill_args(), plan_.halos > 0 ? plan_.arrays[edge_tokens] : nullptr, on_);
    } else {
      return prefill(prefill_args(), inner_, on_);
    }
  }

  [[nodiscard]] PrefillArgs<Config> prefill_args() const {
    PrefillArgs<Config> args = local_;
    if (plan_.pieces != 1) {  // one is all of the rank's tokens
      args.sequences = piece_sequences(plan_);
    }
    args.initial_state = starts_from_states() ? Slots{states_} : Slots{};
    args.final_state = local_.final_state.empty() ? Slots{} : Slots{states_};
    return args;
  }

  /// Whether the state after a piece is that after its edge.
  [[nodiscard]] bool is_short(std::int64_t halo) const { return plan_.arrays.host(short_pieces)[halo] >= 0; }
  [[nodiscard]] bool any_short() const {
    bool any = false;
    for (std::int64_t i = 0; i < plan_.halos; ++i) {
      any = any || is_short(i);
    }
    return any;
  }
  /// The first tokens of the piece after halo `i`, whose outputs are those of the edges from `row` on, or in their place.
  [[nodiscard]] PrefillArgs<Config> edge_args(std::int64_t i, std::int64_t row) const {
    const HaloPlan::Edge edge = plan_.edge(i);
    PrefillArgs<Config> args = local_;
    Mixer::slice(
        args, [&](const auto& view) { return view.data == nullptr ? view : view.slice_tokens(edge.first, edge.tokens); });
    if constexpr (!edges_in_place) {
      args.output = edge_output_.slice_tokens(row, edge.tokens);
      if constexpr (has_log_sum_exp) {
        if (local_.log_sum_exp.data != nullptr) {
          args.log_sum_exp = edge_log_sum_exp_.slice_tokens(row, edge.tokens);
        }
      }
    }
    args.initial_state = Slots{carried_.states()};
    args.initial_state.pool.data = carried_.states().head(i, 0);
    args.initial_state.pool.slots = 1;
    args.final_state = {};
    if (!local_.final_state.empty() && is_short(i)) {
      args.final_state = args.initial_state;
    }
    return args;
  }
  /// `function(halo, edge, its first row in the edges' outputs)`.
  template <class Function>
  Status for_edges(const Function& function) const {
    Status status;
    std::int64_t row = 0;
    for (std::int64_t i = 0; status.ok() && i < plan_.halos; ++i) {
      const HaloPlan::Edge edge = plan_.edge(i);
      if (edge.tokens > 0) {
        status = function(i, edge, row);
      }
      row += edge.tokens;
    }
    return status;
  }
  Status prefill_edges(const Execution& on) const {
    return for_edges([&](std::int64_t i, const HaloPlan::Edge&, std::int64_t row) {
      return prefill(edge_args(i, row), edge_inner_, on);
    });
  }
  Status take_from_edges() const {
    return for_edges([&](std::int64_t, const HaloPlan::Edge& edge, std::int64_t row) {
      const auto take = [&](const auto& from, const auto& to) {
        using Value = std::remove_pointer_t<decltype(to.data)>;
        return to.data == nullptr ? Status()
                                  : Backend::copy_rows(TensorView<const Value>(from.slice_tokens(row, edge.tokens)),
                                                       to.slice_tokens(edge.first, edge.tokens), on_);
      };
      const Status status = take(edge_output_, local_.output);
      if constexpr (has_log_sum_exp) {
        return status.ok() ? take(edge_log_sum_exp_, local_.log_sum_exp) : status;
      } else {
        return status;
      }
    });
  }

  const PrefillArgs<Config>& local_;
  const HaloPlan& plan_;
  const Execution& on_;
  Carried carried_;
  StatePoolView<Format> states_;
  Workspace inner_;
  TensorView<Element> edge_output_;
  TensorView<ComputeType<Element>> edge_log_sum_exp_;  // if the mixer has one
  Workspace edge_inner_;
};

}  // namespace jrt::detail
