// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/backward.hpp"
#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/check.hpp"
#include "jrt/detail/distributed/halo.hpp"
#include "jrt/detail/distributed/hybrid.hpp"
#include "jrt/detail/distributed/linear.hpp"
#include "jrt/detail/distributed/linear_backward.hpp"
#include "jrt/detail/distributed/window.hpp"
#include "jrt/detail/shared/hybrid/gradients.hpp"
#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// The window part is a window's context-parallel backward pass with the mixer's outputs and log-sum-exp. The linear part
/// runs over pieces with their halos, as sequences whose keys are delayed (shared/hybrid/gradients.hpp): the halo's tokens
/// have no queries, and its keys are evicted at the piece's first tokens. Its gradients are added to those of the window.
template <class Config, class Execution>
class HybridContextBackward {
 public:
  using Linear = typename Config::Linear;
  using Window = typename Config::Window;
  using Element = typename Config::Element;
  using T = ConfigCompute<Linear>;
  using SumOperator = typename HybridContextPrefill<Config, Execution>::SumOperator;
  using States = LinearContextStates<Linear, Execution, SumOperator>;
  using Pool = typename States::Pool;
  using Slots = typename States::Slots;
  /// Linear attention over delayed keys, and over the encoder region, by the logarithm of the denominator.
  struct Delayed : LinearPartGradients<Linear, Window> {
    using StateScalar = T;
  };
  struct Encoder : StatesOfSums<Linear> {
    using Normaliser = NormaliserByLogarithm;
  };

  HybridContextBackward(const ContextBackwardArgs<Config>& args, const Execution& on)
      : local_(args.local),
        plan_(args.plan->details()),
        on_(on),
        states_(args.local, plan_.linear, on),
        exchange_(plan_.halo, {args.local.key, args.local.value}, on) {}

  static void check(Checker& check, const BackwardArgs<Config>& local, const HybridPlan& plan) {
    check_linear_pieces<Linear>(check, local, plan.linear);
    if (plan.halo.any_initial_state) {
      check.take(Status::error(StatusCode::invalid_argument,
                               "backward: the plan's layout has initial states, but gradients do not pass through those of "
                               "hybrid attention."));
    }
  }
  /// With the sequences of the pieces, as the prefill had them.
  [[nodiscard]] Status check_inner() const {
    if (plan_.halo.pieces == 0) {
      return {};
    }
    BackwardArgs<Config> args = local_;
    args.sequences = with_encoder(piece_sequences(plan_.halo));
    return MixerBackend<Config, Execution>::check(args);
  }

  void take(Arena& arena) {
    states_.take(arena);
    exchange_.take(arena);
    const HaloPlan& halo = plan_.halo;
    const std::int64_t rows = halo.halo_rows + halo.tokens;
    const auto like = [&](const auto& view, std::int64_t count) {
      using Value = std::remove_const_t<std::remove_pointer_t<decltype(view.data)>>;
      return view_bthd(arena.take<Value>(count * view.heads * view.dim),
                       {.tokens = count, .heads = view.heads, .dim = view.dim});
    };
    halos_ = {like(local_.key, halo.halo_rows), like(local_.value, halo.halo_rows)};
    query_ = like(local_.query, rows);
    keys_ = {like(local_.key, rows), like(local_.value, rows)};
    output_ = like(local_.output, rows);
    log_sum_exp_ = like(local_.log_sum_exp, rows);
    output_gradient_ = like(local_.output_gradient, rows);
    query_gradient_ = like(local_.query, rows);
    gradients_ = {like(local_.key, rows), like(local_.value, rows)};
    sums_ = states_.take_pool(arena, plan_.reverse.sum_slots_back());
    ends_ = states_.take_pool(arena, plan_.reverse.gradient_slots());
    if (wants_encoder()) {
      encoder_.take(arena, plan_.linear.encoder_tokens, local_.key.heads);
    }
    const BackwardArgs<Window> window = window_args();
    const WindowContextBackward<Window, Execution> window_pass(window, plan_.halo, on_);
    inner_.bytes = larger(states_.inner_bytes(), context_bytes(window_pass));
    if (halo.pieces > 0) {
      inner_.bytes = larger(inner_.bytes, backward_workspace_bytes(gradient_args(), on_));
      inner_.bytes = larger(inner_.bytes, backward_workspace_bytes(sum_args(), on_));
    }
    if (wants_encoder()) {
      inner_.bytes = larger(inner_.bytes, backward_workspace_bytes(encoder_args(), on_));
    }
    inner_.data = arena.take<std::byte>(static_cast<std::int64_t>(inner_.bytes));
  }

