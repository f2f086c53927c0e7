// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <type_traits>

#include "jrt/detail/backend.hpp"
#include "jrt/distributed/communicator.hpp"
#include "jrt/distributed/context_layout.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

/// Context parallelism: one sequence, or several, over the ranks of a group, each of which has a contiguous piece of the
/// tokens and of the encoder region. States are sums, so linear attention exchanges a few states whatever the pieces'
/// length; a window exchanges its keys and values at the pieces' borders, and a convolution its last inputs.
///
///     jrt::ContextPlan<Config> plan;                             // once for a layout, whatever the layers and steps
///     jrt::ContextPlan<Config>::make(layout, rank, on, plan);
///     jrt::ContextPrefillArgs<Config> args{.local = {.query = q, …}, .plan = &plan};
///     jrt::prefill(args, communicator, workspace, on);           // on all ranks
///
/// All ranks of the group make the same calls in the same order. A call checks its own rank's arguments first; a rank that
/// gets an error has not taken part in the exchange, so that the others wait for it: unless all ranks have failed alike, it
/// must call the communicator's `abort`, which gives them an error, too.
namespace jrt {

/// What a rank's calls of one mixer do for a layout: integers alone, in host memory. The mixer's header in distributed/
/// specialises this.
template <class Config>
class ContextPlan {
  static_assert(
      detail::always_false<Config>,
      "jrt: ContextPlan needs the configuration of a mixer, with its header: jrt/distributed/linear_attention.hpp, "
      "window_attention.hpp, gated_convolution.hpp or hybrid_attention.hpp.");
};

/// Arguments of a context-parallel `prefill`; specialised like `ContextPlan`.
template <class Config>
struct ContextPrefillArgs {
  static_assert(detail::always_false<Config>,
                "jrt: ContextPrefillArgs needs the configuration of a mixer, with its header in jrt/distributed/.");
};

/// Arguments of a context-parallel `backward`; specialised like `ContextPlan`.
template <class Config>
struct ContextBackwardArgs {
  static_assert(detail::always_false<Config>,
                "jrt: ContextBackwardArgs needs the configuration of a mixer, with its header in jrt/distributed/.");
};

namespace detail {

/// The context-parallel operations of one mixer: `workspace_bytes(args, on)` and `run(args, communicator, workspace, on)`.
template <class Config, class Execution>
struct ContextMixer {
  static_assert(always_false<Config>,
                "jrt: a context-parallel call needs the mixer's header in jrt/distributed/ beside its configuration's.");
};

}  // namespace detail

/// Bytes of workspace that a context-parallel `prefill` needs on this rank.
template <class Config, class Execution>
[[nodiscard]] std::size_t prefill_workspace_bytes(const ContextPrefillArgs<Config>& args, const Execution& on) {
  return detail::ContextMixer<Config, Execution>::workspace_bytes(args, on);
}

/// Outputs of this rank's tokens, and the states after the last of them; called by all ranks. Each rank's result is that of
/// `prefill` for its tokens of the whole sequence. `final_state` of a sequence is the state after this rank's piece: on the
/// last rank that has tokens of it, that of the whole. A rank without tokens of a sequence does not touch its state.
///
/// Errors: `invalid_argument`, before anything is written or exchanged; those of the communicator.
template <class Config, class C, class Execution>
requires Communicator<C, Execution> Status prefill(const ContextPrefillArgs<Config>& args, C& communicator,
                                                   const Workspace& workspace, const Execution& on) {
  return detail::ContextMixer<Config, Execution>::run(args, detail::NoWork{}, communicator, workspace, on);
}

/// The same with work of the caller's, which hides the exchange if the communicator overlaps transfers (`SideStream`): the
/// function `meanwhile()` returns a Status and enqueues on the stream of `on`, after what is to be exchanged has been
/// computed. Of linear attention it may compute `query` (and the keys, values and gates of nothing in this call): the
/// exchange needs keys and values alone. Of a window or a convolution it may compute nothing that the call reads: their
/// outputs are computed beside the exchange anyhow. It is called once, whether this rank has tokens or not, unless the call
/// has failed before.
template <class Config, class Meanwhile, class C, class Execution>
requires Communicator<C, Execution> && std::is_invocable_r_v<Status, const Meanwhile&> Status
prefill(const ContextPrefillArgs<Config>& args, const Meanwhile& meanwhile, C& communicator, const Workspace& workspace,
        const Execution& on) {
  return detail::ContextMixer<Config, Execution>::run(args, meanwhile, communicator, workspace, on);
}

/// Bytes of workspace that a context-parallel `backward` needs on this rank.
template <class Config, class Execution>
[[nodiscard]] std::size_t backward_workspace_bytes(const ContextBackwardArgs<Config>& args, const Execution& on) {
  return detail::ContextMixer<Config, Execution>::workspace_bytes(args, on);
}

/// Gradients of the inputs of a context-parallel `prefill` on this rank, from those of its outputs; called by all ranks.
/// `final_state_gradient` of a sequence is read on the last rank that has tokens of it, and `initial_state_gradient`
/// written on the first, for sequences that have an initial state. Errors as for `prefill`.
template <class Config, class C, class Execution>
requires Communicator<C, Execution> Status backward(const ContextBackwardArgs<Config>& args, C& communicator,
                                                    const Workspace& workspace, const Execution& on) {
  return detail::ContextMixer<Config, Execution>::run(args, communicator, workspace, on);
}

}  // namespace jrt
