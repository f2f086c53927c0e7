// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/gradient_rows.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/window/backward_block.hpp"
#include "jrt/detail/cpu/window/segments.hpp"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/detail/plan/window_range.hpp"
#include "jrt/detail/shared/window/backward_call.hpp"
#include "jrt/executor.hpp"
#include "jrt/workspace.hpp"

/// The backward pass of window attention on the CPU. A task has a key/value head and a run of tokens: it alone writes their
/// gradients, whatever the number of threads. It reads the keys of the window before the run, and the queries that see the
/// run from behind it:
///
///     tokens of a sequence    … │ L │            run            │ L │ …
///     keys and values             ──────────────────────────────
///     queries                       ────────────────────────────────
///     gradients written             ────────────────────────────
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

template <WindowConfig Config>
class WindowBackward {
 public:
  using Call = WindowBackwardCall<Config>;
  using Element = typename Config::Element;
  using Block = WindowBackwardBlock<Config>;

  WindowBackward(const Call& call, int workers) : call_(call), workers_(workers) {}

  void take(Arena& arena) { scratch_ = arena.take<std::byte>(workers_ * scratch_bytes()); }

  template <Executor E>
  void run(E&& executor) const {
    const std::int64_t heads = call_.key.heads;
    const std::int64_t segments = max_window_segments<Config>(call_);
    executor.run(call_.count() * segments * heads, [this, heads, segments](std::int64_t task, int worker) {
      Block block(call_);
      Arena arena(Workspace{scratch_ + worker * scratch_bytes(), static_cast<std::size_t>(scratch_bytes())});
      block.take(arena);
      run_segment(task / heads / segments, task / heads % segments, task % heads, block);
    });
  }

 private:
  static constexpr std::int64_t segment_tokens = window_segment_tokens<Config>;

  [[nodiscard]] std::int64_t scratch_bytes() const {
    return round_up(static_cast<std::int64_t>(counted_bytes(Block(call_))), static_cast<std::int64_t>(Arena::alignment));
  }

  void run_segment(std::int64_t b, std::int64_t segment, std::int64_t head, Block& block) const {
    const SequenceSpan span = call_.span(b);
    if (segment == 0) {
      zero_rest(span, head);
    }
    const std::int64_t tokens = span.tokens - span.left_pad;
    const TokenRange own{segment * segment_tokens, smaller((segment + 1) * segment_tokens, tokens)};
    if (own.begin >= own.end) {
      return;
    }
    const bool wants_keys = call_.wants_key() || call_.wants_value();
    const std::int64_t end = wants_keys ? queries_of_keys(own.begin, own.size(), Block::left, tokens).end : own.end;
    block.begin(span, head, own);
    for (std::int64_t first = own.begin; first < end; first += panel_keys) {
      block.next(first, smaller(panel_keys, end - first));
      for (std::int64_t g = 0; g < call_.group(); ++g) {
        block.compute(head * call_.group() + g);
      }
    }
    block.finish();
  }

  /// Positions that are no token have gradient 0.
  void zero_rest(const SequenceSpan& span, std::int64_t head) const {
    const TokenRange tokens{span.left_pad, span.tokens};
    const auto zero = [&](const TensorView<Element>& gradient, std::int64_t h) {
      zero_rows(GradientRows<Element>{gradient, span.batch_row, span.first_token, h}, tokens, span.row_tokens);
    };
    for (std::int64_t h = head * call_.group(); h < (head + 1) * call_.group(); ++h) {
      zero(call_.query_gradient, h);
    }
    zero(call_.key_gradient, head);
    zero(call_.value_gradient, head);
  }

  const Call& call_;
  int workers_;
  std::byte* scratch_ = nullptr;  // [workers][scratch_bytes]
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
