// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/distributed/linear.hpp"

namespace jrt::detail {

/// The encoder region as tokens whose queries have no gradient, so that R stays as it is: every one of them sees it.
template <class Inner>
class EncoderAsTokens {
 public:
  using Element = typename Inner::Element;
  using T = ConfigCompute<Inner>;
  static constexpr bool normalised = Inner::Normaliser::uses_denominator;

  /// Zeros for outputs and their gradients, and denominators (or logarithms of these), which are nobody's.
  void take(Arena& arena, std::int64_t tokens, std::int64_t heads) {
    const auto rows = [&](auto* memory, std::int64_t dim) {
      return view_bthd(memory, {.tokens = tokens, .heads = heads, .dim = dim});
    };
    zeros_ = rows(arena.take<Element>(tokens * heads * Inner::value_dim), Inner::value_dim);
    if (normalised) {
      denominators_ = rows(arena.take<T>(tokens * heads), 1);
    }
  }
  template <class Execution>
  Status fill(const Execution& on) const {
    using Backend = ContextBackend<Execution>;
    const Status status = Backend::fill_rows(zeros_, Element{}, on);
    return status.ok() && normalised ? Backend::fill_rows(denominators_, T(1), on) : status;
  }

  /// Without sequences and states.
  template <class Local>
  [[nodiscard]] BackwardArgs<Inner> args(const Local& local) const {
    BackwardArgs<Inner> args;
    args.query = local.key_encoder;
    args.key = local.key_encoder;
    args.value = local.value_encoder;
    args.output_gradient = zeros_;
    if constexpr (normalised) {
      args.output = zeros_;
      args.denominators = denominators_;
    }
    args.feature_map = local.feature_map;
    args.key_gradient = local.key_encoder_gradient;
    args.value_gradient = local.value_encoder_gradient;
    return args;
  }

 private:
  TensorView<Element> zeros_;
  TensorView<T> denominators_;
};

/// Gradients, segment by segment as in the prefill: states that segments start from; each segment's Σ φ(q) gᵀ; the exchange
/// of these, and R after every segment from them; then gradients of tokens, and of the encoder region from R before the
/// first token.
template <class Config, class Execution>
class LinearContextBackward {
 public:
  using States = LinearContextStates<Config, Execution>;
  using Inner = typename States::Inner;
  using Format = typename States::Format;
  using Pool = typename States::Pool;
  using Slots = typename States::Slots;

  LinearContextBackward(const ContextBackwardArgs<Config>& args, const Execution& on)
      : local_(args.local), plan_(args.plan->details()), on_(on), states_(args.local, plan_, on) {}

  static void check(Checker& check, const BackwardArgs<Config>& local, const LinearPlan& plan) {
    check_linear_pieces<Config>(check, local, plan);
    check_context_states(check, "local.final_state_gradient", local.final_state_gradient, plan.sequences, false);
    check_context_states(check, "local.initial_state_gradient", local.initial_state_gradient, plan.sequences, false);
  }
  [[nodiscard]] Status check_inner() const {
    Status status;
    if (plan_.segments > 0) {
      status = MixerBackend<Inner, Execution>::check(gradient_args());
    }
    if (status.ok() && wants_encoder()) {
      status = MixerBackend<Inner, Execution>::check(encoder_args());
    }
    return status;
  }

