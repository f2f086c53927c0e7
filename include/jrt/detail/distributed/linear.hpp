// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/backward.hpp"
#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/check.hpp"
#include "jrt/detail/distributed/linear_plan.hpp"
#include "jrt/detail/host_device.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/prefill.hpp"
#include "jrt/state_operations.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// A segment of a sequence is a sequence of its own that is not split again.
struct NoSplit {
  static constexpr bool depends_on_tokens_alone = true;
  JRT_DETAIL_HD static constexpr std::int64_t segments(std::int64_t /*tokens*/, std::int64_t /*heads*/,
                                                       std::int64_t /*workers*/) {
    return 1;
  }
};

/// Whether segments are those of the whole sequence.
template <class Config>
inline constexpr bool keeps_segments = [] {
  if constexpr (requires { Config::Split::depends_on_tokens_alone; }) {
    return Config::Split::depends_on_tokens_alone && !Config::Mask::reads_future;
  } else {
    return false;
  }
}();

/// Whether a rank's pieces are divided into segments by its own device, and ranks exchange the pieces' sums.
template <class Config>
inline constexpr bool divides_pieces = !keeps_segments<Config> && !Config::Mask::reads_future;

/// An operator whose states have the type of sums.
template <class Config>
struct StatesOfSums : Config {
  using StateScalar = ConfigCompute<Config>;
};

/// The operator of segments: likewise.
template <class Config>
struct SegmentOperator : StatesOfSums<Config> {
  using Split = std::conditional_t<Config::Mask::reads_future, typename Config::Split, NoSplit>;
};
template <class Config>
using SegmentConfig =
    std::conditional_t<Config::Mask::reads_future && std::is_same_v<typename Config::StateScalar, ConfigCompute<Config>>,
                       Config, SegmentOperator<Config>>;

template <class Config, class Execution>
SegmentRule segment_rule(const Execution& on, std::int64_t heads) {
  SegmentRule rule;
  if constexpr (keeps_segments<Config>) {
    rule.segments = [](std::int64_t tokens) { return Config::Split::segments(tokens, 1, 1); };
  }
  if constexpr (divides_pieces<Config>) {
    rule.of_piece = [](std::int64_t tokens, std::int64_t heads_in_batch, std::int64_t workers) {
      return Config::Split::segments(tokens, heads_in_batch, workers);
    };
    rule.heads = heads;
    rule.workers = ContextBackend<Execution>::segment_workers(on);
    rule.min_segments = ContextBackend<Execution>::min_segments;
    rule.sums_at_once = ContextBackend<Execution>::sums_at_once(on);
  }
  rule.chunk = ContextBackend<Execution>::template segment_chunk<Config>;
  rule.reads_future = Config::Mask::reads_future;
  return rule;
}

/// Sums of segments, the exchange, and the states from which segments start. `InnerT` is the operator of segments.
template <class Config, class Execution, class InnerT = SegmentConfig<Config>>
class LinearContextStates {
 public:
  using Inner = InnerT;
  using Format = StateGradientFormatOf<Config>;
  using Element = typename Config::Element;
  using Pool = StatePoolView<Format>;
  using Slots = StateSlots<Format>;
  static_assert(std::is_same_v<StateFormatOf<Inner>, Format>);
  static constexpr bool has_encoder = Config::Mask::reads_encoder;

  template <class Local>
  LinearContextStates(const Local& local, const LinearPlan& plan, const Execution& on)
      : plan_(plan), on_(on), heads_(local.key.heads) {
    tokens_.key = local.key;
    tokens_.value = local.value;
    tokens_.sequences = token_sequences();
    tokens_.feature_map = local.feature_map;
    encoder_ = tokens_;
    encoder_.key = local.key_encoder;
    encoder_.value = local.value_encoder;
    encoder_.sequences = {.count = plan.encoder_segments, .cu_seqlens = plan.arrays[encoder_offsets]};
    encoder_.sequences.max_tokens = plan.longest_segment;
    encoder_.sequences.first_positions = plan.arrays[encoder_positions];
  }

  void take(Arena& arena) {
    sums_ = take_pool(arena, plan_.sum_slots());
    starts_ = take_pool(arena, plan_.segments);
    place_sums();
  }
  /// Bytes of workspace for the calls in here.
  [[nodiscard]] std::size_t inner_bytes() const {
    std::size_t bytes = 0;
    if (sums_tokens()) {
      bytes += accumulate_workspace_bytes(tokens_, on_);
    }
    if (sums_encoder()) {
      bytes += accumulate_workspace_bytes(encoder_, on_);
    }
    return bytes;
  }
  Pool take_pool(Arena& arena, std::int64_t slots) const {
    return view_pool<Format>(arena.take<typename Format::Scalar>(slots * heads_ * Format::head_elements), slots, heads_);
  }

