// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/mixer.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/stack/backend.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/mixer/stack.hpp"
#include "jrt/prefill.hpp"
#include "jrt/state_operations.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

namespace jrt {

template <class Config>
struct Checkpoints;

}  // namespace jrt

namespace jrt::detail {

template <class Config>
struct CheckpointFormatOf {
  using type = StateFormatOf<Config>;
};
template <class... Layers>
struct CheckpointFormatOf<Stack<Layers...>> {
  using type = Stack<Layers...>;
};
template <class Config>
using CheckpointFormat = typename CheckpointFormatOf<Config>::type;

/// A prefill in pieces of `every` tokens. Piece p starts from checkpoint p − 1 and ends in checkpoint p; the remaining
/// tokens, or a copy of the last checkpoint, end in the final state.
template <class Config, class Execution>
class CheckpointedPrefill {
 public:
  using Args = PrefillArgs<Config>;
  using Format = typename Args::Format;
  using Mixer = MixerBackend<Config, Execution>;

  CheckpointedPrefill(const Args& args, const Checkpoints<Config>& checkpoints)
      : args_(args),
        states_(checkpoints.states),
        asked_(checkpoints.every),
        every_(clamped(asked_, 1, larger<std::int64_t>(1, tokens()))),
        full_pieces_(asked_ < 1 ? 0 : tokens() / asked_) {}

  [[nodiscard]] Status check() const {
    Checker check("prefill_with_checkpoints");
    check.at_least("checkpoints.every", "value", asked_, 1);
    const Sequences& sequences = args_.sequences;
    dense(check, "sequences.cu_seqlens", sequences.cu_seqlens);
    dense(check, "sequences.cu_encoder_seqlens", sequences.cu_encoder_seqlens);
    dense(check, "sequences.seq_lens", sequences.seq_lens);
    dense(check, "sequences.left_pads", sequences.left_pads);
    check_encoder(check);
    const bool leaves_any = full_pieces() > 0 && batch() > 0;
    // Without final states, the checkpoints' slots mark a padding row.
    const bool first_alone = !leaves_any || !args_.final_state.empty();
    if (check.ok() && first_alone) {
      check.take(Mixer::check(args_));
    }
    // Without heads there are no keys, which the mixer's own check reports.
    if (check.ok() && leaves_any && heads() > 0) {
      check.pool("checkpoints.states", states_.pool, heads());
      check.implicit_slots("checkpoints.states", states_, full_pieces() * batch());
    }
    if (check.ok() && !first_alone) {
      Args whole = args_;
      whole.final_state = checkpoint(0);
      check.take(Mixer::check(whole));
    }
    if (check.ok() && leaves_any) {
      check_slots(check);
    }
    if (check.ok() && reads_encoder_ahead()) {
      check.take(check_ahead());
    }
    for (std::int64_t p = 0; check.ok() && p < pieces(); ++p) {
      check.take(Mixer::check(piece(p)));
    }
    return check.status();
  }

  [[nodiscard]] std::size_t workspace_bytes(const Execution& on) const {
    std::size_t bytes = 0;
    // All pieces but the first and the last need the same.
    for (const std::int64_t p : {std::int64_t{0}, std::int64_t{1}, pieces() - 1}) {
      if (p < pieces()) {
        bytes = larger(bytes, prefill_workspace_bytes(piece(p), on));
      }
    }
    if constexpr (accumulates) {
      bytes = reads_encoder_ahead() ? larger(bytes, accumulate_workspace_bytes(ahead(), on)) : bytes;
    }
    return bytes;
  }

  Status run(const Workspace& workspace, const Execution& on) const {
    Checker checker("prefill_with_checkpoints");
    checker.take(check());
    checker.workspace(workspace, checker.ok() ? workspace_bytes(on) : 0);
    if constexpr (accumulates) {
      if (checker.ok() && reads_encoder_ahead()) {
        checker.take(accumulate(ahead(), workspace, on));
      }
    }
    for (std::int64_t p = 0; checker.ok() && p < pieces(); ++p) {
      checker.take(prefill(piece(p), workspace, on));
    }
    if (checker.ok() && full_pieces() == pieces() && !args_.final_state.empty()) {
      checker.take(copy_states(checkpoint(pieces() - 1), args_.final_state, batch(), on));
    }
    return checker.status();
  }

 private:
  static constexpr bool has_encoder = requires(const Args& args) { args.key_encoder; };
  /// Whether an encoder region can be accumulated before the first piece. Otherwise it must lie within it.
  static constexpr bool accumulates = AttentionConfig<Config>;

