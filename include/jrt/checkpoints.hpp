// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/shared/stack/checkpointed_prefill.hpp"
#include "jrt/mixer/stack.hpp"
#include "jrt/prefill.hpp"
#include "jrt/state.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

/// Checkpoints: states that a prefill stores every so many tokens, so that an engine can return to a point of the prompt,
/// or reuse the beginning of a prompt for another one.
namespace jrt {

/// Where a prefill of T tokens of B sequences stores its ⌊T / every⌋ checkpoints: the state of sequence b after
/// (k + 1) · every tokens goes to slot `slots[k * B + b]`, or slot k · B + b if `slots` is null. `Config` is a mixer's
/// configuration or a `Stack`.
template <class Config>
struct Checkpoints {
  using Format = detail::CheckpointFormat<Config>;

  std::int64_t every = 0;  ///< tokens between checkpoints, at least 1; from a few hundred on, prefill slows down little
  StateSlots<Format> states{};
};

/// Bytes of workspace that `prefill_with_checkpoints` needs for these arguments.
template <class Config, class Execution>
[[nodiscard]] std::size_t checkpoints_workspace_bytes(const PrefillArgs<Config>& args,
                                                      const Checkpoints<Config>& checkpoints, const Execution& on) {
  return detail::CheckpointedPrefill<Config, Execution>(args, checkpoints).workspace_bytes(on);
}

/// `prefill` that stores checkpoints: it runs in pieces of `every` tokens, each from the state of the one before; an
/// encoder region longer than the first piece is accumulated beforehand (with HybridAttention it must lie within the first
/// piece). Results are those of prefill in pieces.
///
/// For dense batches of sequences of one length without left pads (engines that pack sequences divide them themselves, and
/// get checkpoints by choosing final slots). Every checkpoint needs a slot of its own, which is neither a slot of
/// `final_state` nor one of `initial_state`. A padding row has `skip_slot` in all of them. Not for feature maps that need
/// the position, nor masks that read the future. Errors: `invalid_argument`, before anything is written.
template <class Config, class Execution>
Status prefill_with_checkpoints(const PrefillArgs<Config>& args, const Checkpoints<Config>& checkpoints,
                                const Workspace& workspace, const Execution& on) {
  return detail::CheckpointedPrefill<Config, Execution>(args, checkpoints).run(workspace, on);
}

/// The same with a workspace allocated for the call.
template <class Config, class Execution>
Status prefill_with_checkpoints(const PrefillArgs<Config>& args, const Checkpoints<Config>& checkpoints,
                                const Execution& on) {
  const detail::CheckpointedPrefill<Config, Execution> work(args, checkpoints);
  const Status status = work.check();
  return !status.ok()
             ? status
             : detail::Backend<Execution>::with_workspace(
                   work.workspace_bytes(on), on, [&](const Workspace& workspace) { return work.run(workspace, on); });
}

/// For a stack, with `before_layer(i)` as in its `prefill`: each layer processes all tokens before the next layer runs, so
/// an encoder region may have any length; a slot is complete when the last layer has run.
template <class... Layers, class BeforeLayer, class Execution>
Status prefill_with_checkpoints(const PrefillArgs<Stack<Layers...>>& args, const Checkpoints<Stack<Layers...>>& checkpoints,
                                const BeforeLayer& before_layer, const Workspace& workspace, const Execution& on) {
  return detail::CheckpointedPrefill<Stack<Layers...>, Execution>(args, checkpoints).run(before_layer, workspace, on);
}

}  // namespace jrt