  [[nodiscard]] const Pool& starts() const { return starts_; }
  /// The segments as sequences of packed views.
  [[nodiscard]] Sequences token_sequences() const {
    Sequences sequences;
    sequences.count = plan_.segments;
    sequences.cu_seqlens = plan_.arrays[token_offsets];
    sequences.first_positions = plan_.arrays[token_positions];
    sequences.max_tokens = plan_.longest_segment;
    return sequences;
  }
  [[nodiscard]] Sequences all_sequences() const {
    Sequences sequences = token_sequences();
    if (has_encoder && plan_.encoder_tokens > 0) {
      sequences.cu_encoder_seqlens = plan_.arrays[prefix_offsets];
      sequences.prefix_lens = plan_.arrays[prefix_lengths];
    }
    return sequences;
  }

  /// The sums of this rank, and the caller's states that enter those of all.
  template <class InitialFormat>
  Status make_sums(const StateSlots<InitialFormat>& initial, const Workspace& workspace) {
    Status status;
    if (plan_.reads_initial_state) {
      status = copy_states(initial, Slots{sums_, plan_.arrays[initial_sums]}, plan_.sequences, on_);
    }
    if (status.ok()) {
      status = sum_both(workspace);
    }
    return status.ok() && plan_.joins > 0 ? join(join_scans, join_codes, sums_) : status;
  }
  /// The sums of all ranks, beside `meanwhile()`. Without it, all is in order: another stream would only cost time.
  template <class C, class Meanwhile>
  Status exchange_sums(C& communicator, const Meanwhile& meanwhile) const {
    const auto exchange = [&](const Execution& on) { return gather(sums_, plan_.gathered, communicator, on); };
    if constexpr (std::is_same_v<Meanwhile, NoWork>) {
      return exchange(on_);
    } else {
      return overlapped(communicator, on_, exchange, [&](const Execution&) { return meanwhile(); });
    }
  }
  /// Makes the states that segments of divided sequences start from; those of others are empty.
  Status make_starts() const { return plan_.scans > 0 ? scan(forward_scans, forward_codes, sums_, starts_) : Status(); }
  /// The caller's states for sequences that are not divided.
  template <class InitialFormat>
  Status copy_initial(const StateSlots<InitialFormat>& initial) const {
    return !plan_.reads_initial_state
               ? Status()
               : copy_states(initial, Slots{starts_, plan_.arrays[initial_states]}, plan_.sequences, on_);
  }

  /// All ranks' sums, in place.
  template <class C>
  Status gather(const Pool& sums, std::int64_t count, C& communicator, const Execution& on) const {
    if (count == 0 || plan_.ranks == 1) {
      return {};
    }
    const auto bytes = static_cast<std::size_t>(count * Format::slot_bytes(heads_));
    return communicator.all_gather(sums.head(plan_.rank * count, 0), sums.data, bytes, on);
  }
  /// The sums of a rank's segments to the one that it sends.
  Status join(LinearArray offsets, LinearArray codes, const Pool& sums) const {
    return ContextBackend<Execution>::scan(StateScan{plan_.arrays[offsets], plan_.arrays[codes], plan_.joins_of(offsets)},
                                           sums, sums, true, on_);
  }
  Status scan(LinearArray offsets, LinearArray codes, const Pool& sums, const Pool& states) const {
    return ContextBackend<Execution>::scan(StateScan{plan_.arrays[offsets], plan_.arrays[codes], plan_.scans}, sums, states,
                                           false, on_);
  }

 private:
  [[nodiscard]] bool sums_tokens() const { return plan_.segments > 0 && plan_.sum_slots() > 0 && plan_.tokens > 0; }
  [[nodiscard]] bool sums_encoder() const { return has_encoder && plan_.encoder_segments > 0 && plan_.sum_slots() > 0; }

  /// Sums of tokens and of encoder tokens: at once, where the backend can.
  Status sum_both(const Workspace& workspace) const {
    using Mixer = MixerBackend<Inner, Execution>;
    if constexpr (requires { Mixer::run(tokens_, encoder_, workspace, on_); }) {
      if (sums_tokens() && sums_encoder()) {
        return Mixer::run(tokens_, encoder_, workspace, on_);
      }
    }
    const Status status = sums_tokens() ? accumulate(tokens_, workspace, on_) : Status();
    return status.ok() && sums_encoder() ? accumulate(encoder_, workspace, on_) : status;
  }

  void place_sums() {
    tokens_.final_state = {sums_, plan_.arrays[token_sums]};
    encoder_.final_state = {sums_, plan_.arrays[encoder_sums]};
  }

