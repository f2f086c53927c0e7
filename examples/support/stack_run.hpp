// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <jrt/checkpoints.hpp>
#include <jrt/mixer/gated_convolution.hpp>
#include <jrt/mixer/stack.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <jrt/state_operations.hpp>
#include <optional>
#include <random>
#include <stdexcept>
#include <tuple>
#include <vector>

/// A stack of three mixers on any backend: a prompt, tokens after it, a fork and a rollback.
namespace support {

inline constexpr int model_heads = 16;
inline constexpr int value_dim = 64;
inline constexpr int model_width = model_heads * value_dim;

using Short = jrt::GatedConvolution<float, 3>;
using Global = jrt::PrefixLinearAttention<float, 16, value_dim>;
using Local = jrt::SlidingWindowAttention<float, value_dim, 128>;

/// The model, at compile time; and, being the format of its own state, the state of a sequence in all of its layers.
using Model = jrt::Stack<jrt::Layer<Short, model_width>,   // 1024 channels
                         jrt::Layer<Global, model_heads>,  // 16 heads
                         jrt::Layer<Local, model_heads>>;

/// A prompt, of which the first `prefix` tokens are the encoder region, and tokens to decode after it.
struct StackInput {
  std::int64_t prompt = 0;
  std::int64_t prefix = 0;
  std::int64_t steps = 0;
  std::vector<float> numbers;  ///< (tokens, 2, width): what the convolution reads, and its gate
  std::vector<float> weight;   ///< (width, 3)

  [[nodiscard]] std::int64_t tokens() const { return prompt + steps; }
};

inline StackInput random_stack_input(std::int64_t prompt, std::int64_t prefix, std::int64_t steps) {
  StackInput input{prompt, prefix, steps, {}, {}};
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  input.numbers.resize(static_cast<std::size_t>(input.tokens() * 2 * model_width));
  input.weight.resize(static_cast<std::size_t>(model_width * 3));
  for (auto* const values : {&input.numbers, &input.weight}) {
    for (float& value : *values) {
      value = normal(generator);
    }
  }
  return input;
}

struct StackResult {
  std::vector<float> outputs;        ///< (tokens, width)
  bool same_after_rollback = false;  ///< decoding again from the forked state gave the same bits
  double checkpoint_difference = 0;  ///< of decoding from a checkpoint inside the prompt
};

/// On the GPU, if there is one; in a file of its own, for the CUDA compiler.
std::optional<StackResult> run_stack_on_gpu(const StackInput& input);

inline double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(double{a[i]} - double{b[i]}, 2);
    norm += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

/// `Place` says where, as in attention_run.hpp. There are no projections between the layers: each reads parts of what the
/// one before wrote, through strided views, in place of the engine's matrix products.
template <class Place>
StackResult run_stack(const StackInput& input) {
  using Array = typename Place::template Array<float>;
  using Slots = jrt::StateSlots<Model>;
  const auto on = Place::execution();
  const auto check = [](const jrt::Status& status) {
    if (!status) {
      throw std::runtime_error(status.c_str());
    }
  };
  const std::int64_t tokens = input.tokens();
  const std::vector<float> zeros(static_cast<std::size_t>(tokens * model_width));
  Array x(input.numbers), weight(input.weight), convolved(zeros), mixed(zeros), y(zeros);

  // Every layer's tensors, for tokens [first, first + count). A head of the convolution's outputs has 64 numbers: all of
  // them are values; keys, queries, and keys of the encoder are 16 of them each.
  const auto fill = [&](auto& args, std::int64_t first, std::int64_t count) {
    const auto heads = [&](Array& array, std::int64_t offset, std::int64_t dim) {
      auto view = jrt::view_bthd(array.data() + offset, {1, tokens, model_heads, value_dim}).slice_tokens(first, count);
      view.dim = dim;
      return view;
    };
    const auto packed = jrt::view_bthd(x.data(), {1, tokens, 2, model_width}).slice_tokens(first, count);
    auto& short_args = std::get<0>(args.layers);
    auto& global_args = std::get<1>(args.layers);
    auto& local_args = std::get<2>(args.layers);
    short_args.input = packed.slice_heads(0, 1);
    short_args.gate = packed.slice_heads(1, 1);
    short_args.output = jrt::view_bthd(convolved.data(), {1, tokens, 1, model_width}).slice_tokens(first, count);
    short_args.weight = weight.data();
    global_args.query = heads(convolved, 0, 16);
    global_args.key = heads(convolved, 16, 16);
    global_args.value = heads(convolved, 0, value_dim);
    global_args.output = heads(mixed, 0, value_dim);
    if constexpr (requires { global_args.key_encoder; }) {
      global_args.key_encoder = heads(convolved, 32, 16).slice_tokens(0, input.prefix);
      global_args.value_encoder = heads(convolved, 0, value_dim).slice_tokens(0, input.prefix);
    }
    local_args.query = heads(mixed, 0, value_dim);
    local_args.key = heads(mixed, 0, value_dim);
    local_args.value = heads(mixed, 0, value_dim);
    local_args.output = heads(y, 0, value_dim);
  };

  // One slot is all that a sequence is. Slot 0: the sequence; 1: its fork; from 2 on: checkpoints every `prompt / 2`
  // tokens.
  typename Place::template Array<std::uint64_t> memory(
      std::vector<std::uint64_t>(static_cast<std::size_t>(4 * Model::head_elements)));
  const auto pool = jrt::view_pool<Model>(memory.data(), 4, 1);
  const auto slot = [&](std::int64_t index) {
    auto one = pool;
    one.data += index * pool.slot_stride;
    one.slots = pool.slots - index;
    return Slots{one};
  };

  const std::int64_t middle = (input.prompt + 1) / 2;
  jrt::PrefillArgs<Model> prompt;
  fill(prompt, 0, input.prompt);
  prompt.final_state = slot(0);
  check(jrt::prefill_with_checkpoints(prompt, jrt::Checkpoints<Model>{middle, slot(2)}, on));
  check(jrt::copy_states(slot(0), slot(1), 1, on));

  const auto decode = [&](const Slots& state, std::int64_t first, std::int64_t end) {
    for (std::int64_t t = first; t < end; ++t) {
      jrt::DecodeArgs<Model> token;
      fill(token, t, 1);
      token.source = state;
      check(jrt::decode_step(token, on));
    }
    Place::wait();
    return y.read();
  };
  StackResult result;
  result.outputs = decode(slot(0), input.prompt, tokens);
  result.same_after_rollback = decode(slot(1), input.prompt, tokens) == result.outputs;
  result.checkpoint_difference = relative_difference(decode(slot(2), middle, tokens), result.outputs);
  return result;
}

}  // namespace support
