// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace jrt_lm {

/// The tokens of one sequence that a mixer's stage takes: their rows of x and of y in an exchange, and where they are
/// staged.
template <class E>
struct StepTokens {
  int count = 0;
  const E* x = nullptr;
  int x_columns = 0;
  E* y = nullptr;
  int y_columns = 0;
  int encoder_count = 0;  ///< of the encoder region, whose keys and values all tokens see
  const E* encoder = nullptr;
  int encoder_columns = 0;
  E* staged = nullptr;     ///< the first token's row; null: the tokens go into the state
  int staged_columns = 0;  ///< from a token's row to the next
};

}  // namespace jrt_lm
