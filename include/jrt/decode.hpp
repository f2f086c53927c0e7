// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/state.hpp"
#include "jrt/status.hpp"
#include "jrt/tensor_view.hpp"
#include "jrt/workspace.hpp"

/// Decoding: one or a few new tokens per sequence, in time and memory that do not depend on what came before.
namespace jrt {

/// Arguments of `decode_step` for one mixer, as `PrefillArgs`.
template <class Config>
struct DecodeArgs {
  static_assert(detail::always_false<Config>,
                "jrt: DecodeArgs needs the configuration of a mixer, with its header: jrt/mixer/linear_attention.hpp, "
                "window_attention.hpp, gated_convolution.hpp, hybrid_attention.hpp or stack.hpp.");
};

/// Bytes of workspace that `decode_step` needs for these arguments.
template <class Config, class Execution>
[[nodiscard]] std::size_t decode_workspace_bytes(const DecodeArgs<Config>& args, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::workspace_bytes(args, on);
}

/// For each new token in turn: S += φ(k)vᵀ, z += φ(k), y = φ(q)ᵀS · factor(φ(q)ᵀz). The mask does not matter: every new
/// token sees all that the state holds, and itself.
///
/// The state is read and written once, whatever T is; with a state of the compute type the result is bitwise that of T
/// single steps. A sequence whose source or destination slot is `skip_slot` is skipped and its output zeroed. Slots are
/// shared as for `prefill`. O(T · D · dv) per head. Errors: `invalid_argument`, before anything is written.
template <class Config, class Execution>
Status decode_step(const DecodeArgs<Config>& args, const Workspace& workspace, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::run(args, workspace, on);
}

/// The same with a workspace allocated for the call.
template <class Config, class Execution>
Status decode_step(const DecodeArgs<Config>& args, const Execution& on) {
  return detail::run_with_own_workspace<Config>(args, on);
}

namespace detail {

/// Numbers of one token and head that a mixer stages.
template <class Config>
inline constexpr std::int64_t staged_row_elements = 0;

}  // namespace detail

/// Uncommitted tokens of a batch in the caller's memory: (sequence, token, head, row), contiguous. A row of either
/// attention is the key, then the value; one of the convolution is the one input of a channel. This small buffer is all
/// that speculative decoding has to keep; no state is copied to be rolled back.
template <class Config>
struct StagingView {
  using Element = typename Config::Element;
  static constexpr std::int64_t row_elements = detail::staged_row_elements<Config>;

  Element* data = nullptr;
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;  ///< capacity per sequence
  std::int64_t heads = 0;   ///< key/value heads, or channels

  [[nodiscard]] JRT_DETAIL_HD constexpr Element* row(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + ((b * tokens + t) * heads + h) * row_elements;
  }
  [[nodiscard]] constexpr std::size_t bytes() const {
    return static_cast<std::size_t>(sequences * tokens * heads * row_elements) * sizeof(Element);
  }
};

/// Arguments of `staged_step` for one mixer, as `PrefillArgs`.
template <class Config>
struct StagedStepArgs {
  static_assert(detail::always_false<Config>,
                "jrt: StagedStepArgs needs the configuration of a mixer, with its header: jrt/mixer/linear_attention.hpp, "
                "window_attention.hpp, gated_convolution.hpp, hybrid_attention.hpp or stack.hpp.");
};

/// Bytes of workspace that `staged_step` needs for these arguments.
template <class Config, class Execution>
[[nodiscard]] std::size_t staged_workspace_bytes(const StagedStepArgs<Config>& args, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::workspace_bytes(args, on);
}

/// A step that commits nothing: outputs as from `decode_step` (bitwise) on the committed state plus all staged rows, while
/// the new keys and values only go to the staging buffer. Afterwards `commit` adds the accepted ones.
template <class Config, class Execution>
Status staged_step(const StagedStepArgs<Config>& args, const Workspace& workspace, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::run(args, workspace, on);
}

/// The same with a workspace allocated for the call.
template <class Config, class Execution>
Status staged_step(const StagedStepArgs<Config>& args, const Execution& on) {
  return detail::run_with_own_workspace<Config>(args, on);
}

/// Arguments of `commit` for one mixer, as `PrefillArgs`.
template <class Config>
struct CommitArgs {
  static_assert(detail::always_false<Config>,
                "jrt: CommitArgs needs the configuration of a mixer, with its header: jrt/mixer/linear_attention.hpp, "
                "window_attention.hpp, gated_convolution.hpp, hybrid_attention.hpp or stack.hpp.");
};

/// Bytes of workspace that `commit` needs for these arguments.
template <class Config, class Execution>
[[nodiscard]] std::size_t commit_workspace_bytes(const CommitArgs<Config>& args, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::workspace_bytes(args, on);
}

/// Adds the first `accepted_tokens[b]` staged rows of every sequence to its state: bitwise what `decode_step` with those
/// tokens would have left there. Sequences with `skip_slot` are skipped.
template <class Config, class Execution>
Status commit(const CommitArgs<Config>& args, const Workspace& workspace, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::run(args, workspace, on);
}

/// The same with a workspace allocated for the call.
template <class Config, class Execution>
Status commit(const CommitArgs<Config>& args, const Execution& on) {
  return detail::run_with_own_workspace<Config>(args, on);
}

namespace detail {

/// Where the new states of a step go.
template <class Args>
const auto& destination_of(const Args& args) {
  return args.destination.empty() ? args.source : args.destination;
}

/// Query heads that read one state.
template <class Args>
std::int64_t query_group(const Args& args) {
  return args.query.heads / larger<std::int64_t>(args.key.heads, 1);
}

}  // namespace detail

}  // namespace jrt