  static constexpr bool needs_position() {
    if constexpr (requires { typename Config::FeatureMap; }) {
      return Config::FeatureMap::needs_position;
    } else {
      return false;
    }
  }
  static_assert(
      !needs_position(),
      "prefill_with_checkpoints: this feature map needs the position, and the positions of later pieces would have "
      "to be written for every sequence; prefill in pieces with first_positions of your own.");

  static void dense(Checker& check, const char* name, const std::int32_t* array) {
    if (check.ok() && array != nullptr) {
      check.take(Status::error(StatusCode::invalid_argument,
                               "prefill_with_checkpoints: argument '%s' is given, but must be null: all sequences of the "
                               "dense batch have the length of the views.",
                               name));
    }
  }

  static constexpr bool reads_future() {
    if constexpr (requires { Config::Mask::reads_future; }) {
      return Config::Mask::reads_future;
    } else {
      return false;
    }
  }
  static_assert(!reads_future(),
                "prefill_with_checkpoints: with this Mask queries read all tokens, and a piece does not have them; use "
                "CausalMask or PrefixMask.");

  /// Checks that an encoder region that cannot be accumulated beforehand lies within the first piece.
  void check_encoder(Checker& check) const {
    if constexpr (has_encoder && !accumulates) {
      if (check.ok() && full_pieces() > 0 && args_.key_encoder.tokens > every_) {
        check.take(Status::error(StatusCode::invalid_argument,
                                 "prefill_with_checkpoints: argument 'key_encoder' has tokens = %lld, but this mixer reads "
                                 "them with the first piece, and 'checkpoints.every' is %lld.",
                                 static_cast<long long>(args_.key_encoder.tokens), static_cast<long long>(every_)));
      }
    }
  }

  /// Checks, as far as the host can, that checkpoints and final states have slots of their own, which no other sequence
  /// reads.
  void check_slots(Checker& check) const {
    const bool seen =
        Backend<Execution>::host_reads_arrays ||
        (states_.slots == nullptr && args_.final_state.slots == nullptr && args_.initial_state.slots == nullptr);
    if (!seen) {
      return;
    }
    const std::int64_t count = full_pieces() * batch();
    for (std::int64_t i = 0; check.ok() && i < count; ++i) {
      check.slot("checkpoints.states.slots", states_, i);
      const std::int64_t first = i % batch();
      if (check.ok() && (states_.slot(i) == skip_slot) != (states_.slot(first) == skip_slot)) {
        check.take(
            Status::error(StatusCode::invalid_argument,
                          "prefill_with_checkpoints: argument 'checkpoints.states.slots[%lld]' is %lld, but "
                          "'checkpoints.states.slots[%lld]' of the same sequence is %lld; a row of padding has -1 in "
                          "all of them.",
                          static_cast<long long>(i), static_cast<long long>(states_.slot(i)), static_cast<long long>(first),
                          static_cast<long long>(states_.slot(first))));
      }
    }
    if (!check.ok()) {
      return;
    }
    check.states_apart(
        "initial_state.slots",
        [&](std::int64_t i) {
          const std::int64_t b = i - count;
          const bool reads = b >= 0 && Backend<Execution>::host_reads_arrays &&
                             reads_initial_state(args_.initial_state, args_.has_initial_state, b);
          return reads ? Checker::memory_of(args_.initial_state, b) : Checker::StateMemory{};
        },
        "checkpoints.states, then final_state",
        [&](std::int64_t i) {
          return i < count ? Checker::memory_of(states_, i) : Checker::memory_of(args_.final_state, i - count);
        },
        count + batch());
  }

  [[nodiscard]] std::int64_t tokens() const {
    if constexpr (requires { args_.input; }) {
      return args_.input.tokens;
    } else {
      return args_.query.tokens;
    }
  }
  [[nodiscard]] std::int64_t batch() const { return args_.output.batch; }
  /// Heads of a pool: key/value heads, or channels.
  [[nodiscard]] std::int64_t heads() const {
    if constexpr (requires { args_.input; }) {
      return args_.input.dim;
    } else {
      return args_.key.heads;
    }
  }
  /// Pieces that end in a checkpoint.
  [[nodiscard]] std::int64_t full_pieces() const { return full_pieces_; }
  /// At least one, so that a call without tokens copies the state.
  [[nodiscard]] std::int64_t pieces() const { return larger<std::int64_t>(1, ceil_div(tokens(), every_)); }

  /// The states after piece p.
  [[nodiscard]] StateSlots<Format> checkpoint(std::int64_t p) const {
    const std::int64_t first = p * batch();
    StateSlots<Format> states = states_;
    if (states.slots != nullptr) {
      states.slots += first;
    } else {
      states.pool.data += first * states.pool.slot_stride;
      states.pool.slots -= first;
    }
    return states;
  }

