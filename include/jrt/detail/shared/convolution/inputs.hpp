// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail {

/// All inputs of one sequence: those at positions from 0 on are rows in memory, the K−1 before them are carried, or 0 if
/// there is no state. Every operation walks from one position to another, and the new state is the K−1 inputs before the
/// latter.
template <class Config>
struct ConvolutionInputs {
  using E = typename Config::Element;
  static constexpr std::int64_t carried = Config::kernel_width - 1;

  const E* rows = nullptr;  // position 0, channel 0
  std::int64_t stride = 0;  // elements from one position to the next
  const E* state = nullptr;

  [[nodiscard]] JRT_DETAIL_HD const E* row(std::int64_t position) const { return rows + position * stride; }
  /// At a position before 0, at least −(K−1).
  [[nodiscard]] JRT_DETAIL_HD E carried_number(std::int64_t position, std::int64_t channel) const {
    return state == nullptr ? E{} : state[channel * carried + carried + position];
  }
};

/// The state of sequence `b`, or null if it starts empty.
template <class Format>
JRT_DETAIL_HD const typename Format::Scalar* carried_inputs(const StateSlots<Format>& initial,
                                                            const std::uint8_t* has_initial, std::int64_t b) {
  return reads_initial_state(initial, has_initial, b) ? initial.pool.head(initial.slot(b), 0) : nullptr;
}

/// The inputs of a sequence of a prefill, from its first token after the padding on.
template <class Config>
JRT_DETAIL_HD ConvolutionInputs<Config> prefill_inputs(const TensorView<const typename Config::Element>& input,
                                                       const SequenceSpan& span, const typename Config::Element* state) {
  return {input.row(span.batch_row, span.first_token + span.left_pad, 0), input.token_stride, state};
}

}  // namespace jrt::detail