  const LinearPlan& plan_;
  const Execution& on_;
  std::int64_t heads_;
  AccumulateArgs<Inner> tokens_;
  AccumulateArgs<Inner> encoder_;
  Pool sums_;
  Pool starts_;
};

/// Tokens and encoder tokens that a plan gives a rank.
template <class Config, class Local>
void check_linear_pieces(Checker& check, const Local& local, const LinearPlan& plan) {
  check_no_sequences(check, local.sequences, nullptr);
  if constexpr (requires { local.has_initial_state; }) {
    check_no_sequences(check, {}, local.has_initial_state);
  }
  check_piece(check, "local.query", local.query, plan.tokens);
  check_piece(check, "local.key", local.key, plan.tokens);
  check_piece(check, "local.value", local.value, plan.tokens);
  if constexpr (Config::Mask::reads_encoder) {
    check.equal("local.key_encoder", "tokens", local.key_encoder.tokens, plan.encoder_tokens,
                "what the plan's layout gives this rank");
    check.equal("local.value_encoder", "tokens", local.value_encoder.tokens, plan.encoder_tokens,
                "what the plan's layout gives this rank");
  } else {
    check.equal("plan", "encoder tokens", plan.encoder_tokens, 0, "what a mask without encoder region reads");
  }
  check_context_states(check, "local.initial_state", local.initial_state, plan.sequences, plan.reads_initial_state);
}

template <class Config, class Execution>
class LinearContextPrefill {
 public:
  using States = LinearContextStates<Config, Execution>;
  using Inner = typename States::Inner;
  using Slots = typename States::Slots;

  LinearContextPrefill(const ContextPrefillArgs<Config>& args, const Execution& on)
      : local_(args.local), plan_(args.plan->details()), on_(on), states_(args.local, plan_, on) {}

  static void check(Checker& check, const PrefillArgs<Config>& local, const LinearPlan& plan) {
    check_linear_pieces<Config>(check, local, plan);
    check_piece(check, "local.output", local.output, plan.tokens);
    check_context_states(check, "local.final_state", local.final_state, plan.sequences, false);
  }

  /// What the call computes, checked before anything is exchanged.
  [[nodiscard]] Status check_inner() const {
    return plan_.segments == 0 ? Status() : MixerBackend<Inner, Execution>::check(prefill_args());
  }

  void take(Arena& arena) {
    states_.take(arena);
    inner_.bytes = states_.inner_bytes();
    if (plan_.segments > 0) {
      inner_.bytes = larger(inner_.bytes, prefill_workspace_bytes(prefill_args(), on_));
    }
    inner_.data = arena.take<std::byte>(static_cast<std::int64_t>(inner_.bytes));
  }

  template <class C, class Meanwhile>
  Status run(C& communicator, const Meanwhile& meanwhile) {
    Status status = states_.make_sums(local_.initial_state, inner_);
    if (status.ok()) {
      status = states_.exchange_sums(communicator, meanwhile);
    }
    if (status.ok()) {
      status = states_.make_starts();
    }
    if (status.ok()) {
      status = states_.copy_initial(local_.initial_state);
    }
    if (status.ok() && plan_.segments > 0) {
      status = prefill_segments();
      if (status.ok() && !local_.final_state.empty()) {
        status = copy_states(Slots{states_.starts(), plan_.arrays[final_states]}, local_.final_state, plan_.sequences, on_);
      }
    }
    return status;
  }

 private:
  /// Outputs, from the states that the last kernel has made.
  [[nodiscard]] Status prefill_segments() const {
    using Mixer = MixerBackend<Inner, Execution>;
    if constexpr (requires { Mixer::run_after_scan(prefill_args(), true, inner_, on_); }) {
      if (plan_.scans > 0) {
        return Mixer::run_after_scan(prefill_args(), plan_.pieces == 1, inner_, on_);
      }
    }
    return prefill(prefill_args(), inner_, on_);
  }
  [[nodiscard]] PrefillArgs<Inner> prefill_args() const {
    PrefillArgs<Inner> args;
    args.query = local_.query;
    args.key = local_.key;
    args.value = local_.value;
    args.key_encoder = local_.key_encoder;
    args.value_encoder = local_.value_encoder;
    args.output = local_.output;
    args.sequences = states_.all_sequences();
    args.initial_state = {states_.starts(), nullptr};
    if (!local_.final_state.empty()) {
      args.final_state = args.initial_state;
    }
    args.feature_map = local_.feature_map;
    args.denominators = local_.denominators;
    return args;
  }

  const PrefillArgs<Config>& local_;
  const LinearPlan& plan_;
  const Execution& on_;
  States states_;
  Workspace inner_;
};

}  // namespace jrt::detail