  [[nodiscard]] Args piece(std::int64_t p) const {
    const std::int64_t first = p * every_;
    const std::int64_t count = smaller(every_, tokens() - first);
    Args args = args_;
    const auto slice = [&](auto& view) {
      if (view.data != nullptr) {
        view = view.slice_tokens(first, count);
      }
    };
    if constexpr (requires { args.input; }) {
      slice(args.input);
      slice(args.gate);
    } else {
      slice(args.query);
      slice(args.key);
      slice(args.value);
    }
    if constexpr (requires { args.denominators; }) {
      slice(args.denominators);
    }
    slice(args.output);
    if (p > 0 || reads_encoder_ahead()) {
      args.initial_state = checkpoint(larger<std::int64_t>(p - 1, 0));
      args.has_initial_state = nullptr;
      if constexpr (has_encoder) {
        args.key_encoder.tokens = 0;
        args.value_encoder.tokens = 0;
        args.sequences.prefix_lens = nullptr;
      }
    }
    if (p < full_pieces()) {
      args.final_state = checkpoint(p);
    }
    return args;
  }

  /// Whether the encoder region is longer than the first piece, whose own prefill then cannot read it.
  [[nodiscard]] bool reads_encoder_ahead() const {
    if constexpr (accumulates) {
      return Config::Mask::reads_encoder && full_pieces() > 0 && args_.key_encoder.tokens > every_;
    } else {
      return false;
    }
  }

  /// The encoder region, summed into the first checkpoint.
  [[nodiscard]] auto ahead() const {
    AccumulateArgs<Config> args;
    args.key = args_.key_encoder;
    args.value = args_.value_encoder;
    args.sequences.seq_lens = args_.sequences.prefix_lens;
    args.initial_state = args_.initial_state;
    args.final_state = checkpoint(0);
    args.has_initial_state = args_.has_initial_state;
    args.feature_map = args_.feature_map;
    return args;
  }
  [[nodiscard]] Status check_ahead() const {
    if constexpr (accumulates) {
      return Mixer::check(ahead());
    } else {
      return {};
    }
  }

  Args args_;
  StateSlots<Format> states_;
  std::int64_t asked_;
  std::int64_t every_;  // `asked_`, clamped to 1 … T
  std::int64_t full_pieces_;
};

/// For a stack: the checkpointed prefills of all layers, in turn.
template <class... Layers, class Execution>
class CheckpointedPrefill<Stack<Layers...>, Execution> {
 public:
  using Whole = Stack<Layers...>;

  CheckpointedPrefill(const PrefillArgs<Whole>& args, const Checkpoints<Whole>& checkpoints)
      : args_(args), checkpoints_(checkpoints) {}

  [[nodiscard]] Status check() const {
    Checker check("prefill_with_checkpoints");
    check.take(MixerBackend<Whole, Execution>::check_whole(args_));
    if (!checkpoints_.states.empty()) {
      check.pool("checkpoints.states", checkpoints_.states.pool, 1);
    }
    check.take(for_layers<Whole::layers>([&](auto layer) { return of_layer<decltype(layer)::value>().check(); }));
    return check.status();
  }

  [[nodiscard]] std::size_t workspace_bytes(const Execution& on) const {
    std::size_t bytes = 0;
    [&]<int... layer>(std::integer_sequence<int, layer...>) {
      ((bytes = larger(bytes, of_layer<layer>().workspace_bytes(on))), ...);
    }
    (std::make_integer_sequence<int, Whole::layers>{});
    return bytes;
  }

  template <class BeforeLayer>
  Status run(const BeforeLayer& before_layer, const Workspace& workspace, const Execution& on) const {
    Checker checker("prefill_with_checkpoints");
    checker.take(check());
    checker.workspace(workspace, checker.ok() ? workspace_bytes(on) : 0);
    if (!checker.ok()) {
      return checker.status();
    }
    return for_layers<Whole::layers>([&](auto layer) {
      const Status before = before_layer(decltype(layer)::value);
      return before.ok() ? of_layer<decltype(layer)::value>().run(workspace, on) : before;
    });
  }
  Status run(const Workspace& workspace, const Execution& on) const {
    return run([](int /*layer*/) { return Status{}; }, workspace, on);
  }

 private:
  template <int layer>
  [[nodiscard]] auto of_layer() const {
    using Config = typename Whole::template ConfigAt<layer>;
    return CheckpointedPrefill<Config, Execution>(
        layer_args<layer>(args_), Checkpoints<Config>{checkpoints_.every, layer_slots<layer>(checkpoints_.states)});
  }

  PrefillArgs<Whole> args_;
  Checkpoints<Whole> checkpoints_;
};

}  // namespace jrt::detail