  void take(Arena& arena) {
    states_.take(arena);
    sums_ = states_.take_pool(arena, plan_.sum_slots_back());
    ends_ = states_.take_pool(arena, plan_.gradient_slots());
    if (wants_encoder()) {
      encoder_.take(arena, plan_.encoder_tokens, local_.key.heads);
    }
    inner_.bytes = states_.inner_bytes();
    if (plan_.segments > 0) {
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
    Status status = states_.make_sums(local_.initial_state, inner_);
    const auto then = [&](const auto& step) {
      if (status.ok()) {
        status = step();
      }
    };
    // Sums of gradients may need the states (Hopper's kernels form dy·y from them), so that these come first.
    then([&] { return states_.exchange_sums(communicator, NoWork{}); });
    then([&] { return states_.make_starts(); });
    then([&] { return states_.copy_initial(local_.initial_state); });
    then([&] { return make_gradient_sums(); });
    then([&] { return states_.gather(sums_, plan_.gathered_back, communicator, on_); });
    if (!local_.initial_state_gradient.empty() && plan_.segments > 0) {
      // Their padding, which no pass writes, is copied, too.
      then([&] { return clear_states(ends(initial_gradients), plan_.sequences, on_); });
    }
    if (plan_.scans > 0) {
      then([&] { return states_.scan(reverse_scans, reverse_codes, sums_, ends_); });
    }
    if (plan_.segments > 0) {
      if (!local_.final_state_gradient.empty()) {
        then([&] { return copy_states(local_.final_state_gradient, ends(final_gradients), plan_.sequences, on_); });
      }
      then([&] { return backward(gradient_args(), inner_, on_); });
    }
    if (wants_encoder()) {
      then([&] { return encoder_.fill(on_); });
      then([&] { return backward(encoder_args(), inner_, on_); });
    }
    if (!local_.initial_state_gradient.empty() && plan_.segments > 0) {
      then([&] { return copy_states(ends(initial_gradients), local_.initial_state_gradient, plan_.sequences, on_); });
    }
    return status;
  }

 private:
  [[nodiscard]] Slots ends(LinearArray slots) const { return {ends_, plan_.arrays[slots]}; }

  /// Σ φ(q) gᵀ of the segments, and those that enter the exchange.
  Status make_gradient_sums() const {
    if (plan_.segments == 0 || plan_.sum_slots_back() == 0) {
      return {};
    }
    Status status = final_gradient_to(sums_, final_gradient_sums);
    if (status.ok()) {
      status = backward(sum_args(), inner_, on_);
    }
    return status.ok() && plan_.joins_back > 0 ? states_.join(join_scans_back, join_codes_back, sums_) : status;
  }

  /// The caller's gradients of final states as entries of the exchange; zeros if there are none.
  Status final_gradient_to(const Pool& pool, LinearArray slots) const {
    const Slots destination{pool, plan_.arrays[slots]};
    return local_.final_state_gradient.empty()
               ? clear_states(destination, plan_.sequences, on_)
               : copy_states(local_.final_state_gradient, destination, plan_.sequences, on_);
  }

  [[nodiscard]] BackwardArgs<Inner> inputs() const {
    BackwardArgs<Inner> args;
    args.query = local_.query;
    args.key = local_.key;
    args.value = local_.value;
    args.key_encoder = local_.key_encoder;
    args.value_encoder = local_.value_encoder;
    args.output = local_.output;
    args.denominators = local_.denominators;
    args.sequences = states_.all_sequences();
    args.initial_state = {states_.starts(), nullptr};
    args.feature_map = local_.feature_map;
    args.output_gradient = local_.output_gradient;
    return args;
  }
  /// Sums of segments alone.
  [[nodiscard]] BackwardArgs<Inner> sum_args() const {
    BackwardArgs<Inner> args = inputs();
    args.initial_state_gradient = {sums_, plan_.arrays[reverse_sums]};
    return args;
  }
  /// Gradients of tokens, and R before every segment.
  [[nodiscard]] BackwardArgs<Inner> gradient_args() const {
    BackwardArgs<Inner> args = inputs();
    args.final_state_gradient = {ends_, nullptr};
    args.final_state_gradient.pool.slots = plan_.segments;
    args.initial_state_gradient = {ends_, nullptr};  // the slots after those of `final_state_gradient`
    args.initial_state_gradient.pool.data = ends_.head(plan_.segments, 0);
    args.initial_state_gradient.pool.slots = plan_.segments;
    args.query_gradient = local_.query_gradient;
    args.key_gradient = local_.key_gradient;
    args.value_gradient = local_.value_gradient;
    return args;
  }

  [[nodiscard]] bool wants_encoder() const {
    return plan_.encoder_tokens > 0 &&
           (local_.key_encoder_gradient.data != nullptr || local_.value_encoder_gradient.data != nullptr);
  }
  [[nodiscard]] BackwardArgs<Inner> encoder_args() const {
    BackwardArgs<Inner> args = encoder_.args(local_);
    args.sequences.count = plan_.encoder_segments;
    args.sequences.cu_seqlens = plan_.arrays[encoder_offsets];
    args.sequences.first_positions = plan_.arrays[encoder_positions];
    args.sequences.max_tokens = plan_.longest_segment;
    args.final_state_gradient = ends(encoder_gradients);
    return args;
  }

  const BackwardArgs<Config>& local_;
  const LinearPlan& plan_;
  const Execution& on_;
  States states_;
  Pool sums_;
  Pool ends_;
  EncoderAsTokens<Inner> encoder_;
  Workspace inner_;
};

}  // namespace jrt::detail
