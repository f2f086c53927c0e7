// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/hybrid.hpp"
#include "jrt/detail/distributed/run.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/status.hpp"

/// Context-parallel linear and window attention in one mixer: the exchanges of both, for states whose linear part has the
/// tokens up to L+1 before a piece, and whose ring has those L+1. One normaliser needs nothing more, since each query is on
/// one rank. Results agree with those of one device within the bounds of "Accuracy". There is no backward pass yet.
namespace jrt {

template <HybridConfig Config>
class ContextPlan<Config> {
 public:
  /// Makes `plan` that of `rank` for a layout, as the plans of other mixers.
  template <class Execution>
  static Status make(const ContextLayout& layout, int rank, const Execution& /*on*/, ContextPlan& plan) {
    constexpr std::int64_t rows = Config::Window::left_window + 1;
    detail::SegmentRule rule;
    rule.delay = rows;
    const Status checked = detail::check_whole_sequences_continue(layout);
    if (!checked.ok()) {
      return checked;
    }
    const Status status = plan.plan_.linear.make(layout, rank, rule);
    return status.ok() ? plan.plan_.halo.make(layout, rank, rows, rows - 1) : status;
  }

  /// Copies the plan's indices to the device of `on`, as the plans of other mixers.
  template <class Execution>
  Status place(void* memory, const Execution& on) {
    auto& linear = plan_.linear.arrays;
    auto& halo = plan_.halo.arrays;
    std::byte* const rest = static_cast<std::byte*>(memory) + linear.bytes();
    linear.place(static_cast<const std::int32_t*>(memory));
    halo.place(reinterpret_cast<const std::int32_t*>(rest));
    const Status status = detail::ContextBackend<Execution>::upload(linear.host_data(), memory, linear.bytes(), on);
    return status.ok() ? detail::ContextBackend<Execution>::upload(halo.host_data(), rest, halo.bytes(), on) : status;
  }
  [[nodiscard]] std::size_t index_bytes() const { return plan_.linear.arrays.bytes() + plan_.halo.arrays.bytes(); }
  [[nodiscard]] bool is_placed() const { return plan_.halo.arrays.is_placed(); }

  [[nodiscard]] int rank() const { return plan_.halo.rank; }
  [[nodiscard]] int ranks() const { return plan_.halo.ranks; }

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

namespace detail {

template <HybridConfig Config, class Execution>
struct ContextMixer<Config, Execution> {
  using Work = HybridContextPrefill<Config, Execution>;

  static std::size_t workspace_bytes(const ContextPrefillArgs<Config>& args, const Execution& on) {
    return args.plan == nullptr ? 0 : counted_bytes(Work(args, on));
  }
  template <class C>
  static Status run(const ContextPrefillArgs<Config>& args, C& communicator, const Workspace& workspace,
                    const Execution& on) {
    return run_context_call<Work>("prefill", args, communicator, workspace, on);
  }
};

}  // namespace detail

}  // namespace jrt
