// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/convolution/taps.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/shared/convolution/gradients.hpp"
#include "jrt/detail/shared/convolution/inputs.hpp"
#include "jrt/numeric.hpp"
#include "jrt/sequences.hpp"
#include "jrt/tensor_view.hpp"

/// Gradients of the convolution on the CPU.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Channels of a block.
template <class Config>
inline constexpr std::int64_t gradient_channels = convolution_gradient_block_bytes /
                                                  static_cast<std::int64_t>(sizeof(ConvolutionCompute<Config>));

/// Walks neighbouring channels of one sequence token by token, with the last K inputs and the gradients of the last K sums
/// in the L1 cache: the newest of the latter completes the gradient of the input K−1 tokens before.
template <class Config>
class ConvolutionGradientBlock : public ConvolutionTaps<Config, gradient_channels<Config>> {
  using Base = ConvolutionTaps<Config, gradient_channels<Config>>;

 public:
  using Base::carried;
  using Base::channels;
  using Base::kernel_width;
  using typename Base::E;
  using typename Base::T;

  ConvolutionGradientBlock(std::int64_t first, std::int64_t all)
      : Base(first, all),
        padded_(round_up<std::int64_t>(count_, width)),
        in_place_(std::is_same_v<T, E> && padded_ == count_) {
    // No packet may read what was never written.
    for (T* const row : {gates_, output_gradients_}) {
      std::fill(row, row + padded_, T(1));
    }
    for (int k = 0; k < kernel_width; ++k) {
      std::fill(this->recent_[k] + count_, this->recent_[k] + padded_, T(0));
      std::fill_n(sum_gradients_[k], padded_, T(0));
      last_gradients_[k] = sum_gradients_[k];
    }
    for (auto& row : totals_) {
      std::fill_n(row, padded_, T(0));
    }
  }

  /// Rows of one sequence, from its first token after the padding on; empty where there are none.
  struct Tokens {
    std::int64_t count = 0;
    Rows<const E> input{};
    Rows<const E> gate{};
    Rows<const E> output_gradient{};
    Rows<E> input_gradient{};
    Rows<E> gate_gradient{};
    const T* final_gradient = nullptr;  // of the final state
  };

  /// Whether gradients of tokens may be stored past the caches.
  [[nodiscard]] bool stores_packets(const Tokens& tokens) const {
    const auto fit = [&](const Rows<E>& rows) { return rows.data == nullptr || this->rows_of_packets(rows); };
    return in_place_ && fit(tokens.input_gradient) && fit(tokens.gate_gradient);
  }

  /// Gradients of tokens [begin, stop), after `start` at `begin`. `adds`: tokens of the segment are added to the totals.
  template <Stores stores>
  void walk(const Tokens& tokens, std::int64_t begin, std::int64_t stop, bool adds) {
    const bool gives_inputs = tokens.input_gradient.data != nullptr;
    const std::int64_t end = gives_inputs ? stop + carried : stop;
    for (std::int64_t t = begin; t < end; ++t) {
      next_sum_gradient<stores>(tokens, t, t < stop, adds && t < stop);
      if (gives_inputs && t - carried >= begin) {
        E* const row = tokens.input_gradient.row(t - carried) + first_;
        input_gradient<stores>(tokens, t - carried, in_place(row, input_gradients_));
        narrow(input_gradients_, row);
      }
      this->shift();
    }
    if constexpr (stores == Stores::past_caches) {
      finish_stores();
    }
  }

  /// Gradients of the K−1 inputs before the first token, after `start` there. They may replace the final state's.
  void store_initial(const Tokens& tokens, T* state) {
    Tokens without_stores = tokens;
    without_stores.gate_gradient = {};
    alignas(64) T gradients[carried][channels];
    for (std::int64_t i = 0; i < carried; ++i) {
      next_sum_gradient<Stores::in_caches>(without_stores, i, false, false);
      input_gradient<Stores::in_caches>(without_stores, i - carried, gradients[i]);
      this->shift();
    }
    for (std::int64_t c = 0; c < count_; ++c) {
      for (std::int64_t i = 0; i < carried; ++i) {
        state[(first_ + c) * carried + i] = gradients[i][c];
      }
    }
  }

  /// The same where no state was read.
  void clear_initial(T* state) const { std::fill_n(state + first_ * carried, count_ * carried, T(0)); }

  /// Stores the totals of a segment, of which `row_elements` channels make a row.
  void store_totals(T* partial, std::int64_t row_elements) const {
    for (std::int64_t k = 0; k <= kernel_width; ++k) {
      std::copy_n(totals_[k], count_, partial + k * row_elements + first_);
    }
  }

 private:
  using Base::count_;
  using Base::first_;
  using Base::taps_;
  using Base::width;

