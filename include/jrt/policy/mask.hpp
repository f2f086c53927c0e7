// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>

#include "jrt/detail/language.hpp"

namespace jrt {

/// Policy: which tokens a query sees through `key` and `value`, and whether there is an encoder region.
///
/// Requires:   two `static constexpr bool` members. `reads_encoder`: every query also sees the sum over the encoder region
///             (`key_encoder`, `value_encoder`). `reads_future`: query i sees all tokens, otherwise the tokens j <= i.
/// Guarantees: the library uses nothing else of a mask, so a user's own struct with these two members is a mask.
/// Cost:       `reads_future` takes a second pass over the tokens. `reads_encoder` adds one state update per encoder token.
/// Default:    `PrefixMask`.
/// Tested by:  tests/prefill_test.cpp
template <class M>
concept Mask = requires {
  { M::reads_encoder } -> std::convertible_to<bool>;
  { M::reads_future } -> std::convertible_to<bool>;
};

/// Prefix linear attention (arXiv 2407.05483): the whole encoder region plus the query's causal past. A prefix token
/// reaches later queries twice, once through each of its two key/value pairs.
struct PrefixMask {
  static constexpr bool reads_encoder = true;
  static constexpr bool reads_future = false;
};

/// Causal linear attention (Based, arXiv 2402.18668): no encoder region.
struct CausalMask {
  static constexpr bool reads_encoder = false;
  static constexpr bool reads_future = false;
};

/// Bidirectional linear attention: every query sees every token, no separate encoder region.
struct FullMask {
  static constexpr bool reads_encoder = false;
  static constexpr bool reads_future = true;
};

}  // namespace jrt
