// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/hybrid.hpp"
#include "jrt/detail/distributed/hybrid_backward.hpp"
#include "jrt/detail/distributed/run.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/status.hpp"

/// Context-parallel linear and window attention in one mixer: the exchanges of both, for states whose linear part has the
/// tokens up to L+1 before a piece, and whose ring has those L+1. One normaliser needs nothing more, since each query is on
/// one rank. Results agree with those of one device within the bounds of "Accuracy". A backward pass exchanges the rows of
/// halos twice (each part's), sums of states in both directions, and the halos' gradients twice; its workspace holds a
/// copy of the rank's tensors, with the halos before each piece.
namespace jrt {

template <HybridConfig Config>
class ContextPlan<Config> {
 public:
  /// Makes `plan` that of `rank` for a layout, as the plans of other mixers.
  template <class Execution>
  static Status make(const ContextLayout& layout, int rank, const Execution& on, ContextPlan& plan,
                     std::int64_t heads = 16) {
    constexpr std::int64_t rows = Config::Window::left_window + 1;
    detail::SegmentRule rule = detail::segment_rule<typename Config::Linear>(on, heads);
    rule.segments = nullptr;
    rule.delay = rows;
    const Status checked = detail::check_whole_sequences_continue(layout);
    if (!checked.ok()) {
      return checked;
    }
    Status status = plan.plan_.linear.make(layout, rank, rule);
    if (status.ok()) {
      status = plan.plan_.reverse.make(layout, rank, detail::SegmentRule());
    }
    return status.ok() ? plan.plan_.halo.make(layout, rank, rows, rows - 1) : status;
  }

  /// Copies the plan's indices to the device of `on`, as the plans of other mixers.
  template <class Execution>
  Status place(void* memory, const Execution& on) {
    auto* to = static_cast<std::byte*>(memory);
    Status status;
    const auto place_arrays = [&](auto& arrays) {
      arrays.place(reinterpret_cast<const std::int32_t*>(to));
      if (status.ok()) {
        status = detail::ContextBackend<Execution>::upload(arrays.host_data(), to, arrays.bytes(), on);
      }
      to += arrays.bytes();
    };
    place_arrays(plan_.linear.arrays);
    place_arrays(plan_.reverse.arrays);
    place_arrays(plan_.halo.arrays);
    return status;
  }
  [[nodiscard]] std::size_t index_bytes() const {
    return plan_.linear.arrays.bytes() + plan_.reverse.arrays.bytes() + plan_.halo.arrays.bytes();
  }
  [[nodiscard]] bool is_placed() const { return plan_.halo.arrays.is_placed(); }

  [[nodiscard]] int rank() const { return plan_.halo.rank; }
  [[nodiscard]] int ranks() const { return plan_.halo.ranks; }

  /// Bytes of states that each rank sends to all others in a prefill, for `heads` key/value heads; and rows of keys and
  /// values that this rank receives.
  [[nodiscard]] std::int64_t exchanged_bytes(std::int64_t heads) const {
    return plan_.linear.gathered * StateGradientFormatOf<typename Config::Linear>::slot_bytes(heads);
  }
  [[nodiscard]] std::int64_t received_rows() const { return plan_.halo.incoming_rows; }

  /// What operations read.
  [[nodiscard]] const detail::HybridPlan& details() const { return plan_; }

 private:
  detail::HybridPlan plan_;
};

/// Arguments of a context-parallel prefill of the mixer. A sequence that has an initial state must lie on one rank, since
/// the keys of the state's ring enter the sums of later ranks.
template <HybridConfig Config>
struct ContextPrefillArgs<Config> {
  PrefillArgs<Config> local{};                ///< this rank's tensors and, by the layout's sequences, states
  const ContextPlan<Config>* plan = nullptr;  ///< for the communicator's rank and size
};

/// Arguments of a context-parallel backward pass of the mixer; without initial states.
template <HybridConfig Config>
struct ContextBackwardArgs<Config> {
  BackwardArgs<Config> local{};
  const ContextPlan<Config>* plan = nullptr;
};

namespace detail {

template <HybridConfig Config, class Execution>
struct ContextMixer<Config, Execution>
    : ContextCalls<Config, Execution, HybridContextPrefill<Config, Execution>, HybridContextBackward<Config, Execution>> {};

}  // namespace detail

}  // namespace jrt
