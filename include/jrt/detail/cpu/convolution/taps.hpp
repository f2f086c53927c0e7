// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/cpu/core/stores.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/convolution/inputs.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/activation.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

// GCC 12 warns about the deliberately undefined operand of AVX-512 intrinsics within pexp.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

/// The activation of a packet; element by element unless there is a packet version of it here.
template <class Activation, class T>
Packet<T> activated(const Packet<T>& sums) {
  if constexpr (std::is_same_v<Activation, NoActivation>) {
    return sums;
  } else if constexpr (std::is_same_v<Activation, Silu> && Eigen::internal::packet_traits<T>::HasExp) {
    namespace simd = Eigen::internal;
    return simd::pdiv(sums, add(broadcast(T(1)), simd::pexp(simd::pnegate(sums))));
  } else {
    T numbers[lanes<T>];
    store(numbers, sums);
    for (T& number : numbers) {
      number = Activation::apply(number);
    }
    return load(numbers);
  }
}

/// The same and the activation's derivative.
template <class Activation, class T>
void activate_and_derive(const Packet<T>& sums, Packet<T>& values, Packet<T>& derivatives) {
  if constexpr (std::is_same_v<Activation, NoActivation>) {
    values = sums;
    derivatives = broadcast(T(1));
  } else if constexpr (std::is_same_v<Activation, Silu> && Eigen::internal::packet_traits<T>::HasExp) {
    namespace simd = Eigen::internal;
    const Packet<T> one = broadcast(T(1));
    const Packet<T> logistic = simd::pdiv(one, add(one, simd::pexp(simd::pnegate(sums))));
    values = multiply(sums, logistic);
    derivatives = multiply_add(values, simd::psub(one, logistic), logistic);
  } else {
    T numbers[lanes<T>];
    T slopes[lanes<T>];
    store(numbers, sums);
    for (int i = 0; i < lanes<T>; ++i) {
      slopes[i] = Activation::derivative(numbers[i]);
      numbers[i] = Activation::apply(numbers[i]);
    }
    values = load(numbers);
    derivatives = load(slopes);
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

template <Stores stores, class T>
void put(T* to, const Packet<T>& packet) {
  if constexpr (stores == Stores::past_caches) {
    store_past_caches(to, packet);
  } else {
    store(to, packet);
  }
}

/// Rows of elements, one for each token.
template <class E>
struct Rows {
  E* data = nullptr;
  std::int64_t stride = 0;

  [[nodiscard]] E* row(std::int64_t token) const { return data + token * stride; }
};

/// A view's rows of one batch row, from `token` on.
template <class E>
Rows<E> rows_from(const TensorView<E>& view, std::int64_t b, std::int64_t token) {
  return view.data == nullptr ? Rows<E>{} : Rows<E>{view.row(b, token, 0), view.token_stride};
}

/// Up to `block_channels` neighbouring channels of a convolution: their weights and last K inputs, in the L1 cache. Rows
/// are filled up to whole packets.
template <class Config, std::int64_t block_channels>
class ConvolutionTaps {
 public:
  using E = typename Config::Element;
  using Weight = typename Config::Weight;
  using T = ConvolutionCompute<Config>;
  static constexpr int kernel_width = Config::kernel_width;
  static constexpr std::int64_t carried = kernel_width - 1;
  static constexpr std::int64_t channels = block_channels;

  /// Channels from `first` on, `channels` or what is left of `all`.
  ConvolutionTaps(std::int64_t first, std::int64_t all) : first_(first), count_(smaller(channels, all - first)) {}

  /// Loads the K−1 inputs before `position`.
  void start(const ConvolutionInputs<Config>& inputs, std::int64_t position) {
    for (std::int64_t i = 0; i < carried; ++i) {
      const std::int64_t p = position - carried + i;
      T* const row = recent_[i];
      for (std::int64_t c = 0; c < count_; ++c) {
        row[c] = convert<T>(p < 0 ? inputs.carried_number(p, first_ + c) : inputs.row(p)[first_ + c]);
      }
      taps_[i] = row;
    }
  }

  /// Transposes the weights, so that those of neighbouring channels are contiguous.
  void take_weights(const Weight* weight, const Weight* bias) {
    for (std::int64_t c = 0; c < count_; ++c) {
      for (int k = 0; k < kernel_width; ++k) {
        weights_[k][c] = convert<T>(weight[(first_ + c) * kernel_width + k]);
      }
      bias_[c] = bias == nullptr ? T(0) : convert<T>(bias[first_ + c]);
    }
    for (std::int64_t c = count_; c < round_up<std::int64_t>(count_, width); ++c) {  // fills the last packet
      for (int k = 0; k < kernel_width; ++k) {
        weights_[k][c] = 0;
      }
      bias_[c] = 0;
    }
  }

  /// Zeroes the outputs of padding.
  void clear(Rows<E> output, std::int64_t tokens) const {
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::fill_n(output.row(t) + first_, count_, E{});
    }
  }

 protected:
  static constexpr int width = lanes<T>;

  /// Whether packets of outputs may be stored past the caches: rows of T, at multiples of a packet.
  [[nodiscard]] bool rows_of_packets(const Rows<E>& output) const {
    constexpr std::size_t bytes = sizeof(Packet<T>);
    return stores_past_caches && std::is_same_v<T, E> &&
           reinterpret_cast<std::uintptr_t>(output.data + first_) % bytes == 0 &&
           static_cast<std::size_t>(output.stride) * sizeof(E) % bytes == 0;
  }

  void widen(const E* from, T* to) const {
    for (std::int64_t c = 0; c < count_; ++c) {
      to[c] = convert<T>(from[c]);
    }
  }

  /// Makes these inputs the newest, converted. Row by row: a conversion whose result is read at once would stall on its own
  /// store.
  void take_widened(const E* row) {
    T* const widened = recent_[(next_ + carried) % kernel_width];
    next_ = (next_ + 1) % kernel_width;
    taps_[carried] = widened;
    widen(row, widened);
  }
  /// Makes room for the next token's inputs.
  void shift() { std::copy(taps_ + 1, taps_ + kernel_width, taps_); }

  /// Sums over taps of the packet at `from` in the taps, which is at `c` in the block.
  [[nodiscard]] Packet<T> sums(const T* const (&taps)[kernel_width], std::int64_t from, std::int64_t c) const {
    Packet<T> sum = load(bias_ + c);
    for (int k = 0; k < kernel_width; ++k) {
      sum = multiply_add(load(weights_[k] + c), load(taps[k] + from), sum);
    }
    return sum;
  }

  std::int64_t first_;
  std::int64_t count_;
  int next_ = 0;                   // row of recent_ with the oldest input, where inputs are widened
  const T* taps_[kernel_width]{};  // inputs from oldest to newest
  alignas(64) T recent_[kernel_width][channels];
  alignas(64) T weights_[kernel_width][channels];
  alignas(64) T bias_[channels];
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
