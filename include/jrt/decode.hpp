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

/// Decoding: one or a few new tokens per sequence, in time and memory that do not depend on the number of tokens before
/// them.
namespace jrt {

/// Arguments of `decode_step` for one mixer, specialised like `PrefillArgs`.
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

/// Outputs of T new tokens of each sequence, and the states after them. Linear attention: for each token in turn
/// S += φ(k)vᵀ, z += φ(k), y = φ(q)ᵀS · factor(φ(q)ᵀz). The mask has no effect: every new token sees the whole state and
/// itself. The state is read and written once for any T; if it is stored in the compute type, the result is bitwise that of
/// T single steps. (Outputs of windows agree with those of single steps within rounding, their caches bitwise.)
///
/// A sequence whose source or destination slot is `skip_slot` is skipped and its output zeroed. The rules for
/// sharing slots are those of `prefill`. Cost O(T · D · dv) per head. Errors: `invalid_argument`, before anything is
/// written.
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

/// Elements that a mixer stages for one token and head.
template <class Config>
inline constexpr std::int64_t staged_row_elements = 0;

}  // namespace detail

/// Uncommitted tokens of a batch, in the caller's memory: a contiguous (sequence, token, head, row) array, or a range of
/// its heads. For linear and window attention a row is the key followed by the value; for the convolution it is the single
/// input of a channel. Speculative decoding keeps only this small buffer; no state is ever copied for a rollback.
template <class Config>
struct StagingView {
  using Element = typename Config::Element;
  static constexpr std::int64_t row_elements = detail::staged_row_elements<Config>;

  Element* data = nullptr;
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;       ///< capacity per sequence
  std::int64_t heads = 0;        ///< key/value heads, or channels
  std::int64_t heads_apart = 0;  ///< heads from one token to the next, where the view has a range of them; 0: `heads`

  [[nodiscard]] JRT_DETAIL_HD constexpr Element* row(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + ((b * tokens + t) * token_stride() + h * row_elements);
  }
  /// Elements from one token's rows to the next token's.
  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t token_stride() const {
    return (heads_apart == 0 ? heads : heads_apart) * row_elements;
  }
  /// Heads [first, first + count) of every token.
  [[nodiscard]] JRT_DETAIL_HD constexpr StagingView slice_heads(std::int64_t first, std::int64_t count) const {
    return {data == nullptr ? nullptr : data + first * row_elements, sequences, tokens, count,
            heads_apart == 0 ? heads : heads_apart};
  }
  /// Of the memory of a view of all heads.
  [[nodiscard]] constexpr std::size_t bytes() const {
    return static_cast<std::size_t>(sequences * tokens * heads * row_elements) * sizeof(Element);
  }
};

/// Arguments of `staged_step` for one mixer, specialised like `PrefillArgs`.
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

/// A step that leaves the state unchanged: outputs as from `decode_step` on the committed state plus all staged rows
/// (bitwise, but for windows within rounding); the new keys and values go to the staging buffer only. `commit` then adds
/// the accepted ones.
template <class Config, class Execution>
Status staged_step(const StagedStepArgs<Config>& args, const Workspace& workspace, const Execution& on) {
  return detail::MixerBackend<Config, Execution>::run(args, workspace, on);
}

/// The same with a workspace allocated for the call.
template <class Config, class Execution>
Status staged_step(const StagedStepArgs<Config>& args, const Execution& on) {
  return detail::run_with_own_workspace<Config>(args, on);
}

/// Arguments of `commit` for one mixer, specialised like `PrefillArgs`.
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

/// Adds the first `accepted_tokens[b]` staged rows of every sequence to its state. The new state is bitwise the one that
/// `decode_step` with those tokens writes. Sequences with `skip_slot` are skipped.
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

/// Destination of a step's new states.
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
