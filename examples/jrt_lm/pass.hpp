// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/sequences.hpp>
#include <jrt/tensor_view.hpp>

#include "jrt_lm/prefill_plan.hpp"

namespace jrt_lm {

/// Where the rows of a pass through the layers are and what they belong to. Rows are tokens: of prompts, one after the
/// other, or in a step one of each sequence. Pointers are the device's.
struct Pass {
  std::int64_t rows = 0;
  const std::int32_t* tokens = nullptr;
  const std::int32_t* positions = nullptr;
  const std::int32_t* slots = nullptr;
  const std::uint8_t* continues = nullptr;  ///< of prompts
  jrt::Sequences sequences{};               ///< of prompts
  const PrefillPlan* plan = nullptr;        ///< of prompts; null for a step
  bool one_of_each = false;                 ///< the first layer of each kind alone

  [[nodiscard]] bool is_step() const { return plan == nullptr; }

  /// Numbers [first, first + heads * dim) of rows that have `columns`. Packed prompts are tokens of one batch row, a step
  /// is one token of many: nothing else differs.
  template <class T>
  [[nodiscard]] jrt::TensorView<T> part(T* data, std::int64_t columns, std::int64_t first, std::int64_t heads,
                                        std::int64_t dim) const {
    return {
        data + first, is_step() ? rows : 1, is_step() ? 1 : rows, heads, dim, is_step() ? columns : rows * columns, columns,
        dim};
  }
};

}  // namespace jrt_lm
