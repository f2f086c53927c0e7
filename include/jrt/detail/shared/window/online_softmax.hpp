// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <limits>

#include "jrt/detail/host_device.hpp"

/// The softmax of a row whose scores come a block at a time (Milakov and Gimelshein 2018, arXiv 1805.02867). A partial
/// softmax over some scores s is their maximum m and their denominator d; a caller that weights values v also keeps an
/// accumulator o:
///
///     of scores s      m  = max s            d  = Σ e^(s − m)                     o  = Σ e^(s − m) v
///     and a block's    m' = max(m, max s)    d' = e^(m − m') d + Σ e^(s − m')     o' = e^(m − m') o + Σ e^(s − m') v
///     of two parts     m  = max(m₁, m₂)      d  = e^(m₁ − m) d₁ + e^(m₂ − m) d₂   o  likewise
///     output           o / d
///     log Σ e^s        m + log d
namespace jrt::detail {

/// How an exponential is computed, here as e^(s − m). Others have the same members.
template <class T>
struct NaturalExponential {
  /// The maximum of no scores.
  static constexpr T lowest = -std::numeric_limits<T>::infinity();

  /// The shift subtracted from scores whose maximum is `maximum`. If that is −∞, all scores are, and the shift is 0, since
  /// −∞ − −∞ is NaN; their weights are 0.
  JRT_DETAIL_HD static T shift(T maximum) { return maximum == lowest ? T(0) : maximum; }
  /// The exponential of a score minus `shift`.
  JRT_DETAIL_HD static T of(T score, T shift) { return std::exp(score - shift); }
  /// The logarithm of a sum of exponentials that are `sum` after the shift.
  JRT_DETAIL_HD static T logarithm(T sum, T shift) { return shift + std::log(sum); }
};

/// Maximum and denominator of some scores of a row; default-constructed, of none. The caller finds the maximum, since
/// scores may be in lanes, packets or both.
template <class T, class Exponential = NaturalExponential<T>>
struct OnlineSoftmax {
  T maximum = Exponential::lowest;
  T denominator = 0;

  /// Moves to `new_maximum`, the maximum of the scores so far and of those that come next. Returns the factor e^(m − m')
  /// for the accumulator; the denominator is already scaled.
  JRT_DETAIL_HD T absorb(T new_maximum, const Exponential& exponential = {}) {
    const T factor = exponential.of(maximum, exponential.shift(new_maximum));
    maximum = new_maximum;
    denominator *= factor;
    return factor;
  }
  /// The weight e^(s − m) of a score that is not above the maximum, to be added to the denominator.
  [[nodiscard]] JRT_DETAIL_HD T weight(T score, const Exponential& exponential = {}) const {
    return exponential.of(score, exponential.shift(maximum));
  }

  /// Adds the scores of another part, whose maximum is not above this one. Returns the factor for that part's accumulator.
  JRT_DETAIL_HD T merge(const OnlineSoftmax& part, const Exponential& exponential = {}) {
    const T factor = weight(part.maximum, exponential);
    denominator += factor * part.denominator;
    return factor;
  }

  /// The factor 1/d that makes the accumulator the output. For no scores, or if all are −∞, it is infinite, and the output
  /// 0/0; the caller fills rows without keys.
  [[nodiscard]] JRT_DETAIL_HD T finish() const { return T(1) / denominator; }
  /// log Σ e^s, the natural logarithm; −∞ for no scores.
  [[nodiscard]] JRT_DETAIL_HD T log_sum(const Exponential& exponential = {}) const {
    return exponential.logarithm(denominator, exponential.shift(maximum));
  }
  /// The output o / d.
  [[nodiscard]] JRT_DETAIL_HD T finish(T accumulator) const { return accumulator / denominator; }
};

}  // namespace jrt::detail
