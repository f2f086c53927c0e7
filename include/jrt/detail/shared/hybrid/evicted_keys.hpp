// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/shared/hybrid/linear_part.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/detail/shared/window/keys.hpp"

/// Keys evicted from the window, as the linear part reads them.
namespace jrt::detail {

/// The keys evicted from the window of one head of one sequence. Token i of the sequence reads key i − delay: from the
/// views for tokens from `from_views` on, from the ring before, and none before `first_key`.
template <class Config>
struct EvictedKeys : KeySource<typename Config::Element> {
  using Element = typename Config::Element;
  using Source = KeySource<Element>;
  using Ring = typename Config::Ring;

  const Element* ring = nullptr;
  std::int64_t cached = 0;
  std::int64_t first_key = 0;
  std::int64_t from_views = 0;

  JRT_DETAIL_HD EvictedKeys(const LinearPartArgs<Config>& args, const PrefillPlan& plan, std::int64_t key_head)
      : Source{args.key, args.value, plan.span.batch_row, plan.span.first_token - Config::delay, key_head, 0, plan.span} {
    if (reads_initial_state(args.rings, args.has_rings, plan.sequence)) {
      ring = args.rings.pool.head(args.rings.slot(plan.sequence), key_head);
      cached = cached_count<StateFormatOf<Ring>>(ring);
    }
    from_views = plan.span.left_pad + Config::delay;
    first_key = from_views - smaller(cached, Config::delay);
  }

  [[nodiscard]] JRT_DETAIL_HD const Element* key_row(std::int64_t token) const {
    return token >= from_views ? Source::key_row(token) : ring + row_of(token) * Ring::head_dim;
  }
  [[nodiscard]] JRT_DETAIL_HD const Element* value_row(std::int64_t token) const {
    return token >= from_views ? Source::value_row(token)
                               : ring + StateFormatOf<Ring>::value_offset + row_of(token) * Ring::value_dim;
  }
  /// Leading tokens of the range at which no key is evicted.
  [[nodiscard]] JRT_DETAIL_HD int tokens_without_key_in(const TokenRange& range) const {
    return static_cast<int>(clamped(first_key - range.begin, 0, range.size()));
  }

 private:
  [[nodiscard]] JRT_DETAIL_HD std::int64_t row_of(std::int64_t token) const {
    return ring_row(cached + token - from_views, Ring::left_window);
  }
};

template <class Config>
requires(consumes_evicted_keys<Config>) JRT_DETAIL_HD EvictedKeys<Config> token_source(const LinearPartArgs<Config>& args,
                                                                                       const PrefillPlan& plan,
                                                                                       std::int64_t head) {
  return {args, plan, head};
}

/// What a step needs to find the evicted keys.
template <class Config>
struct EvictedStep {
  using Element = typename Config::Element;
  using Ring = typename Config::Ring;

  StateSlots<StateFormatOf<Ring>> rings{};
  StagingView<Ring> staging{};

  /// Keys of one head. The staging buffer holds `staged` rows before the call's tokens, if the call has any.
  [[nodiscard]] JRT_DETAIL_HD WindowKeys<Ring> keys(std::int64_t b, std::int64_t head, std::int64_t staged,
                                                    const TensorView<const Element>& key,
                                                    const TensorView<const Element>& value) const {
    WindowKeys<Ring> keys;
    keys.set_ring(rings.pool.head(rings.slot(b), head));
    if (staging.data != nullptr) {
      keys.set_staging(staging, b, head, staged);
    }
    if (key.data != nullptr) {
      keys.set_views(key, value, b, 0, head);
    }
    return keys;
  }

  /// The key evicted at token t, counted from the first staged one.
  [[nodiscard]] static JRT_DETAIL_HD std::int64_t evicted(const WindowKeys<Ring>& keys, std::int64_t t) {
    return t - keys.staged_tokens - Config::delay;
  }
  /// Tokens before the first eviction.
  [[nodiscard]] static JRT_DETAIL_HD std::int64_t tokens_without_key(const WindowKeys<Ring>& keys) {
    return Config::delay - smaller(keys.cached, Config::delay);
  }
};

}  // namespace jrt::detail
