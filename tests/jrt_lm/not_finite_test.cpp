// SPDX-License-Identifier: Apache-2.0
// Weights with a NaN or an infinity, on the CPU and (compiled once more) on a GPU: no token comes out of them, and the
// message says where they are.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "jrt_lm/model_problem.hpp"
#include "jrt_lm/reference_model.hpp"

namespace jrt_lm::test {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr const char* embeddings = "transformer.embeddings.word_embeddings.weight";

/// Two sequences; token 23 is in neither.
const std::vector<Request> requests{{{1, 2, 3, 4, 5}}, {{7, 8, 9}}};

/// Ways of taking tokens: many at once, one at a time, draws.
std::vector<GenerationOptions> ways() {
  std::vector<GenerationOptions> all(3);
  all[1].stop_token = 29;
  all[2].sampling = {.top_k = 5, .top_p = 1, .temperature = 1, .seed = 1};
  return all;
}

void check_refused(const ModelConfig& config, const SpoiltWeights& weights, const std::string& step,
                   const std::string& place) {
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    for (const GenerationOptions& options : ways()) {
      std::string message;
      try {
        static_cast<void>(generate(*model, requests, options, {}));
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      CAPTURE(name_of(precision.type));
      CHECK_MESSAGE(message.find(step) == 0, message);
      CHECK_MESSAGE(message.find("logits are NaN or infinite") != std::string::npos, message);
      CHECK_MESSAGE(message.find(place) != std::string::npos, message);
    }
  }
}

TEST_CASE("one number of the embedding of a token that is not in the prompt") {
  const ModelConfig config = small_config();
  for (const double number : {nan, infinity, -infinity}) {
    check_refused(config, {config, embeddings, 23 * config.width + 5, 1, number}, "sequence 0, step 0 (the prompt's last",
                  "all layers are finite, but the last norm's weight or the embedding table is not");
  }
}

TEST_CASE("the embedding of a prompt's token") {
  const ModelConfig config = small_config();
  check_refused(config, {config, embeddings, 5 * config.width, 1, nan}, "sequence 0, step 0",
                "so is the embedding of token 5");
}

TEST_CASE("a norm's weight: NaN, an infinity, all of them") {
  const ModelConfig config = small_config();
  for (const double number : {nan, infinity}) {
    check_refused(config, {config, "transformer.ln_f.weight", 3, 1, number}, "sequence 0, step 0",
                  "the last norm's weight");
    check_refused(config, {config, "transformer.layers.1.norm1.weight", 3, 1, number}, "sequence 0, step 0",
                  "layer 1 (window attention) is the first");
    check_refused(config, {config, "transformer.layers.2.norm2.weight", 0, config.width, number}, "sequence 0, step 0",
                  "layer 2 (convolution) is the first");
  }
}

TEST_CASE("padding of the vocabulary is nobody's token: what is in it does not matter") {
  const ModelConfig config = small_config();
  const TestWeights good(config);
  const SpoiltWeights weights(config, embeddings, config.vocabulary * config.width,
                              (config.vocabulary_rows - config.vocabulary) * config.width, nan);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    const auto expected = made(config, good, precision.type);
    for (const GenerationOptions& options : ways()) {
      CHECK(generate(*model, requests, options, {}).tokens == generate(*expected, requests, options, {}).tokens);
    }
  }
}

TEST_CASE("a state that is not finite: the sequence that has it is named, and how far it has come") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    const Tokens tokens{1, 2, 3};
    static_cast<void>(prefill_last(*model, tokens, 0, 0));
    static_cast<void>(prefill_last(*model, tokens, 1, 0));
    // The last bytes of a saved sequence are the last number of the last layer's state.
    std::vector<std::byte> saved = model->save(1);
    const std::size_t size = precision.type == NumberType::float64 ? 8 : precision.type == NumberType::float32 ? 4 : 2;
    const auto write = [&](auto number) {
      std::memcpy(saved.data() + saved.size() - sizeof number, &number, sizeof number);
    };
    if (size == 8) {
      write(nan);
    } else if (size == 4) {
      write(static_cast<float>(nan));
    } else {
      write(std::uint16_t{0x7fc0});
    }
    model->load(saved, 1);
    const Tokens next{4, 4};
    const Tokens slots{0, 1};
    model->step(next, slots);
    const Tokens after = model->likeliest();
    CHECK(after[0] != no_token);
    CHECK(after[1] == no_token);
    CHECK(model->first_not_finite(4, 1) == 5);  // the last layer
    static_cast<void>(prefill_last(*model, tokens, 1, 0));
    const Tokens several = model->greedy_steps(next, slots, 3);  // the state was made anew
    for (const std::int32_t token : several) {
      CHECK(token != no_token);
    }
  }
}

}  // namespace
}  // namespace jrt_lm::test
