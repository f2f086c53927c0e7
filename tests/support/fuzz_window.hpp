// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <jrt/mixer/window_attention.hpp>
#include <jrt/reference/window_attention.hpp>
#include <string>
#include <vector>

#include "support/fuzz_mixer.hpp"
#include "support/window_problem.hpp"

namespace jrt::test {

/// Window attention for `RandomCalls`. Its inputs are query, key and value.
template <class Backend, class ConfigT>
class FuzzedWindow {
 public:
  using Config = ConfigT;
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;

  explicit FuzzedWindow(Random& random)
      : heads_(random.between(1, 3)), query_heads_(heads_ * (random.chance(0.5) ? random.between(2, 4) : 1)) {}

  [[nodiscard]] std::int64_t heads() const { return heads_; }
  [[nodiscard]] std::vector<TensorShape> input_shapes(std::int64_t rows, std::int64_t tokens) const {
    return {{rows, tokens, query_heads_, Config::head_dim},
            {rows, tokens, heads_, Config::head_dim},
            {rows, tokens, heads_, Config::value_dim}};
  }
  [[nodiscard]] TensorShape output_shape(std::int64_t rows, std::int64_t tokens) const {
    return {rows, tokens, query_heads_, Config::value_dim};
  }

  /// Another scale: mostly about the usual one, of either sign, for the bounds are for scores about 1.
  void begin_call(Random& random, std::ostream& log) {
    scale_ = 1 / std::sqrt(static_cast<double>(Config::head_dim));
    if (random.chance(0.3)) {
      scale_ *= 0.1 * static_cast<double>(random.between(-13, 13));
    }
    log << "scale " << scale_ << ", ";
  }

  template <class Args>
  void fill(Args& args, const std::vector<TensorView<E>>& inputs, const TensorView<E>& output) const {
    args.query = inputs[0];
    args.key = inputs[1];
    args.value = inputs[2];
    args.output = output;
    args.scale = scale_;
  }

  /// Tokens before the window do not matter, and of positions only their differences: what is left out shortens the work.
  [[nodiscard]] Tensor<double> expected(const Inputs<E>& inputs, std::int64_t last) const {
    const std::int64_t tokens = inputs[0].shape.tokens;
    const std::int64_t count = std::min<std::int64_t>(tokens, last + Config::left_window);
    const Inputs<E> visible = row_slice(inputs, 0, tokens - count, count);
    WindowProblem<Config> problem;
    problem.query = visible[0];
    problem.key = visible[1];
    problem.value = visible[2];
    problem.scale = scale_;
    return token_slice(reference_window(problem), count - last, last);
  }

  /// Count and values to the bit; keys, too, unless they are rotated.
  [[nodiscard]] std::string wrong_state(const Inputs<E>& inputs, const E* state) const {
    const std::int64_t tokens = inputs[0].shape.tokens;
    const typename Config::Rotary rotary{};
    for (std::int64_t h = 0; h < heads_; ++h) {
      const E* const head = state + h * Format::head_elements;
      std::int64_t count = 0;
      std::memcpy(&count, head + Format::count_offset, sizeof count);
      if (count != tokens) {
        return "has counted " + std::to_string(count) + " tokens, not " + std::to_string(tokens);
      }
      std::vector<E> keys;
      std::vector<double> expected_keys;
      for (std::int64_t t = std::max<std::int64_t>(0, tokens - Format::rows); t < tokens; ++t) {
        const std::int64_t row = t % Format::rows;
        const E* const key = head + row * Config::head_dim;
        keys.insert(keys.end(), key, key + Config::head_dim);
        const auto expected_key = reference::rotated_row<Config>(&inputs[1].at(0, t, h, 0), rotary, t);
        expected_keys.insert(expected_keys.end(), expected_key.begin(), expected_key.end());
        if (std::memcmp(head + Format::value_offset + row * Config::value_dim, &inputs[2].at(0, t, h, 0),
                        Config::value_dim * sizeof(E)) != 0) {
          return "holds another value of token " + std::to_string(t) + ", head " + std::to_string(h);
        }
      }
      const double error = relative_error(keys, expected_keys);
      if (!(error <= (Config::Rotary::rotates ? tolerance<E>() : 0.0))) {
        return "keys of head " + std::to_string(h) + " have the error " + std::to_string(error);
      }
    }
    return {};
  }

  void describe(std::ostream& to) const { to << query_heads_ << " query heads, " << heads_ << " heads"; }

 private:
  std::int64_t heads_;
  std::int64_t query_heads_;
  double scale_ = 1;
};

}  // namespace jrt::test
