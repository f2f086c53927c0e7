// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/distributed/halo_plan.hpp"
#include "jrt/detail/distributed/run.hpp"
#include "jrt/detail/distributed/window.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/window_attention.hpp"

/// Context-parallel window attention. A rank gets the L+1 keys and values before each of its pieces that begins inside a
/// sequence, from the rank before it or, where that has fewer, from several, and makes a cache of them; beside that it
/// prefills all its tokens, and then once more the first L of such a piece, from the cache. States are those of the whole
/// sequence, too. A backward pass exchanges the same rows, and sends back their gradients, which the ranks that have these
/// tokens add to theirs (in 16 bits rounded once more).
///
/// Exchanged: (L+1) · Hkv · (d + dv) elements for each sequence that two ranks share. Results agree with those of one
/// device within the bounds of "Accuracy".
namespace jrt {

template <WindowConfig Config>
class ContextPlan<Config> : public detail::HaloContextPlan<ContextPlan<Config>> {
 public:
  /// Keys that a piece needs: those that its first query sees, and one that only the cache holds.
  static constexpr std::int64_t halo_rows = Config::left_window + 1;
  static constexpr std::int64_t halo_reach = Config::left_window;
};

/// Arguments of a context-parallel prefill of a window. A sequence that has an initial state and goes on on another rank
/// must have 0 or at least L+1 tokens before that rank, and the layout's `first_positions` must be what the state counts.
template <WindowConfig Config>
struct ContextPrefillArgs<Config> {
  PrefillArgs<Config> local{};                ///< this rank's tensors and, by the layout's sequences, states
  const ContextPlan<Config>* plan = nullptr;  ///< for the communicator's rank and size
};

/// Arguments of a context-parallel backward pass of a window; without initial states.
template <WindowConfig Config>
struct ContextBackwardArgs<Config> {
  BackwardArgs<Config> local{};
  const ContextPlan<Config>* plan = nullptr;
};

namespace detail {

template <WindowConfig Config, class Execution>
struct ContextMixer<Config, Execution>
    : ContextCalls<Config, Execution, WindowContextPrefill<Config, Execution>, WindowContextBackward<Config, Execution>> {};

}  // namespace detail

}  // namespace jrt
