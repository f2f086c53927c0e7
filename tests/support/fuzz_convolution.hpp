// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <jrt/mixer/gated_convolution.hpp>
#include <string>
#include <vector>

#include "support/convolution_problem.hpp"
#include "support/fuzz_mixer.hpp"

namespace jrt::test {

/// The convolution for `RandomCalls`. Its inputs are the input and, in some cases, the gate.
template <class Backend, class ConfigT>
class FuzzedConvolution {
 public:
  using Config = ConfigT;
  using E = typename Config::Element;
  using Weight = typename Config::Weight;
  static constexpr std::int64_t carried = Config::kernel_width - 1;

  explicit FuzzedConvolution(Random& random)
      : channels_(random.chance(0.3) ? 8 * random.between(1, 40) : random.between(1, 70)),
        has_gate_(random.chance(0.7)),
        has_bias_(random.chance(0.5)),
        weight_offset_(random.chance(0.3) ? 1 : 0) {
    const ConvolutionShape shape{.tokens = 0, .channels = channels_, .has_gate = has_gate_, .has_bias = has_bias_};
    problem_ = ConvolutionProblem<Config>(shape, static_cast<unsigned>(random.between(1, 1 << 30)));
    std::vector<Weight> weight(static_cast<std::size_t>(weight_offset_), poison<Weight>());
    weight.insert(weight.end(), problem_.weight.begin(), problem_.weight.end());
    weight_ = Array(weight);
    bias_ = Array(problem_.bias);
  }

  [[nodiscard]] std::int64_t heads() const { return channels_; }
  [[nodiscard]] std::vector<TensorShape> input_shapes(std::int64_t rows, std::int64_t tokens) const {
    return std::vector<TensorShape>(has_gate_ ? 2 : 1, output_shape(rows, tokens));
  }
  [[nodiscard]] TensorShape output_shape(std::int64_t rows, std::int64_t tokens) const {
    return {rows, tokens, 1, channels_};
  }

  void begin_call(Random& /*random*/, std::ostream& /*log*/) {}

  template <class Args>
  void fill(Args& args, const std::vector<TensorView<E>>& inputs, const TensorView<E>& output) {
    args.input = inputs[0];
    if (has_gate_) {
      args.gate = inputs[1];
    }
    args.output = output;
    args.weight = weight_.data() + weight_offset_;
    args.bias = has_bias_ ? bias_.data() : nullptr;
  }

  /// Inputs before the K−1 carried ones do not matter.
  [[nodiscard]] Tensor<double> expected(const Inputs<E>& inputs, std::int64_t last) const {
    const std::int64_t tokens = inputs[0].shape.tokens;
    const std::int64_t count = std::min(tokens, last + carried);
    const Inputs<E> visible = row_slice(inputs, 0, tokens - count, count);
    ConvolutionProblem<Config> problem = problem_;
    problem.input = visible[0];
    if (has_gate_) {
      problem.gate = visible[1];
    }
    const Tensor<double> output{visible[0].shape, expected_convolution(problem).output};
    return token_slice(output, count - last, last);
  }

  /// The last inputs, to the bit; 0 where there were none.
  [[nodiscard]] std::string wrong_state(const Inputs<E>& inputs, const E* state) const {
    for (std::int64_t c = 0; c < channels_; ++c) {
      for (std::int64_t i = 0; i < carried; ++i) {
        const std::int64_t token = inputs[0].shape.tokens - carried + i;
        const E expected = token < 0 ? E{} : inputs[0].at(0, token, 0, c);
        if (std::memcmp(state + c * carried + i, &expected, sizeof expected) != 0) {
          return "channel " + std::to_string(c) + " carries another input of token " + std::to_string(token);
        }
      }
    }
    return {};
  }

  void describe(std::ostream& to) const {
    to << channels_ << " channels" << (has_gate_ ? ", gate" : "") << (has_bias_ ? ", bias" : "") << ", weights at "
       << weight_offset_;
  }

 private:
  using Array = typename Backend::template Array<Weight>;

  std::int64_t channels_;
  bool has_gate_;
  bool has_bias_;
  std::int64_t weight_offset_;
  ConvolutionProblem<Config> problem_;  // without tokens
  Array weight_;
  Array bias_;
};

}  // namespace jrt::test