  template <class C>
  Status run(C& communicator) {
    const LinearPlan& reverse = plan_.reverse;
    Status status;
    const auto then = [&](const auto& step) {
      if (status.ok()) {
        status = step();
      }
    };
    then([&] {
      const BackwardArgs<Window> window = window_args();
      WindowContextBackward<Window, Execution> window_pass(window, plan_.halo, on_);
      Arena arena(inner_);
      window_pass.take(arena);
      return window_pass.run(communicator);
    });
    then([&] {
      return overlapped(
          communicator, on_,
          [&](const Execution& beside) {
            return exchange_.halos(RowTensors<const Element>{local_.key, local_.value}, halos_, communicator, beside);
          },
          [&](const Execution&) { return states_.make_sums(Slots(), inner_); });
    });
    then([&] { return states_.exchange_sums(communicator, NoWork{}); });
    then([&] { return states_.make_starts(); });
    if (plan_.halo.pieces > 0) {
      then([&] { return fill_extended(); });
      if (reverse.sum_slots_back() > 0) {
        then([&] { return clear_states(Slots{sums_, reverse.arrays[final_gradient_sums]}, reverse.sequences, on_); });
        then([&] { return backward(sum_args(), inner_, on_); });
      }
    }
    then([&] { return states_.gather(sums_, reverse.gathered_back, communicator, on_); });
    if (reverse.scans > 0) {
      then([&] {
        const StateScan scan{reverse.arrays[reverse_scans], reverse.arrays[reverse_codes], reverse.scans};
        return Backend::scan(scan, sums_, ends_, false, on_);
      });
    }
    if (plan_.halo.pieces > 0) {
      then([&] { return backward(gradient_args(), inner_, on_); });
      then([&] { return add_extended(); });
    }
    then([&] { return exchange_.gradients(as_input(halos_), {local_.key_gradient, local_.value_gradient}, communicator); });
    if (wants_encoder()) {
      then([&] { return encoder_.fill(on_); });
      then([&] { return backward(encoder_args(), inner_, on_); });
    }
    return status;
  }

 private:
  using Backend = ContextBackend<Execution>;

  [[nodiscard]] BackwardArgs<Window> window_args() const {
    BackwardArgs<Window> args;
    args.query = local_.query;
    args.key = local_.key;
    args.value = local_.value;
    args.output = local_.output;
    args.log_sum_exp = local_.log_sum_exp;
    args.output_gradient = local_.output_gradient;
    args.query_gradient = local_.query_gradient;
    args.key_gradient = local_.key_gradient;
    args.value_gradient = local_.value_gradient;
    args.scale = default_window_scale<Window>;
    return args;
  }

  [[nodiscard]] Sequences with_encoder(Sequences sequences) const {
    if (Linear::Mask::reads_encoder && plan_.linear.encoder_tokens > 0) {
      sequences.cu_encoder_seqlens = plan_.linear.arrays[prefix_offsets];
      sequences.prefix_lens = plan_.linear.arrays[prefix_lengths];
    }
    return sequences;
  }
  [[nodiscard]] BackwardArgs<Delayed> extended_args() const {
    BackwardArgs<Delayed> args;
    args.query = query_;
    args.key = keys_.first;
    args.value = keys_.second;
    args.key_encoder = local_.key_encoder;
    args.value_encoder = local_.value_encoder;
    args.output = output_;
    args.denominators = log_sum_exp_;
    Sequences sequences;
    sequences.count = plan_.halo.pieces;
    sequences.cu_seqlens = plan_.halo.arrays[extended_offsets];
    args.sequences = with_encoder(sequences);
    args.initial_state = {states_.starts(), nullptr};
    args.feature_map = local_.feature_map;
    args.output_gradient = output_gradient_;
    return args;
  }
  [[nodiscard]] BackwardArgs<Delayed> sum_args() const {
    BackwardArgs<Delayed> args = extended_args();
    args.initial_state_gradient = {sums_, plan_.reverse.arrays[reverse_sums]};
    return args;
  }
  [[nodiscard]] BackwardArgs<Delayed> gradient_args() const {
    BackwardArgs<Delayed> args = extended_args();
    args.final_state_gradient = {ends_, nullptr};
    args.final_state_gradient.pool.slots = plan_.reverse.segments;
    args.initial_state_gradient = {ends_, nullptr};  // the slots after those of `final_state_gradient`
    args.initial_state_gradient.pool.data = ends_.head(plan_.reverse.segments, 0);
    args.initial_state_gradient.pool.slots = plan_.reverse.segments;
    args.query_gradient = query_gradient_;
    args.key_gradient = gradients_.first;
    args.value_gradient = gradients_.second;
    return args;
  }
  [[nodiscard]] bool wants_encoder() const {
    return plan_.linear.encoder_tokens > 0 &&
           (local_.key_encoder_gradient.data != nullptr || local_.value_encoder_gradient.data != nullptr);
  }
  /// As in LinearContextBackward.
  [[nodiscard]] BackwardArgs<Encoder> encoder_args() const {
    BackwardArgs<Encoder> args = encoder_.args(local_);
    args.sequences.count = plan_.reverse.encoder_segments;
    args.sequences.cu_seqlens = plan_.reverse.arrays[encoder_offsets];
    args.final_state_gradient = {ends_, plan_.reverse.arrays[encoder_gradients]};
    return args;
  }

