// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "jrt/backward.hpp"
#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/check.hpp"
#include "jrt/detail/distributed/halo.hpp"
#include "jrt/detail/distributed/halo_plan.hpp"
#include "jrt/detail/distributed/halo_prefill.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/window_attention.hpp"
#include "jrt/prefill.hpp"
#include "jrt/state_operations.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// The caches from which pieces that begin inside a sequence start, one for each halo, made of its keys and values. A
/// backend that does not make them itself (`store_rings`) does it by a prefill over the halo, whose outputs nobody reads
/// and which leaves its last L+1 keys in the cache.
template <class Window, class Execution>
class WindowRings {
 public:
  using Element = typename Window::Element;
  using Format = StateFormatOf<Window>;
  using Rows = RowTensors<Element>;
  using Inputs = RowTensors<const Element>;

  WindowRings(const HaloPlan& plan, const Inputs& local, double scale, const typename Window::Rotary& rotary,
              const Execution& on)
      : plan_(plan), local_(local), on_(on), exchange_(plan, local, on), scale_(scale), rotary_(rotary) {}

  void take(Arena& arena) {
    exchange_.take(arena);
    const std::int64_t heads = local_.first.heads;
    rings_ = view_pool<Format>(arena.take<typename Format::Scalar>(plan_.halos * heads * Format::head_elements),
                               plan_.halos, heads);
    halos_ = exchange_.take_halos(arena);
    if constexpr (!stores_rings) {
      output_ = view_bthd(arena.take<Element>(plan_.halo_rows * heads * Window::value_dim),
                          {.tokens = plan_.halo_rows, .heads = heads, .dim = Window::value_dim});
      workspace_.bytes = plan_.halos == 0 ? 0 : prefill_workspace_bytes(halo_args(), on_);
      workspace_.data = arena.take<std::byte>(static_cast<std::int64_t>(workspace_.bytes));
    }
  }

  /// Of halo i in slot i.
  [[nodiscard]] const StatePoolView<Format>& states() const { return rings_; }

  /// Called by all ranks.
  template <class C>
  Status receive(C& communicator, const Execution& on) const {
    Status status = exchange_.halos(local_, halos_, communicator, on);
    if (!status.ok() || plan_.halos == 0) {
      return status;
    }
    if constexpr (stores_rings) {
      return Backend::template store_rings<Window>(as_input(halos_), plan_.arrays[halo_offsets], plan_.arrays[halo_counts],
                                                   rings_, plan_.halos, rotary_, on);
    } else {
      status = clear_states(StateSlots<Format>{rings_}, plan_.halos, on);
      if (status.ok()) {
        status = Backend::set_counts(StateSlots<Format>{rings_}, plan_.arrays[halo_counts], plan_.halos, on);
      }
      return status.ok() ? prefill(halo_args(), workspace_, on) : status;
    }
  }

 private:
  using Backend = ContextBackend<Execution>;
  static constexpr bool stores_rings = requires { Backend::stores_rings; };

  [[nodiscard]] PrefillArgs<Window> halo_args() const {
    PrefillArgs<Window> args;
    args.query = halos_.first;  // any finite numbers
    args.key = halos_.first;
    args.value = halos_.second;
    args.output = output_;
    args.sequences = halo_sequences(plan_, halo_offsets);
    args.initial_state = {rings_};
    args.final_state = args.initial_state;
    args.scale = scale_;
    args.rotary = rotary_;
    return args;
  }

  const HaloPlan& plan_;
  Inputs local_;
  const Execution& on_;
  HaloExchange<Element, Execution> exchange_;
  double scale_;
  typename Window::Rotary rotary_;
  StatePoolView<Format> rings_;
  Rows halos_;
  TensorView<Element> output_;
  Workspace workspace_;
};

template <class Local>
void check_window_pieces(Checker& check, const Local& local, const HaloPlan& plan) {
  check_no_sequences(check, local.sequences, nullptr);
  check_piece(check, "local.query", local.query, plan.tokens);
  check_piece(check, "local.key", local.key, plan.tokens);
  check_piece(check, "local.value", local.value, plan.tokens);
}

