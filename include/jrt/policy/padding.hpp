// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>

#include "jrt/detail/language.hpp"

namespace jrt {

/// Policy: the effect of the `left_pads[b]` leading positions of a sequence.
///
/// Requires:   `static constexpr bool keeps_padded_keys`: whether a padded key takes part, as φ(0) with its own value.
/// Guarantees: without left pads every padding policy gives the same result.
/// Cost:       none.
/// Default:    `DropPadding`.
/// Tested by:  tests/policy/padding_test.cpp, tests/golden/linear_attention_test.cpp
template <class P>
concept Padding = requires {
  { P::keeps_padded_keys } -> std::convertible_to<bool>;
};

/// Padded positions contribute nothing and their outputs are 0: a padded sequence gives the same results as the unpadded
/// one.
struct DropPadding {
  static constexpr bool keeps_padded_keys = false;
};

/// The authors' published behaviour: keys (of both kinds) are set to 0 *before* the feature map, so that with the Taylor
/// map every padded position still adds φ(0) = (1, 0, …) and its value to the state; padded queries are computed like any
/// other. Needed to reproduce published evaluations, wrong for everything else.
struct ZeroKeyPadding {
  static constexpr bool keeps_padded_keys = true;
};

}  // namespace jrt
