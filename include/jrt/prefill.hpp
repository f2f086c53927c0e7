// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "jrt/detail/backend.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

/// Prefill: outputs for a run of tokens, from an initial state to a final one.
namespace jrt {

/// Arguments of `prefill` for one mixer; the mixer's header in mixer/ specialises this.
template <class Config>
struct PrefillArgs {
  static_assert(detail::always_false<Config>,
                "jrt: PrefillArgs needs the configuration of a mixer, with its header: jrt/mixer/linear_attention.hpp, "
                "window_attention.hpp, gated_convolution.hpp, hybrid_attention.hpp or stack.hpp.");
};

/// Bytes of workspace that `prefill` needs for these arguments. Uses only extents, strides, sequence arrays and slots; the
/// tensors need not be allocated yet.
template <class Config, class Execution>
[[nodiscard]] std::size_t prefill_workspace_bytes(const PrefillArgs<Config>& args, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::workspace_bytes(args, on);
}

/// Outputs for T tokens of each sequence, and the states after them. Linear attention:
///
///     S_i = S_0 + Σ_{j<M} φ(k_enc_j) v_enc_jᵀ + Σ_{j∈m(i)} φ(k_j) v_jᵀ,    z_i likewise without v,
///     y_i = φ(q_i)ᵀ S_i · factor(φ(q_i)ᵀ z_i),
///
/// with m(i) from the Mask and factor from the Normaliser policy (arXiv 2407.05483, section 4). The final state is S_T,
/// z_T. Since sums carry over, prefill(a ‖ b) is prefill(b) from the state of prefill(a); the encoder region is added once.
///
/// Any T >= 0. A sequence whose initial or final slot is `skip_slot` is skipped and its output zeroed. The initial and the
/// final slot of a sequence may be the same; no other sequence of the call may use a slot that is written. The output must
/// not overlap the inputs.
///
/// Cost O((T + M) · D · dv) per head; workspace O(workers + segments) · D · dv. Errors: `invalid_argument`, before anything
/// is written.
template <class Config, class Execution>
Status prefill(const PrefillArgs<Config>& args, const Workspace& workspace, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::run(args, workspace, on);
}

/// The same with a workspace allocated for the call; for callers off the hot path.
template <class Config, class Execution>
Status prefill(const PrefillArgs<Config>& args, const Execution& on) {
  return detail::run_with_own_workspace<Config>(args, on);
}

/// Arguments of `accumulate`.
template <class Config>
struct AccumulateArgs {
  static_assert(detail::always_false<Config>, "jrt: AccumulateArgs needs the configuration of linear attention.");
};

/// Bytes of workspace that `accumulate` needs for these arguments.
template <class Config, class Execution>
[[nodiscard]] std::size_t accumulate_workspace_bytes(const AccumulateArgs<Config>& args, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::workspace_bytes(args, on);
}

/// Adds a run of keys and values to states: S += Σ φ(k_j) v_jᵀ, z += Σ φ(k_j). To process an encoder region in pieces
/// before the first query, accumulate its chunks, then `prefill` with a causal mask from the resulting state. Skipping,
/// aliasing and errors as for `prefill`.
template <class Config, class Execution>
Status accumulate(const AccumulateArgs<Config>& args, const Workspace& workspace, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::run(args, workspace, on);
}

/// The same with a workspace allocated for the call.
template <class Config, class Execution>
Status accumulate(const AccumulateArgs<Config>& args, const Execution& on) {
  return detail::run_with_own_workspace<Config>(args, on);
}

}  // namespace jrt
