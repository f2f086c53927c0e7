// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <jrt/decode.hpp>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/prefill.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/prompt_data.hpp"

/// Prefill of a prompt and decoding after it, for any backend.
namespace support {

/// What a run gave: outputs of all tokens, prompt and decoded ones, and how fast.
struct RunResult {
  std::vector<double> outputs;
  double prefill_rate = 0;  // tokens per second
  double decode_rate = 0;
};

/// The operator, chosen at compile time: float, d = 16, dv = 64; everything else as published for JRT-RNN.
using RunAttention = jrt::PrefixLinearAttention<float, 16, 64>;

/// The same on the CPU; in a file of its own, since CUDA compilers need not see the CPU backend.
RunResult run_on_host(const PromptData& data);

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// `Place` says where: `Array<T>` is memory that the backend can read, `execution()` the argument that selects it, `wait()`
/// returns when everything enqueued is done.
template <class Place>
RunResult run(const PromptData& data) {
  using Format = jrt::StateFormatOf<RunAttention>;
  using Array = typename Place::template Array<float>;
  const auto as_floats = [](const std::vector<double>& from) { return std::vector<float>(from.begin(), from.end()); };
  Array q(as_floats(data.query)), k(as_floats(data.key)), v(as_floats(data.value));
  Array k_enc(as_floats(data.key_encoder)), v_enc(as_floats(data.value_encoder));
  Array y(std::vector<float>(data.value.size()));
  Array states(std::vector<float>(static_cast<std::size_t>(data.batch * data.heads * Format::head_elements)));
  const std::int64_t tokens = data.prompt + data.steps;
  const auto view = [&](Array& array, std::int64_t count, std::int64_t dim) {
    return jrt::view_bhtd(array.data(), {.batch = data.batch, .tokens = count, .heads = data.heads, .dim = dim});
  };
  const auto query = view(q, tokens, 16), key = view(k, tokens, 16);
  const auto value = view(v, tokens, 64), output = view(y, tokens, 64);
  const jrt::StateSlots<Format> slots{jrt::view_pool<Format>(states.data(), data.batch, data.heads)};
  const auto on = Place::execution();
  const auto check = [](const jrt::Status& status) {
    if (!status) {
      throw std::runtime_error(status.c_str());
    }
  };

  jrt::PrefillArgs<RunAttention> prompt;
  prompt.query = query.slice_tokens(0, data.prompt);
  prompt.key = key.slice_tokens(0, data.prompt);
  prompt.value = value.slice_tokens(0, data.prompt);
  prompt.key_encoder = view(k_enc, data.prefix, 16);
  prompt.value_encoder = view(v_enc, data.prefix, 64);
  prompt.output = output.slice_tokens(0, data.prompt);
  prompt.final_state = slots;
  check(jrt::prefill(prompt, on));  // once beforehand: the first call of a kernel loads it
  Place::wait();
  const double start = seconds();
  check(jrt::prefill(prompt, on));
  Place::wait();
  const double prefilled = seconds();
  for (std::int64_t t = data.prompt; t < tokens; ++t) {
    jrt::DecodeArgs<RunAttention> token;
    token.query = query.slice_tokens(t, 1);
    token.key = key.slice_tokens(t, 1);
    token.value = value.slice_tokens(t, 1);
    token.output = output.slice_tokens(t, 1);
    token.source = slots;
    check(jrt::decode_step(token, on));
  }
  Place::wait();
  const double decoded = seconds();
  const auto outputs = y.read();
  return {{outputs.begin(), outputs.end()},
          static_cast<double>(data.batch * data.prompt) / (prefilled - start),
          static_cast<double>(data.batch * data.steps) / (decoded - prefilled)};
}

/// Prompt data as the command line asks for; nothing if it asks for something else.
inline std::optional<PromptData> prompt_data_from(const std::vector<std::string>& arguments) {
  if (arguments.empty()) {
    return random_prompt_data(4096, 16);
  }
  if (arguments.size() == 1 && !arguments[0].starts_with("--")) {
    return read_prompt_data(arguments[0]);
  }
  if (arguments[0] == "--tokens" && (arguments.size() == 2 || (arguments.size() == 4 && arguments[2] == "--heads"))) {
    return random_prompt_data(std::stoll(arguments[1]), arguments.size() == 4 ? std::stoll(arguments[3]) : 4);
  }
  return std::nullopt;
}

}  // namespace support
