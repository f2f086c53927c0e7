// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <jrt/numeric.hpp>
#include <jrt/workspace.hpp>
#include <span>

#include "jrt_lm/model_config.hpp"

namespace jrt_lm {

/// What is between the layers' weights and states, for some number of rows (tokens).
template <class Device, class Element>
struct Activations {
  using Sum = jrt::ComputeType<Element>;
  template <class T>
  using Array = typename Device::template Array<T>;

  Array<Sum> residual{};            ///< (rows, width)
  Array<Element> normed{};          ///< (rows, width)
  Array<Sum> squares{};             ///< (rows, parts): of rows that are prepared for a norm
  Array<Element> projected{};       ///< (rows, the widest projection)
  Array<Element> mixed{};           ///< (rows, channels or values of all heads)
  Array<Element> encoder{};         ///< (encoder rows, keys and values of all heads)
  Array<std::byte> scratch{};       ///< workspace of the library
  Array<std::int32_t> numbers{};    ///< of a PrefillPlan
  Array<std::uint8_t> continues{};  ///< likewise

  const Sum* prepared_for = nullptr;  ///< weights of the norm that `normed` and `squares` are prepared for (Norm), if any
  std::int64_t square_parts = 0;

  /// Makes room; what was there is lost if there was less.
  void reserve(Device& device, const ModelConfig& config, std::int64_t rows, std::int64_t encoder_rows) {
    const std::int64_t values = config.heads * config.shape.head_dim;
    const std::int64_t linear = config.heads * (2 * config.shape.feature_dim + config.shape.head_dim);
    const std::int64_t window = (config.heads + 2 * config.window_kv_heads) * config.shape.head_dim;
    grow(device, residual, rows * config.width);
    grow(device, normed, rows * config.width);
    if constexpr (Device::prepares_norms) {
      grow(device, squares, rows * Device::most_square_parts(config.width));
    }
    grow(device, projected, rows * std::max({2 * config.channels, linear, window, 2 * config.hidden}));
    grow(device, mixed, rows * std::max(config.channels, values));
    grow(device, encoder, encoder_rows * (values + config.heads * config.shape.feature_dim));
  }

  /// `most_numbers`: of any plan to come for which the arrays shall stay where they are.
  void upload(Device& device, std::span<const std::int32_t> plan_numbers, std::span<const std::uint8_t> plan_continues,
              std::int64_t most_numbers = 0) {
    grow(device, numbers, std::max(most_numbers, std::ssize(plan_numbers)));
    grow(device, continues, std::ssize(plan_continues));
    numbers.upload(plan_numbers);
    continues.upload(plan_continues);
  }

  jrt::Workspace workspace(Device& device, std::size_t bytes) {
    grow(device, scratch, static_cast<std::int64_t>(bytes));
    return {scratch.data(), static_cast<std::size_t>(scratch.size())};
  }

 private:
  template <class T>
  static void grow(Device& device, Array<T>& array, std::int64_t count) {
    if (array.size() < count) {
      array = {};  // first, so that the two need not fit at once
      array = Array<T>(device, count);
    }
  }
};

/// Logits of some rows, and the likeliest token of each.
template <class Device, class Element>
struct LogitRows {
  std::int64_t rows = 0;
  typename Device::template Array<jrt::ComputeType<Element>> values{};  ///< (rows, vocabulary rows)
  typename Device::template Array<std::int32_t> likeliest{};            ///< (rows)

  void reserve(Device& device, std::int64_t wanted, const ModelConfig& config) {
    rows = 0;
    if (likeliest.size() < wanted) {
      values = {};
      likeliest = {};  // with it, should there be no memory for the other
      values = {device, wanted * config.vocabulary_rows};
      likeliest = {device, wanted};
    }
  }
};

}  // namespace jrt_lm