/// From caches that lack the keys of other ranks; the first L tokens see those.
template <class Config, class Execution>
class WindowContextPrefill
    : public HaloPrefill<WindowContextPrefill<Config, Execution>, Config, Execution, WindowRings<Config, Execution>> {
  using Base = HaloPrefill<WindowContextPrefill, Config, Execution, WindowRings<Config, Execution>>;

 public:
  WindowContextPrefill(const ContextPrefillArgs<Config>& args, const Execution& on)
      : Base(args, on, RowTensors<const typename Config::Element>{args.local.key, args.local.value}, args.local.scale,
             args.local.rotary) {}

  static void check(Checker& check, const PrefillArgs<Config>& local, const HaloPlan& plan) {
    check_window_pieces(check, local, plan);
    check_no_sequences(check, {}, local.has_initial_state);
    check_context_states(check, "local.initial_state", local.initial_state, plan.sequences, plan.reads_initial_state);
    check_context_states(check, "local.final_state", local.final_state, plan.sequences, false);
  }

  static std::int64_t state_heads(const PrefillArgs<Config>& local) { return local.key.heads; }
  static bool leaves_room(const PrefillArgs<Config>& local) {
    return ContextBackend<Execution>::window_leaves_room(local.query.tokens * local.query.heads);
  }
  template <class Part>
  static void slice(PrefillArgs<Config>& args, const Part& part) {
    args.query = part(args.query);
    args.key = part(args.key);
    args.value = part(args.value);
    args.output = part(args.output);
    args.log_sum_exp = part(args.log_sum_exp);
  }
  [[nodiscard]] Status count_tokens_before(const typename Base::Slots& states) const {
    return ContextBackend<Execution>::set_counts(states, this->plan().arrays[piece_counts], this->plan().halos, this->on());
  }
};

/// Gradients of the pairs of a rank's queries and keys, with the log-sum-exp over all keys; then, for the first L queries
/// of each piece that begins inside a sequence, those of the edge: halo and first tokens as one sequence, in which the halo
/// has no queries. It gives these queries' whole gradients, and those of the halo's keys and values, for the ranks that
/// have them.
template <class Config, class Execution>
class WindowContextBackward {
 public:
  using Element = typename Config::Element;
  using T = ComputeType<Element>;

  WindowContextBackward(const ContextBackwardArgs<Config>& args, const Execution& on)
      : WindowContextBackward(args.local, args.plan->details(), on) {}
  WindowContextBackward(const BackwardArgs<Config>& local, const HaloPlan& plan, const Execution& on)
      : local_(local), plan_(plan), on_(on), exchange_(plan_, {local.key, local.value}, on) {}

  static void check(Checker& check, const BackwardArgs<Config>& local, const HaloPlan& plan) {
    check_window_pieces(check, local, plan);
    if (plan.any_initial_state) {
      check.take(Status::error(StatusCode::invalid_argument,
                               "backward: the plan's layout has initial states, but gradients through a window's cache are "
                               "not supported."));
    }
  }
  [[nodiscard]] Status check_inner() const {
    return plan_.pieces == 0 ? Status() : MixerBackend<Config, Execution>::check(piece_args());
  }

  void take(Arena& arena) {
    exchange_.take(arena);
    const auto rows = [&](auto like, std::int64_t count) {
      using Value = std::remove_const_t<std::remove_pointer_t<decltype(like.data)>>;
      return view_bthd(arena.take<Value>(count * like.heads * like.dim),
                       {.tokens = count, .heads = like.heads, .dim = like.dim});
    };
    halos_ = {rows(local_.key, plan_.halo_rows), rows(local_.value, plan_.halo_rows)};
    query_ = rows(local_.query, plan_.edge_rows);
    edge_ = {rows(local_.key, plan_.edge_rows), rows(local_.value, plan_.edge_rows)};
    output_ = rows(local_.output, plan_.edge_rows);
    log_sum_exp_ = rows(local_.log_sum_exp, plan_.edge_rows);
    output_gradient_ = rows(local_.output_gradient, plan_.edge_rows);
    query_gradient_ = rows(local_.query, plan_.edge_rows);
    gradients_ = {rows(local_.key, plan_.edge_rows), rows(local_.value, plan_.edge_rows)};
    inner_.bytes = plan_.pieces > 0 ? backward_workspace_bytes(piece_args(), on_) : 0;
    if (plan_.halos > 0) {
      inner_.bytes = larger(inner_.bytes, backward_workspace_bytes(edge_args(), on_));
    }
    inner_.data = arena.take<std::byte>(static_cast<std::int64_t>(inner_.bytes));
  }

