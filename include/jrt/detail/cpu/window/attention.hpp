// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/window/block.hpp"
#include "jrt/detail/cpu/window/segments.hpp"
#include "jrt/executor.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Copies `keys.ring` to `cache`, unless they are the same, and adds the tokens of the range; `write(token, key, value)`
/// stores one.
template <WindowConfig Config, class Write>
void write_cache(const WindowKeys<Config>& keys, const TokenRange& tokens, typename Config::Element* cache,
                 const Write& write) {
  using Format = StateFormatOf<Config>;
  constexpr std::size_t bytes = static_cast<std::size_t>(Format::ring_elements) * sizeof(typename Config::Element);
  if (keys.ring == nullptr) {
    std::memset(static_cast<void*>(cache), 0, bytes);
  } else if (keys.ring != cache) {
    std::memcpy(static_cast<void*>(cache), keys.ring, bytes);  // the count has another type
  }
  for (std::int64_t token = larger(tokens.begin, tokens.end - Format::rows); token < tokens.end; ++token) {
    const std::int64_t row = ring_row(keys.position(token), Config::left_window);
    write(token, cache + row * Config::head_dim, cache + Format::value_offset + row * Config::value_dim);
  }
  set_cached_count<Format>(cache, keys.position(tokens.end));
}

/// Window attention of a batch in two rounds: outputs, a task per head and run of tokens; then the caches or the staging
/// buffer, a task per head. A cache may thus be read and written by one call.
template <WindowConfig Config>
class Window {
 public:
  using Call = WindowCall<Config>;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using Block = WindowBlock<Config>;
  using T = typename Block::T;
  using Keys = WindowKeys<Config>;

  Window(const Call& call, int workers) : call_(call), workers_(workers) {}

  void take(Arena& arena) { scratch_ = arena.take<std::byte>(workers_ * scratch_bytes()); }

  template <Executor E>
  void run(E&& executor) const {
    const std::int64_t heads = call_.key.heads;
    const std::int64_t segments = max_window_segments<Config>(call_);
    executor.run(call_.count() * segments * heads, [this, heads, segments](std::int64_t task, int worker) {
      Block block;
      Arena arena(Workspace{scratch_ + worker * scratch_bytes(), static_cast<std::size_t>(scratch_bytes())});
      block.take(arena);
      read(task / heads / segments, task / heads % segments, task % heads, block);
    });
    if (!call_.final.empty() || call_.stages()) {
      executor.run(call_.count() * heads,
                   [this, heads](std::int64_t task, int /*worker*/) { keep(task / heads, task % heads); });
    }
  }

 private:
  static constexpr std::int64_t segment_tokens = window_segment_tokens<Config>;

  static std::int64_t scratch_bytes() {
    return round_up(static_cast<std::int64_t>(counted_bytes(Block())), static_cast<std::int64_t>(Arena::alignment));
  }

  void read(std::int64_t b, std::int64_t segment, std::int64_t head, Block& block) const {
    const SequenceSpan span = call_.span(b);
    const bool skipped = call_.skipped(b);
    if (segment == 0) {
      zero_outputs(span, 0, skipped ? span.row_tokens : span.left_pad, head);
      zero_outputs(span, skipped ? span.row_tokens : span.tokens, span.row_tokens, head);
    }
    const std::int64_t begin = segment * segment_tokens;
    const std::int64_t end = smaller(begin + segment_tokens, span.tokens - span.left_pad);
    if (skipped || begin >= end) {
      return;
    }
    const Keys keys = call_.keys(span, b, head);
    block.restart();
    for (std::int64_t first = begin; first < end; first += panel_keys) {
      const std::int64_t count = smaller(panel_keys, end - first);
      block.load(keys, keys_in_window(first, count, Keys::left, keys.lowest()), call_.rotary);
      for (std::int64_t g = 0; g < call_.group(); ++g) {
        attend(span, keys, first, count, head * call_.group() + g, block);
      }
    }
  }

  void attend(const SequenceSpan& span, const Keys& keys, std::int64_t first, std::int64_t count, std::int64_t head,
              Block& block) const {
    const std::int64_t offset = span.first_token + span.left_pad;
    for (std::int64_t token = first; token < first + count; token += tile_rows) {
      const int rows = static_cast<int>(smaller<std::int64_t>(tile_rows, first + count - token));
      for (int r = 0; r < rows; ++r) {
        block.set_query(r, call_.query.row(span.batch_row, offset + token + r, head), keys.position(token + r),
                        static_cast<T>(call_.scale), call_.rotary);
        if constexpr (has_softmax_carry_in<Config>) {
          block.set_before(r, call_.output.row(span.batch_row, offset + token + r, head),
                           call_.before.denominator(span.batch_row, offset + token + r, head));
        }
      }
      block.compute(token, rows, keys.lowest());
      for (int r = 0; r < rows; ++r) {
        block.write_output(r, call_.output.row(span.batch_row, offset + token + r, head));
        call_.set_log_sum_exp(span.batch_row, offset + token + r, head, block.log_sum(r));
      }
    }
  }

  void zero_outputs(const SequenceSpan& span, std::int64_t begin, std::int64_t end, std::int64_t head) const {
    for (std::int64_t token = begin; token < end; ++token) {
      for (std::int64_t h = head * call_.group(); h < (head + 1) * call_.group(); ++h) {
        Element* const row = call_.output.row(span.batch_row, span.first_token + token, h);
        std::fill(row, row + Config::value_dim, Element{});
        call_.set_log_sum_exp(span.batch_row, span.first_token + token, h, -std::numeric_limits<T>::infinity());
      }
    }
  }

  /// Stores the call's tokens in the cache, or after the staged ones.
  void keep(std::int64_t b, std::int64_t head) const {
    const SequenceSpan span = call_.span(b);
    if (call_.skipped(b)) {
      return;
    }
    const Keys keys = call_.keys(span, b, head);
    const std::int64_t tokens = span.tokens - span.left_pad;
    const auto write_token = [&](std::int64_t token, Element* key, Element* value) {
      T rotated[Config::head_dim];
      Block::rotated_key(keys, token, call_.rotary, rotated);
      convert_row(rotated, key, Config::head_dim);
      std::copy_n(keys.value(token), Config::value_dim, value);
    };
    if (call_.stages()) {
      for (std::int64_t token = 0; token < tokens; ++token) {
        Element* const row = call_.staging.row(b, call_.already_staged + token, head);
        write_token(token, row, row + Config::head_dim);
      }
    } else {
      write_cache(keys, {0, tokens}, call_.final.pool.head(call_.final.slot(b), head), write_token);
    }
  }

  const Call& call_;
  int workers_;
  std::byte* scratch_ = nullptr;  // [workers][scratch_bytes]
};

/// Stores the first staged rows of one head, whose keys are rotated already, in its cache.
template <WindowConfig Config>
void commit_window(const CommitArgs<Config>& args, std::int64_t b, std::int64_t head) {
  const auto& destination = destination_of(args);
  if (sequence_skipped(args.source, nullptr, destination, b)) {
    return;
  }
  const std::int64_t accepted = args.accepted_tokens[b];
  WindowKeys<Config> keys;
  keys.set_ring(args.source.pool.head(args.source.slot(b), head));
  keys.set_staging(args.staging, b, head, accepted);
  write_cache(keys, {-accepted, 0}, destination.pool.head(destination.slot(b), head),
              [&](auto token, auto* key, auto* value) {
                std::copy_n(keys.key(token), Config::head_dim, key);
                std::copy_n(keys.value(token), Config::value_dim, value);
              });
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