  /// Where packets of a row are stored: in the row itself, or in `buffer`, which `narrow` then copies.
  T* in_place(E* row, T* buffer) const {
    if constexpr (std::is_same_v<T, E>) {
      return in_place_ ? row : buffer;
    } else {
      return buffer;
    }
  }
  void narrow(const T* buffer, E* row) const {
    if (!in_place_) {
      for (std::int64_t c = 0; c < count_; ++c) {
        row[c] = convert<E>(buffer[c]);
      }
    }
  }
  /// Where packets of a row are read.
  const T* read(const E* row, T* buffer) const {
    if constexpr (std::is_same_v<T, E>) {
      if (in_place_) {
        return row;
      }
    }
    this->widen(row, buffer);
    return buffer;
  }

  /// Makes the gradient of sum t, 0 where there is no token, the last one. `own`: stores that of the gate. `adds`: adds the
  /// products with the inputs to the totals.
  template <Stores stores>
  void next_sum_gradient(const Tokens& tokens, std::int64_t t, bool own, bool adds) {
    std::rotate(last_gradients_, last_gradients_ + 1, last_gradients_ + kernel_width);
    T* const result = last_gradients_[carried];
    if (t >= tokens.count) {
      std::fill_n(result, padded_, T(0));
      taps_[carried] = taps_[0];  // no sum needs it
      return;
    }
    const E* const input = tokens.input.row(t) + first_;
    const E* const gate = tokens.gate.data == nullptr ? nullptr : tokens.gate.row(t) + first_;
    const E* const output_gradient = tokens.output_gradient.row(t) + first_;
    const bool stores_gate = own && tokens.gate_gradient.data != nullptr;
    E* const gate_gradient = stores_gate ? tokens.gate_gradient.row(t) + first_ : nullptr;
    if (in_place_) {
      if constexpr (std::is_same_v<T, E>) {
        taps_[carried] = input;
      }
    } else {
      this->take_widened(input);
    }
    const T* const gates = gate == nullptr ? gates_ : read(gate, gates_);
    const T* const outer = read(output_gradient, output_gradients_);
    T* const gate_result = in_place(gate_gradient, gate_gradients_);
    const std::int64_t ahead = t + 1 < tokens.count ? 1 : 0;
    for (std::int64_t c = 0; c < padded_; c += width) {
      // Rows are pages apart, so the hardware prefetcher does not find the next one.
      __builtin_prefetch(input + ahead * tokens.input.stride + c);
      __builtin_prefetch(output_gradient + ahead * tokens.output_gradient.stride + c);
      if (gate != nullptr) {
        __builtin_prefetch(gate + ahead * tokens.gate.stride + c);
      }
      if (stores == Stores::in_caches && stores_gate) {
        __builtin_prefetch(gate_gradient + ahead * tokens.gate_gradient.stride + c, 1);
      }
      Packet<T> value;
      Packet<T> derivative;
      activate_and_derive<typename Config::Activation, T>(this->sums(taps_, c, c), value, derivative);
      const Packet<T> gradient = load(outer + c);
      if (stores_gate) {
        put<stores>(gate_result + c, multiply(gradient, value));
      }
      const Packet<T> sum_gradient = multiply(multiply(gradient, load(gates + c)), derivative);
      store(result + c, sum_gradient);
      if (adds) {
        for (int k = 0; k < kernel_width; ++k) {
          store(totals_[k] + c, multiply_add(sum_gradient, load(taps_[k] + c), load(totals_[k] + c)));
        }
        store(totals_[kernel_width] + c, add(sum_gradient, load(totals_[kernel_width] + c)));
      }
    }
    if (stores_gate) {
      narrow(gate_gradients_, gate_gradient);
    }
  }

  /// Gradient of input `s`, whose last sum is the newest, s + K−1.
  template <Stores stores>
  void input_gradient(const Tokens& tokens, std::int64_t s, T* result) {
    // The final state holds the last K−1 inputs.
    const std::int64_t place = s - (tokens.count - carried);
    const bool is_carried = tokens.final_gradient != nullptr && place >= 0;
    if (is_carried) {
      for (std::int64_t c = 0; c < count_; ++c) {
        carried_gradients_[c] = tokens.final_gradient[(first_ + c) * carried + place];
      }
      std::fill(carried_gradients_ + count_, carried_gradients_ + padded_, T(0));
    }
    for (std::int64_t c = 0; c < padded_; c += width) {
      Packet<T> sum = is_carried ? load(carried_gradients_ + c) : broadcast(T(0));
      for (int k = 0; k < kernel_width; ++k) {
        sum = multiply_add(load(this->weights_[k] + c), load(last_gradients_[carried - k] + c), sum);
      }
      put<stores>(result + c, sum);
    }
  }

  std::int64_t padded_;                // channels in whole packets
  bool in_place_;                      // packets are read and stored in the rows themselves
  T* last_gradients_[kernel_width]{};  // of sums, from oldest to newest
  alignas(64) T sum_gradients_[kernel_width][channels];
  alignas(64) T totals_[kernel_width + 1][channels];  // of dw, then of dbias
  alignas(64) T gates_[channels];                     // 1 without a gate
  alignas(64) T output_gradients_[channels];
  alignas(64) T input_gradients_[channels];
  alignas(64) T gate_gradients_[channels];
  alignas(64) T carried_gradients_[channels];
};

