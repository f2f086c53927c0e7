// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/sequences.hpp>
#include <jrt/tensor_view.hpp>
#include <span>

#include "jrt_lm/mixers.hpp"
#include "jrt_lm/prefill_plan.hpp"

namespace jrt_lm {

/// Where the rows of a pass through the layers are and what they belong to. Rows are tokens: of prompts, one after the
/// other, or in a step one of each sequence, in a staged step some. Pointers are the device's.
struct Pass {
  std::int64_t rows = 0;
  std::int64_t step_tokens = 1;  ///< of each sequence of a step
  const std::int32_t* tokens = nullptr;
  const std::int32_t* positions = nullptr;
  const std::int32_t* slots = nullptr;
  const std::uint8_t* continues = nullptr;  ///< of prompts
  jrt::Sequences sequences{};               ///< of prompts
  const PrefillPlan* plan = nullptr;        ///< of prompts; null for a step
  bool one_of_each = false;                 ///< the first layer of each kind alone
  std::span<const LayerStaging> staging{};  ///< of a staged step: each layer's

  [[nodiscard]] bool is_step() const { return plan == nullptr; }

  /// Numbers [first, first + heads * dim) of rows that have `columns`. Packed prompts are tokens of one batch row, a step
  /// is one token, or a few, of many: nothing else differs.
  template <class T>
  [[nodiscard]] jrt::TensorView<T> part(T* data, std::int64_t columns, std::int64_t first, std::int64_t heads,
                                        std::int64_t dim) const {
    const std::int64_t of_each = is_step() ? step_tokens : rows;
    return {data + first, rows / of_each, of_each, heads, dim, of_each * columns, columns, dim};
  }
};

}  // namespace jrt_lm
