// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "jrt/detail/backend.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

/// Backward: gradients of a prefill's inputs from the gradients of its outputs.
namespace jrt {

/// Arguments of `backward` for one mixer; the mixer's header in mixer/ specialises this.
template <class Config>
struct BackwardArgs {
  static_assert(detail::always_false<Config>,
                "jrt: BackwardArgs needs the configuration of a mixer, with its header: jrt/mixer/linear_attention.hpp, "
                "window_attention.hpp, gated_convolution.hpp, hybrid_attention.hpp or stack.hpp.");
};

/// Bytes of workspace that `backward` needs for these arguments. Uses only extents, strides, sequence arrays and slots; the
/// tensors need not be allocated yet.
template <class Config, class Execution>
[[nodiscard]] std::size_t backward_workspace_bytes(const BackwardArgs<Config>& args, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::workspace_bytes(args, on);
}

/// Gradients of a loss for the inputs of a `prefill`, from its gradients for the outputs (and, where states leave the call,
/// for the final state). The arguments are those of the prefill, what it computed where the mixer needs that again, and a
/// view for each gradient; a gradient whose view is left empty is not computed. Gradients are written, not added to what
/// the views hold; those of positions without a token (left pads, positions past `seq_lens`, skipped sequences) are 0.
///
/// Cost linear in T. Results are bitwise the same from run to run, and on the CPU with any number of threads: every sum has
/// a fixed order. The gradients must not overlap the inputs. Errors: `invalid_argument`, before anything is written.
template <class Config, class Execution>
Status backward(const BackwardArgs<Config>& args, const Workspace& workspace, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::run(args, workspace, on);
}

/// The same with a workspace allocated for the call; for callers off the hot path.
template <class Config, class Execution>
Status backward(const BackwardArgs<Config>& args, const Execution& on) {
  return detail::run_with_own_workspace<Config>(args, on);
}

}  // namespace jrt