/// The tokens of sequence `b`; none if it is skipped.
template <class Config>
typename ConvolutionGradientBlock<Config>::Tokens gradient_tokens(const BackwardArgs<Config>& args, std::int64_t b,
                                                                  const SequenceSpan& span) {
  const auto from = [&](const auto& view) { return rows_from(view, span.batch_row, span.first_token + span.left_pad); };
  return {span.tokens - span.left_pad,
          from(args.input),
          from(args.gate),
          from(args.output_gradient),
          from(args.input_gradient),
          from(args.gate_gradient),
          args.final_state_gradient.empty() ? nullptr
                                            : args.final_state_gradient.pool.head(args.final_state_gradient.slot(b), 0)};
}

/// Gradients of segment `index`, for the channels from `channel` on; `partials` receives its sums, or is null.
template <class Config>
void channel_gradients(const BackwardArgs<Config>& args, std::int64_t index, std::int64_t channel,
                       ConvolutionCompute<Config>* partials) {
  const RowRun run(args.sequences, args.input.tokens, index, convolution_gradient_segment_tokens);
  SequenceSpan span = sequence_span(args.sequences, run.b, args.input.tokens, 0);
  ConvolutionGradientBlock<Config> block(channel, args.input.dim);
  if (run.within(span)) {
    const std::int64_t first = run.first_row;
    const std::int64_t end = smaller(first + convolution_gradient_segment_tokens, span.row_tokens);
    if (gradients_skipped(args, run.b)) {
      span.tokens = span.left_pad = 0;
    }
    const std::int64_t begin = clamped(span.left_pad, first, end);
    const std::int64_t stop = clamped(span.tokens, begin, end);
    for (const auto& gradient : {args.input_gradient, args.gate_gradient}) {
      if (gradient.data != nullptr) {
        block.clear(rows_from(gradient, span.batch_row, span.first_token + first), begin - first);
        block.clear(rows_from(gradient, span.batch_row, span.first_token + stop), end - stop);
      }
    }
    if (begin < stop) {
      const auto tokens = gradient_tokens(args, run.b, span);
      block.take_weights(args.weight, args.bias);
      block.start(
          prefill_inputs<Config>(args.input, span, carried_inputs(args.initial_state, args.has_initial_state, run.b)),
          begin - span.left_pad);
      if (passes_caches(args.input) && block.stores_packets(tokens)) {
        block.template walk<Stores::past_caches>(tokens, begin - span.left_pad, stop - span.left_pad, partials != nullptr);
      } else {
        block.template walk<Stores::in_caches>(tokens, begin - span.left_pad, stop - span.left_pad, partials != nullptr);
      }
    }
  }
  if (partials != nullptr) {
    block.store_totals(partials + index * sums_of_channel<Config> * args.input.dim, args.input.dim);
  }
}

/// Gradient of the initial state of sequence `b`. All gradients that need the final state's must be done: both may be the
/// same slot.
template <class Config>
void initial_state_gradients(const BackwardArgs<Config>& args, std::int64_t b, std::int64_t channel) {
  if (gradients_skipped(args, b)) {
    return;
  }
  ConvolutionGradientBlock<Config> block(channel, args.input.dim);
  auto* const state = args.initial_state_gradient.pool.head(args.initial_state_gradient.slot(b), 0);
  const SequenceSpan span = sequence_span(args.sequences, b, args.input.tokens, 0);
  if (args.has_initial_state != nullptr && args.has_initial_state[b] == 0) {
    block.clear_initial(state);
    return;
  }
  block.take_weights(args.weight, args.bias);
  block.start(prefill_inputs<Config>(args.input, span, carried_inputs(args.initial_state, args.has_initial_state, b)), 0);
  block.store_initial(gradient_tokens(args, b, span), state);
}

/// Sums over `segments` segments in their order, for the channels from `channel` on.
template <class Config>
void add_segments(const BackwardArgs<Config>& args, const ConvolutionCompute<Config>* partials, std::int64_t segments,
                  std::int64_t channel) {
  using T = ConvolutionCompute<Config>;
  using Weight = typename Config::Weight;
  constexpr std::int64_t taps = Config::kernel_width;
  const std::int64_t count = smaller(gradient_channels<Config>, args.input.dim - channel);
  for (std::int64_t k = 0; k <= taps; ++k) {
    T totals[gradient_channels<Config>] = {};
    for (std::int64_t i = 0; i < segments; ++i) {
      const T* const row = partials + (i * sums_of_channel<Config> + k) * args.input.dim + channel;
      for (std::int64_t c = 0; c < count; ++c) {
        totals[c] += row[c];
      }
    }
    for (std::int64_t c = 0; c < count; ++c) {
      if (k == taps && args.bias_gradient != nullptr) {
        args.bias_gradient[channel + c] = convert<Weight>(totals[c]);
      } else if (k < taps && args.weight_gradient != nullptr) {
        args.weight_gradient[(channel + c) * taps + k] = convert<Weight>(totals[c]);
      }
    }
  }
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