  template <class C>
  Status run(C& communicator) {
    Status status = overlapped(
        communicator, on_,
        [&](const Execution& beside) {
          return exchange_.halos(RowTensors<const Element>{local_.key, local_.value}, halos_, communicator, beside);
        },
        [&](const Execution&) { return plan_.pieces > 0 ? backward(piece_args(), inner_, on_) : Status(); });
    if (status.ok() && plan_.halos > 0) {
      status = fill_edges();
      if (status.ok()) {
        status = backward(edge_args(), inner_, on_);
      }
      if (status.ok()) {
        status = take_from_edges();
      }
    }
    // All ranks exchange both, whichever gradients a rank wants; one that has no place for them drops them.
    return status.ok() ? exchange_.gradients(as_input(halos_), {local_.key_gradient, local_.value_gradient}, communicator)
                       : status;
  }

 private:
  using Backend = ContextBackend<Execution>;

  [[nodiscard]] BackwardArgs<Config> piece_args() const {
    BackwardArgs<Config> args = local_;
    args.sequences = piece_sequences(plan_);
    return args;
  }
  [[nodiscard]] BackwardArgs<Config> edge_args() const {
    BackwardArgs<Config> args;
    args.query = query_;
    args.key = edge_.first;
    args.value = edge_.second;
    args.output = output_;
    args.log_sum_exp = log_sum_exp_;
    args.sequences = halo_sequences(plan_, edge_offsets);
    args.scale = local_.scale;
    args.rotary = local_.rotary;
    args.output_gradient = output_gradient_;
    args.query_gradient = query_gradient_;
    args.key_gradient = gradients_.first;
    args.value_gradient = gradients_.second;
    return args;
  }

  template <class Function>
  Status for_edges(const Function& function) const {
    return for_edges_of(plan_, function);
  }

  [[nodiscard]] Status fill_edges() const {
    return for_edges([&](const HaloPlan::Edge& edge, std::int64_t row, std::int64_t halo_row) {
      Status status;
      const auto then = [&](const Status& next) {
        if (status.ok()) {
          status = next;
        }
      };
      const auto tokens = [&](const auto& from, const auto& to, auto of_halo) {
        then(Backend::fill_rows(to.slice_tokens(row, edge.halo), of_halo, on_));
        then(Backend::copy_rows(from.slice_tokens(edge.first, edge.tokens), to.slice_tokens(row + edge.halo, edge.tokens),
                                on_));
      };
      tokens(local_.query, query_, Element{});
      tokens(local_.output, output_, Element{});
      tokens(local_.output_gradient, output_gradient_, Element{});
      tokens(local_.log_sum_exp, log_sum_exp_, -std::numeric_limits<T>::infinity());
      then(copy_rows(as_input(halos_).slice(halo_row, edge.halo), edge_.slice(row, edge.halo), on_));
      then(copy_rows(RowTensors<const Element>{local_.key, local_.value}.slice(edge.first, edge.tokens),
                     edge_.slice(row + edge.halo, edge.tokens), on_));
      return status;
    });
  }

  [[nodiscard]] Status take_from_edges() const {
    return for_edges([&](const HaloPlan::Edge& edge, std::int64_t row, std::int64_t halo_row) {
      const Status status = copy_rows(as_input(gradients_).slice(row, edge.halo), halos_.slice(halo_row, edge.halo), on_);
      if (!status.ok() || local_.query_gradient.data == nullptr) {
        return status;
      }
      return Backend::copy_rows(TensorView<const Element>(query_gradient_).slice_tokens(row + edge.halo, edge.tokens),
                                local_.query_gradient.slice_tokens(edge.first, edge.tokens), on_);
    });
  }

  const BackwardArgs<Config>& local_;
  const HaloPlan& plan_;
  const Execution& on_;
  HaloExchange<Element, Execution> exchange_;
  RowTensors<Element> halos_;  // then their gradients
  RowTensors<Element> edge_;
  RowTensors<Element> gradients_;
  TensorView<Element> query_;
  TensorView<Element> output_;
  TensorView<Element> output_gradient_;
  TensorView<Element> query_gradient_;
  TensorView<T> log_sum_exp_;
  Workspace inner_;
};

}  // namespace jrt::detail
