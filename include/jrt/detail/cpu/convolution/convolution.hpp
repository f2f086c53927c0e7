// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/convolution/taps.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/convolution/inputs.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Channels of a block: one page of inputs.
template <class Config>
inline constexpr std::int64_t convolution_channels = convolution_block_bytes /
                                                     static_cast<std::int64_t>(sizeof(ConvolutionCompute<Config>));

/// Convolves neighbouring channels of one sequence, token by token because rows are contiguous in memory. Every element
/// goes through the same operations whatever its neighbours, so results do not depend on how a call is divided.
template <class Config>
class ConvolutionBlock : public ConvolutionTaps<Config, convolution_channels<Config>> {
  using Base = ConvolutionTaps<Config, convolution_channels<Config>>;

 public:
  using Base::Base;
  using Base::carried;
  using Base::channels;
  using Base::kernel_width;
  using Base::rows_of_packets;
  using typename Base::E;
  using typename Base::T;

  /// Processes the next `tokens` tokens. `gate` may be empty. The last K−1 inputs are kept.
  template <Stores stores = Stores::in_caches>
  void walk(Rows<const E> input, Rows<const E> gate, Rows<E> output, std::int64_t tokens) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const E* const row = input.row(t) + first_;
      const E* const gates = gate.data == nullptr ? nullptr : gate.row(t) + first_;
      E* const outputs = output.row(t) + first_;
      const std::int64_t ahead = t + 1 < tokens ? 1 : 0;
      const Ahead next{row + ahead * input.stride, gates == nullptr ? row : gates + ahead * gate.stride,
                       outputs + ahead * output.stride};
      if constexpr (std::is_same_v<T, E>) {
        taps_[carried] = row;
        token<stores>(gates, outputs, next);
      } else {
        this->take_widened(row);
        if (gates != nullptr) {
          this->widen(gates, gates_);
        }
        token<Stores::in_caches>(gates == nullptr ? nullptr : gates_, outputs_, next);
        for (std::int64_t c = 0; c < count_; ++c) {
          outputs[c] = convert<E>(outputs_[c]);
        }
      }
      this->shift();
    }
    if constexpr (stores == Stores::past_caches) {
      finish_stores();
    }
  }

  /// Stores the last K−1 inputs in a slot. All reads of the slot's old contents must be done.
  void store_carried(E* state) const {
    for (std::int64_t c = 0; c < count_; ++c) {
      for (std::int64_t i = 0; i < carried; ++i) {
        state[(first_ + c) * carried + i] = convert<E>(taps_[i][c]);
      }
    }
  }

  /// Copies these channels of `tokens` inputs.
  void copy(Rows<const E> input, Rows<E> to, std::int64_t tokens) const {
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::copy_n(input.row(t) + first_, count_, to.row(t) + first_);
    }
  }

 private:
  using Base::bias_;
  using Base::count_;
  using Base::first_;
  using Base::taps_;
  using Base::width;
  static constexpr bool widens = !std::is_same_v<T, E>;

  /// The same channels one token later. Rows are pages apart, so the hardware prefetcher does not find the next one.
  struct Ahead {
    const E* input;
    const E* gate;
    E* output;

    template <Stores stores>
    void fetch(std::int64_t c) const {
      __builtin_prefetch(input + c);
      __builtin_prefetch(gate + c);
      if constexpr (stores == Stores::in_caches) {
        __builtin_prefetch(output + c, 1);
      }
    }
  };

  template <Stores stores>
  void token(const T* gate, T* output, const Ahead& next) const {
    std::int64_t c = 0;
    if (gate != nullptr) {
      for (; c + width <= count_; c += width) {
        next.template fetch<stores>(c);
        put<stores>(output + c, multiply(activated(taps_, c, c), load(gate + c)));
      }
    } else {
      for (; c + width <= count_; c += width) {
        next.template fetch<stores>(c);
        put<stores>(output + c, activated(taps_, c, c));
      }
    }
    if (c < count_) {
      rest(gate, output, c);
    }
  }

  /// The channels after the last whole packet, in a padded packet.
  void rest(const T* gate, T* output, std::int64_t c) const {
    const std::int64_t left = count_ - c;
    T inputs[kernel_width][width] = {};
    const T* taps[kernel_width];
    for (int k = 0; k < kernel_width; ++k) {
      std::copy_n(taps_[k] + c, left, inputs[k]);
      taps[k] = inputs[k];
    }
    Packet<T> result = activated(taps, 0, c);
    if (gate != nullptr) {
      T gates[width] = {};
      std::copy_n(gate + c, left, gates);
      result = multiply(result, load(gates));
    }
    T outputs[width];
    store(outputs, result);
    std::copy_n(outputs, left, output + c);
  }

  /// Activated sums of the packet at `from` in the taps, which is at `c` in the block.
  [[nodiscard]] Packet<T> activated(const T* const (&taps)[kernel_width], std::int64_t from, std::int64_t c) const {
    return cpu::activated<typename Config::Activation, T>(this->sums(taps, from, c));
  }

  alignas(64) T gates_[widens ? channels : 1];
  alignas(64) T outputs_[widens ? channels : 1];
};

