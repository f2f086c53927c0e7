// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/linear.hpp"
#include "jrt/detail/distributed/linear_backward.hpp"
#include "jrt/detail/distributed/linear_plan.hpp"
#include "jrt/detail/distributed/run.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

/// Context-parallel linear attention. Each rank sums its tokens' φ(k) vᵀ and its encoder tokens', gathers the sums of all
/// ranks in one exchange, adds up those before its tokens in a fixed order, and prefills from there: keys and values are
/// read twice, as in a prefill that is split over the workers of one device.
///
/// What is exchanged does not depend on the length of pieces: for each sequence that ranks share, a state for its encoder
/// piece and one for its tokens (and for an initial state), of Hkv heads, in the type of sums.
///
/// If the Split policy depends on tokens alone (`LengthSplit`), sums are those of the segments of the whole sequence, and
/// one state a segment is exchanged: then outputs, final states and gradients are bitwise those of the calls on one device
/// that has the whole, provided that ranks meet where segments do (`divide_at_segments`), that this has more than one
/// segment of tokens or of the encoder region, and that the mask does not read the future. Otherwise they agree within the
/// bounds of "Accuracy".
namespace jrt {

template <AttentionConfig Config>
class ContextPlan<Config> {
 public:
  /// Makes `plan` that of `rank` for a layout. Allocates host memory; on failure (`invalid_argument`, `out_of_memory`)
  /// `plan` must not be used. `heads` are the key/value heads of calls, from which, with the workers of `on`, the Split
  /// policy says how a piece is divided; calls with other heads are right, but may use the device less well.
  template <class Execution>
  static Status make(const ContextLayout& layout, int rank, const Execution& on, ContextPlan& plan,
                     std::int64_t heads = 16) {
    return plan.plan_.make(layout, rank, detail::segment_rule<Config>(on, heads));
  }

  /// Copies the plan's indices into `index_bytes()` bytes of memory that the device of `on` reads, aligned to 4 bytes,
  /// which must live as long as the plan is used. Not needed on the CPU.
  template <class Execution>
  Status place(void* memory, const Execution& on) {
    plan_.arrays.place(static_cast<const std::int32_t*>(memory));
    return detail::ContextBackend<Execution>::upload(plan_.arrays.host_data(), memory, index_bytes(), on);
  }
  [[nodiscard]] std::size_t index_bytes() const { return plan_.arrays.bytes(); }
  [[nodiscard]] bool is_placed() const { return plan_.arrays.is_placed(); }

  [[nodiscard]] int rank() const { return plan_.rank; }
  [[nodiscard]] int ranks() const { return plan_.ranks; }
  /// Bytes that each rank sends to all others in a prefill, for `heads` key/value heads; a backward pass exchanges these
  /// once more, and then `backward_bytes`.
  [[nodiscard]] std::int64_t exchanged_bytes(std::int64_t heads) const {
    return plan_.gathered * StateGradientFormatOf<Config>::slot_bytes(heads);
  }
  [[nodiscard]] std::int64_t backward_bytes(std::int64_t heads) const {
    return plan_.gathered_back * StateGradientFormatOf<Config>::slot_bytes(heads);
  }

  /// What operations read.
  [[nodiscard]] const detail::LinearPlan& details() const { return plan_; }

 private:
  detail::LinearPlan plan_;
};

/// Pieces of one sequence of `tokens` tokens that meet where segments of the operator's split do, as even as that allows:
/// `pieces[rank]`, which is a layout's `tokens` for one sequence. Where the split depends on more than tokens, like
/// `divide_tokens`.
template <AttentionConfig Config, class Execution>
void divide_at_segments(std::int64_t tokens, int ranks, const Execution& on, std::int64_t* pieces) {
  const detail::SegmentRule rule = detail::segment_rule<Config>(on, 1);
  if (rule.segments == nullptr) {
    divide_tokens(tokens, ranks, rule.chunk, pieces);
    return;
  }
  const std::int64_t segments = rule.clamped(tokens);
  std::int64_t begin = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::int64_t last = segments * (rank + 1) / ranks;
    const std::int64_t end = last == 0 ? 0 : detail::segment_of({0, tokens}, segments, last - 1, rule.chunk).end;
    pieces[rank] = end - begin;
    begin = end;
  }
}

/// Arguments of a context-parallel prefill of linear attention.
template <AttentionConfig Config>
struct ContextPrefillArgs<Config> {
  /// This rank's tensors, with the tokens and encoder tokens that the layout gives it; without sequences. Slots are those
  /// of the layout's sequences; the initial state is read on the first rank that has tokens of a sequence.
  PrefillArgs<Config> local{};
  const ContextPlan<Config>* plan = nullptr;  ///< for the communicator's rank and size
};

/// Arguments of a context-parallel backward pass of linear attention; as in `ContextPrefillArgs`.
template <AttentionConfig Config>
struct ContextBackwardArgs<Config> {
  BackwardArgs<Config> local{};
  const ContextPlan<Config>* plan = nullptr;
};

namespace detail {

template <AttentionConfig Config, class Execution>
struct ContextMixer<Config, Execution>
    : ContextCalls<Config, Execution, LinearContextPrefill<Config, Execution>, LinearContextBackward<Config, Execution>> {};

}  // namespace detail

}  // namespace jrt
