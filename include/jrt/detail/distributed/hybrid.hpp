// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/check.hpp"
#include "jrt/detail/distributed/halo_plan.hpp"
#include "jrt/detail/distributed/linear.hpp"
#include "jrt/detail/distributed/linear_plan.hpp"
#include "jrt/detail/distributed/window.hpp"
#include "jrt/detail/shared/hybrid/parts.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/prefill.hpp"
#include "jrt/state_operations.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// The keys of an initial state's ring are no rank's tokens, but would enter the sums of later ranks.
inline Status check_whole_sequences_continue(const ContextLayout& layout) {
  for (std::int64_t g = 0; layout.tokens != nullptr && g < layout.sequences; ++g) {
    if (layout.continues(g) && LinearPlan::is_shared(layout, g)) {
      return Status::error(
          StatusCode::invalid_argument,
          "context layout: sequence %lld has an initial state and lies on more than one rank, which hybrid "
          "attention does not support.",
          static_cast<long long>(g));
    }
  }
  return {};
}

/// The plans of the two parts.
struct HybridPlan {
  LinearPlan linear;   // of states, which lag behind
  LinearPlan reverse;  // of gradients of states, one for each piece
  HaloPlan halo;
};

/// The sums of the linear part, whose states lag behind by L+1 tokens, and the rings from halos of as many; both together
/// are the states from which the rank's pieces start.
template <class Config, class Execution>
class HybridContextPrefill {
 public:
  using Parts = HybridParts<Config>;
  using Linear = typename Config::Linear;
  using Window = typename Config::Window;
  using Format = StateFormatOf<Config>;
  using RingFormat = StateFormatOf<Window>;
  using Slots = StateSlots<Format>;
  using SumOperator =
      std::conditional_t<divides_pieces<Linear>, SegmentOperator<Linear>,
                         std::conditional_t<std::is_same_v<typename Linear::StateScalar, ConfigCompute<Linear>>, Linear,
                                            StatesOfSums<Linear>>>;
  using States = LinearContextStates<Linear, Execution, SumOperator>;

  HybridContextPrefill(const ContextPrefillArgs<Config>& args, const Execution& on)
      : local_(args.local),
        plan_(args.plan->details()),
        on_(on),
        sums_(args.local, plan_.linear, on),
        rings_(plan_.halo, {args.local.key, args.local.value}, default_window_scale<Window>, {}, on) {}

  static void check(Checker& check, const PrefillArgs<Config>& local, const HybridPlan& plan) {
    check_linear_pieces<Linear>(check, local, plan.linear);
    check_piece(check, "local.output", local.output, plan.linear.tokens);
    check_context_states(check, "local.final_state", local.final_state, plan.linear.sequences, false);
  }
  [[nodiscard]] Status check_inner() const {
    return plan_.halo.pieces == 0 ? Status() : MixerBackend<Config, Execution>::check(prefill_args());
  }

  void take(Arena& arena) {
    sums_.take(arena);
    rings_.take(arena);
    const std::int64_t pieces = plan_.halo.pieces;
    states_ = view_pool<Format>(arena.take<typename Format::Scalar>(pieces * local_.key.heads * Format::head_elements),
                                pieces, local_.key.heads);
    inner_.bytes = sums_.inner_bytes();
    if (pieces > 0) {
      inner_.bytes = larger(inner_.bytes, prefill_workspace_bytes(prefill_args(), on_));
    }
    inner_.data = arena.take<std::byte>(static_cast<std::int64_t>(inner_.bytes));
  }

  template <class C, class Meanwhile>
  Status run(C& communicator, const Meanwhile& meanwhile) {
    const auto initial = Parts::template linear_slots<typename Parts::LinearPart>(local_.initial_state);
    Status status = overlapped(
        communicator, on_, [&](const Execution& beside) { return rings_.receive(communicator, beside); },
        [&](const Execution&) { return sums_.make_sums(initial, inner_); });
    const auto then = [&](const auto& step) {
      if (status.ok()) {
        status = step();
      }
    };
    then([&] { return sums_.exchange_sums(communicator, meanwhile); });
    then([&] { return sums_.make_starts(); });
    if (plan_.halo.pieces == 0) {
      return status;
    }
    then([&] { return clear_states(Slots{states_}, plan_.halo.pieces, on_); });
    if (plan_.halo.reads_initial_state) {
      then([&] {
        return copy_states(local_.initial_state, Slots{states_, plan_.halo.arrays[initial_pieces]}, plan_.halo.sequences,
                           on_);
      });
    }
    then([&] { return place_sums(); });
    if (plan_.halo.halos > 0) {
      then([&] { return place_rings(); });
    }
    then([&] { return prefill(prefill_args(), inner_, on_); });
    if (!local_.final_state.empty()) {
      then([&] {
        return copy_states(Slots{states_, plan_.halo.arrays[final_pieces]}, local_.final_state, plan_.halo.sequences, on_);
      });
    }
    return status;
  }

 private:
  /// The linear states of divided sequences.
  Status place_sums() const {
    const std::int32_t* const slots = plan_.linear.arrays[divided_pieces];
    const auto linear = Parts::template linear_slots<typename Parts::LinearPart>(Slots{states_, slots});
    return copy_states(typename States::Slots{sums_.starts(), slots}, linear, plan_.halo.pieces, on_);
  }
  /// The rings of pieces that have a halo.
  Status place_rings() const {
    const std::int64_t heads = local_.key.heads;
    const auto ring_bytes = static_cast<std::int64_t>(RingFormat::slot_bytes(1));
    Status status;
    for (std::int64_t i = 0; status.ok() && i < plan_.halo.halos; ++i) {
      const std::int64_t piece = plan_.halo.arrays.host(halo_pieces)[i];
      status = ContextBackend<Execution>::copy_blocks(
          rings_.states().head(i, 0), ring_bytes,
          reinterpret_cast<std::byte*>(states_.head(piece, 0)) + Format::window_offset_bytes, Format::head_bytes,
          ring_bytes, heads, on_);
    }
    return status;
  }

  /// Whether a piece has an encoder region that is not among the sums.
  [[nodiscard]] bool reads_own_encoder() const {
    if constexpr (Linear::Mask::reads_encoder) {
      const std::int32_t* const lengths = plan_.linear.arrays.host(prefix_lengths);
      const std::int64_t count = plan_.linear.arrays.size(prefix_lengths);
      return std::any_of(lengths, lengths + count, [](std::int32_t length) { return length > 0; });
    }
    return false;
  }
  [[nodiscard]] PrefillArgs<Config> prefill_args() const {
    PrefillArgs<Config> args = local_;
    args.sequences = piece_sequences(plan_.halo);
    if (reads_own_encoder()) {
      args.sequences.cu_encoder_seqlens = plan_.linear.arrays[prefix_offsets];
      args.sequences.prefix_lens = plan_.linear.arrays[prefix_lengths];
    } else {
      args.key_encoder.tokens = 0;  // the sums that pieces start from have it
      args.value_encoder.tokens = 0;
    }
    args.initial_state = {states_};
    args.final_state = {};
    if (!local_.final_state.empty()) {
      args.final_state = args.initial_state;
    }
    return args;
  }

  const PrefillArgs<Config>& local_;
  const HybridPlan& plan_;
  const Execution& on_;
  States sums_;
  WindowRings<Window, Execution> rings_;
  StatePoolView<Format> states_;
  Workspace inner_;
};

}  // namespace jrt::detail