/// The staged inputs of one sequence.
template <class Config>
Rows<typename Config::Element> staged_rows(const StagingView<Config>& staging, std::int64_t b) {
  return {staging.row(b, 0, 0), staging.token_stride()};
}

/// Outputs of rows [first, end) of sequence `b`, for the channels from `channel` on.
template <class Config>
void convolve_rows(const PrefillArgs<Config>& args, std::int64_t b, std::int64_t first, std::int64_t end,
                   std::int64_t channel) {
  SequenceSpan span = sequence_span(args.sequences, b, args.input.tokens, 0);
  end = smaller(end, span.row_tokens);
  if (first >= end) {
    return;
  }
  if (sequence_skipped(args.initial_state, args.has_initial_state, args.final_state, b)) {
    span.tokens = span.left_pad = 0;
  }
  ConvolutionBlock<Config> block(channel, args.input.dim);
  const auto at = [&](const auto& view, std::int64_t row) {
    return rows_from(view, span.batch_row, span.first_token + row);
  };
  const std::int64_t begin = clamped(span.left_pad, first, end);
  const std::int64_t stop = clamped(span.tokens, begin, end);
  block.clear(at(args.output, first), begin - first);
  if (begin < stop) {
    block.take_weights(args.weight, args.bias);
    block.start(prefill_inputs<Config>(args.input, span, carried_inputs(args.initial_state, args.has_initial_state, b)),
                begin - span.left_pad);
    if (passes_caches(args.output) && block.rows_of_packets(at(args.output, begin))) {
      block.template walk<Stores::past_caches>(at(args.input, begin), at(args.gate, begin), at(args.output, begin),
                                               stop - begin);
    } else {
      block.walk(at(args.input, begin), at(args.gate, begin), at(args.output, begin), stop - begin);
    }
  }
  block.clear(at(args.output, stop), end - stop);
}

/// Stores the final state of sequence `b`. All outputs that need the initial state must be done: both may be the same slot.
template <class Config>
void store_final_inputs(const PrefillArgs<Config>& args, std::int64_t b, std::int64_t channel) {
  if (sequence_skipped(args.initial_state, args.has_initial_state, args.final_state, b)) {
    return;
  }
  const SequenceSpan span = sequence_span(args.sequences, b, args.input.tokens, 0);
  ConvolutionBlock<Config> block(channel, args.input.dim);
  block.start(prefill_inputs<Config>(args.input, span, carried_inputs(args.initial_state, args.has_initial_state, b)),
              span.tokens - span.left_pad);
  block.store_carried(args.final_state.pool.head(args.final_state.slot(b), 0));
}

template <class Config>
void convolve_step(const DecodeArgs<Config>& args, std::int64_t b, std::int64_t channel) {
  const auto& destination = destination_of(args);
  ConvolutionBlock<Config> block(channel, args.input.dim);
  if (sequence_skipped(args.source, nullptr, destination, b)) {
    block.clear(rows_from(args.output, b, 0), args.input.tokens);
    return;
  }
  block.take_weights(args.weight, args.bias);
  block.start({nullptr, 0, args.source.pool.head(args.source.slot(b), 0)}, 0);
  block.walk(rows_from(args.input, b, 0), rows_from(args.gate, b, 0), rows_from(args.output, b, 0), args.input.tokens);
  block.store_carried(destination.pool.head(destination.slot(b), 0));
}

template <class Config>
void convolve_staged(const StagedStepArgs<Config>& args, std::int64_t b, std::int64_t channel) {
  using E = typename Config::Element;
  ConvolutionBlock<Config> block(channel, args.input.dim);
  if (!args.state.has_slot(b)) {
    block.clear(rows_from(args.output, b, 0), args.input.tokens);
    return;
  }
  const Rows<E> staged = staged_rows(args.staging, b);
  block.take_weights(args.weight, args.bias);
  block.start({staged.data, staged.stride, args.state.pool.head(args.state.slot(b), 0)}, args.already_staged);
  block.walk(rows_from(args.input, b, 0), rows_from(args.gate, b, 0), rows_from(args.output, b, 0), args.input.tokens);
  block.copy(rows_from(args.input, b, 0), {staged.row(args.already_staged), staged.stride}, args.input.tokens);
}

template <class Config>
void commit_inputs(const CommitArgs<Config>& args, std::int64_t b, std::int64_t channel) {
  const auto& destination = destination_of(args);
  if (sequence_skipped(args.source, nullptr, destination, b)) {
    return;
  }
  const auto staged = staged_rows(args.staging, b);
  ConvolutionBlock<Config> block(channel, args.staging.heads);
  block.start({staged.data, staged.stride, args.source.pool.head(args.source.slot(b), 0)}, args.accepted_tokens[b]);
  block.store_carried(destination.pool.head(destination.slot(b), 0));
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