  /// Every piece after its halo, whose tokens have no queries.
  [[nodiscard]] Status fill_extended() const {
    return for_pieces([&](const HaloPlan::Edge& piece, std::int64_t row, std::int64_t halo_row) {
      Status status;
      const auto then = [&](const Status& next) {
        if (status.ok()) {
          status = next;
        }
      };
      const auto tokens = [&](const auto& from, const auto& to, auto of_halo) {
        then(Backend::fill_rows(to.slice_tokens(row, piece.halo), of_halo, on_));
        then(Backend::copy_rows(from.slice_tokens(piece.first, piece.tokens),
                                to.slice_tokens(row + piece.halo, piece.tokens), on_));
      };
      tokens(local_.query, query_, Element{});
      tokens(local_.output, output_, Element{});
      tokens(local_.output_gradient, output_gradient_, Element{});
      tokens(local_.log_sum_exp, log_sum_exp_, T(0));
      then(copy_rows(as_input(halos_).slice(halo_row, piece.halo), keys_.slice(row, piece.halo), on_));
      then(copy_rows(RowTensors<const Element>{local_.key, local_.value}.slice(piece.first, piece.tokens),
                     keys_.slice(row + piece.halo, piece.tokens), on_));
      return status;
    });
  }
  /// Gradients of tokens to those that are there, of halos to their place.
  [[nodiscard]] Status add_extended() const {
    return for_pieces([&](const HaloPlan::Edge& piece, std::int64_t row, std::int64_t halo_row) {
      Status status = copy_rows(as_input(gradients_).slice(row, piece.halo), halos_.slice(halo_row, piece.halo), on_);
      if (status.ok()) {
        status =
            add_rows(as_input(gradients_).slice(row + piece.halo, piece.tokens),
                     RowTensors<Element>{local_.key_gradient, local_.value_gradient}.slice(piece.first, piece.tokens), on_);
      }
      if (status.ok() && local_.query_gradient.data != nullptr) {
        status = Backend::add_rows(TensorView<const Element>(query_gradient_).slice_tokens(row + piece.halo, piece.tokens),
                                   local_.query_gradient.slice_tokens(piece.first, piece.tokens), on_);
      }
      return status;
    });
  }
  template <class Function>
  Status for_pieces(const Function& function) const {
    Status status;
    std::int64_t row = 0;
    std::int64_t halo_row = 0;
    for (std::int64_t i = 0; status.ok() && i < plan_.halo.pieces; ++i) {
      const HaloPlan::Edge piece = plan_.halo.extended(i);
      status = function(piece, row, halo_row);
      row += piece.halo + piece.tokens;
      halo_row += piece.halo;
    }
    return status;
  }

  const BackwardArgs<Config>& local_;
  const HybridPlan& plan_;
  const Execution& on_;
  States states_;
  HaloExchange<Element, Execution> exchange_;
  RowTensors<Element> halos_;  // then their gradients
  RowTensors<Element> keys_;   // of pieces with their halos, like all that follow
  RowTensors<Element> gradients_;
  TensorView<Element> query_;
  TensorView<Element> output_;
  TensorView<Element> output_gradient_;
  TensorView<Element> query_gradient_;
  TensorView<T> log_sum_exp_;
  Pool sums_;
  Pool ends_;
  EncoderAsTokens<Encoder> encoder_;
  Workspace inner_;
};

}  // namespace jrt::detail
