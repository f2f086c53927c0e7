// SPDX-License-Identifier: Apache-2.0
// Prefill a prompt whose prefix is read twice, then decode token by token, and compare with the expected outputs:
//   01_quickstart FILE.safetensors          tensors of the authors' own implementation, with its outputs
//   01_quickstart --tokens N [--heads H]    random tensors; the same operator in double gives the expected outputs
#include <chrono>
#include <cstdio>
#include <exception>
#include <jrt/jrt.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/prompt_data.hpp"

// The operator, chosen at compile time: element type, d = 16, dv = 64; everything else as published for JRT-RNN.
template <class Element>
using Attention = jrt::PrefixLinearAttention<Element, 16, 64>;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void check(const jrt::Status& status) {
  if (!status) {
    throw std::runtime_error(status.c_str());
  }
}

/// Outputs of all tokens, prompt and decoded ones.
template <class Element>
std::vector<double> run(const support::PromptData& data, bool report) {
  const auto as = [](const std::vector<double>& from) { return std::vector<Element>(from.begin(), from.end()); };
  auto q = as(data.query), k = as(data.key), v = as(data.value), k_enc = as(data.key_encoder),
       v_enc = as(data.value_encoder);
  std::vector<Element> y(v.size());
  const std::int64_t tokens = data.prompt + data.steps;
  const auto view = [&](std::vector<Element>& values, std::int64_t count, std::int64_t dim) {
    return jrt::view_bhtd(values.data(), {.batch = data.batch, .tokens = count, .heads = data.heads, .dim = dim});
  };
  const auto query = view(q, tokens, 16), key = view(k, tokens, 16);
  const auto value = view(v, tokens, 64), output = view(y, tokens, 64);

  // One state per sequence: all that decoding needs to remember.
  using Format = jrt::StateFormatOf<Attention<Element>>;
  jrt::StatePool<Format> states;
  check(jrt::StatePool<Format>::allocate(data.batch, data.heads, states));

  jrt::ThreadPool threads(2);
  const jrt::Cpu on{threads};
  const jrt::PrefillArgs<Attention<Element>> prompt{.query = query.slice_tokens(0, data.prompt),
                                                    .key = key.slice_tokens(0, data.prompt),
                                                    .value = value.slice_tokens(0, data.prompt),
                                                    .key_encoder = view(k_enc, data.prefix, 16),
                                                    .value_encoder = view(v_enc, data.prefix, 64),
                                                    .output = output.slice_tokens(0, data.prompt),
                                                    .final_state = {states.view()}};
  const double start = now();
  check(jrt::prefill(prompt, on));
  const double prefilled = now();
  for (std::int64_t t = data.prompt; t < tokens; ++t) {
    const jrt::DecodeArgs<Attention<Element>> token{.query = query.slice_tokens(t, 1),
                                                    .key = key.slice_tokens(t, 1),
                                                    .value = value.slice_tokens(t, 1),
                                                    .output = output.slice_tokens(t, 1),
                                                    .source = {states.view()}};
    check(jrt::decode_step(token, on));
  }
  const double decoded = now();
  if (report) {
    std::printf("prefill: %.0f tokens/s, decode: %.0f tokens/s\n",
                static_cast<double>(data.batch * data.prompt) / (prefilled - start),
                static_cast<double>(data.batch * data.steps) / (decoded - prefilled));
    std::printf(
        "state: %lld KiB per sequence and layer for ever; a KV cache of these heads takes %lld KiB for 1k tokens, "
        "%lld KiB for 32k\n",
        static_cast<long long>(Format::slot_bytes(data.heads) / 1024), static_cast<long long>(data.heads * 2 * 64 * 4),
        static_cast<long long>(data.heads * 2 * 64 * 4 * 32));
  }
  return {y.begin(), y.end()};
}

int main(int argc, char** argv) try {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  support::PromptData data;
  if (arguments.size() == 1 && !arguments[0].starts_with("--")) {
    data = support::read_prompt_data(arguments[0]);
  } else if (!arguments.empty() && arguments[0] == "--tokens" &&
             (arguments.size() == 2 || (arguments.size() == 4 && arguments[2] == "--heads"))) {
    data = support::random_prompt_data(std::stoll(arguments[1]), arguments.size() == 4 ? std::stoll(arguments[3]) : 4);
    data.expected = run<double>(data, false);
  } else {
    std::fprintf(stderr, "usage: 01_quickstart FILE.safetensors | --tokens N [--heads H]\n");
    return 2;
  }
  std::printf("%lld sequence(s) of %lld tokens (prefix: %lld), %lld heads, then %lld tokens one by one\n",
              static_cast<long long>(data.batch), static_cast<long long>(data.prompt), static_cast<long long>(data.prefix),
              static_cast<long long>(data.heads), static_cast<long long>(data.steps));
  const double error = support::relative_error(run<float>(data, true), data.expected);
  std::printf("relative error to the expected outputs: %.1e (bound 2.0e-06)\n", error);
  const bool good = error <= 2e-6;  // false for NaN, too
  std::printf("%s\n", good ? "The outputs match." : "MISMATCH: the outputs are not the expected ones.");
  return good ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "01_quickstart: %s\n", error.what());
  return 1;
}
