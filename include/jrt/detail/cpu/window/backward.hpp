// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/window/backward_block.hpp"
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
  using Block = WindowBackwardBlock<Config>;

  WindowBackward(const Call& call, int workers) : call_(call), workers_(workers) {}

  void take(Arena& arena) { scratch_ = arena.take<std::byte>(workers_ * scratch_bytes()); }

  template <Executor E>
  void run(E&& executor) const {
    const std::int64_t heads = call_.key.heads;
    std::int64_t segments = 1;
    for (std::int64_t b = 0; b < call_.count(); ++b) {
      const SequenceSpan span = call_.span(b);
      segments = larger(segments, ceil_div(span.tokens - span.left_pad, segment_tokens));
    }
    executor.run(call_.count() * segments * heads, [this, heads, segments](std::int64_t task, int worker) {
      Block block(call_);
      Arena arena(Workspace{scratch_ + worker * scratch_bytes(), static_cast<std::size_t>(scratch_bytes())});
      block.take(arena);
      run_segment(task / heads / segments, task / heads % segments, task % heads, block);
    });
  }

 private:
  /// As in the forward pass.
  static constexpr std::int64_t segment_tokens =
      round_up(larger<std::int64_t>(min_window_segment_tokens, 4 * Config::left_window), panel_keys);

  [[nodiscard]] std::int64_t scratch_bytes() const {
    Arena counting;
    Block block(call_);
    block.take(counting);
    return round_up(static_cast<std::int64_t>(counting.bytes_needed()), static_cast<std::int64_t>(Arena::alignment));
  }

  void run_segment(std::int64_t b, std::int64_t segment, std::int64_t head, Block& block) const {
    const SequenceSpan span = call_.span(b);
    if (segment == 0) {
      zero_rows(span, 0, span.left_pad, head);
      zero_rows(span, span.tokens, span.row_tokens, head);
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

  void zero_rows(const SequenceSpan& span, std::int64_t begin, std::int64_t end, std::int64_t head) const {
    const auto zero = [&](const auto& gradient, std::int64_t token, std::int64_t h) {
      if (gradient.data != nullptr) {
        auto* const row = gradient.row(span.batch_row, span.first_token + token, h);
        std::fill(row, row + gradient.dim, typename Config::Element{});
      }
    };
    for (std::int64_t token = begin; token < end; ++token) {
      for (std::int64_t h = head * call_.group(); h < (head + 1) * call_.group(); ++h) {
        zero(call_.query_gradient, token, h);
      }
      zero(call_.key_gradient, token, head);
      zero(call_.value_gradient, token, head);
    }
  }

  const Call& call_;
  int workers_;
  std::byte* scratch_ = nullptr;  // [workers][scratch_bytes]
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
