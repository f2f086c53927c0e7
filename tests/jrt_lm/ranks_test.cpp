// SPDX-License-Identifier: Apache-2.0
// A model on several ranks against the same model on one: threads of the CPU, or as many GPUs as there are.
#include <doctest/doctest.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "jrt_lm/generation.hpp"
#include "jrt_lm/model_problem.hpp"
#include "jrt_lm/ranked_model.hpp"
#include "jrt_lm/reference_model.hpp"

namespace jrt_lm::test {
namespace {

std::unique_ptr<LanguageModel> on_ranks(int ranks, const ModelConfig& config, const WeightSource& weights,
                                        NumberType type) {
  ModelOptions options;
  options.device = device;
  options.type = type;
  options.slots = 3;
  options.threads = 4;
  return make_ranked_model(ranks, config, weights, options);
}

TEST_CASE("prompts that ranks read together, and what follows them, are those of one rank") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const Tokens prompt = random_tokens(900, 29, 1);
  const Tokens more = random_tokens(611, 29, 2);
  for (const Precision& precision : precisions) {
    CAPTURE(name_of(precision.type));
    const auto one = on_ranks(1, config, weights, precision.type);
    for (const int ranks : {2, 3, 4}) {
      CAPTURE(ranks);
      const auto all = on_ranks(ranks, config, weights, precision.type);
      for (const std::int64_t prefix : {0, 100, 500, 900}) {  // on no rank, the first, some, all
        CAPTURE(prefix);
        CHECK(relative_error(prefill_last(*all, prompt, 1, prefix), prefill_last(*one, prompt, 1, prefix)) <=
              precision.bound);
        CHECK(all->tokens_read(1) == 900);
        for (const std::int32_t token : {3, 17, 5}) {
          CHECK(relative_error(step_one(*all, token, 1), step_one(*one, token, 1)) <= precision.bound);
        }
        // Goes on from the state, on all ranks; then with a prompt that is too short for them.
        CHECK(relative_error(prefill_last(*all, more, 1, 0, true), prefill_last(*one, more, 1, 0, true)) <=
              precision.bound);
        CHECK(all->tokens_read(1) == one->tokens_read(1));
        CHECK(relative_error(prefill_last(*all, {1, 2, 3}, 1, 0, true), prefill_last(*one, {1, 2, 3}, 1, 0, true)) <=
              precision.bound);
        CHECK(relative_error(step_one(*all, 7, 1), step_one(*one, 7, 1)) <= precision.bound);
      }
    }
  }
}

TEST_CASE("a long context that is read twice gives the same tokens on any number of ranks") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const std::vector<Request> requests{{random_tokens(2000, 29, 3), {4, 9}}};
  GenerationOptions options;
  options.new_tokens = 24;
  options.reads = 2;
  options.encoder_tokens = 1000;
  const NumberType exact = precisions.front().type;
  const auto expected = generate(*on_ranks(1, config, weights, exact), requests, options, {}).tokens;
  for (const int ranks : {2, 3}) {
    CHECK(generate(*on_ranks(ranks, config, weights, exact), requests, options, {}).tokens == expected);
  }
}

TEST_CASE("what one rank refuses, several refuse") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const auto all = on_ranks(2, config, weights, precisions.front().type);
  Tokens prompt = random_tokens(900, 29, 1);
  prompt[600] = 99;
  CHECK_THROWS_AS(prefill_last(*all, prompt, 0, 0), std::invalid_argument);
  prompt[600] = 9;
  CHECK_THROWS_AS(prefill_last(*all, prompt, 3, 0), std::invalid_argument);
  CHECK_THROWS_AS(prefill_last(*all, prompt, 0, 901), std::invalid_argument);
  const auto one = on_ranks(1, config, weights, precisions.front().type);
  CHECK(relative_error(prefill_last(*all, prompt, 0, 9), prefill_last(*one, prompt, 0, 9)) <= precisions.front().bound);
  CHECK_THROWS_AS(make_ranked_model(0, config, weights, {}), std::invalid_argument);
}

}  // namespace
}  // namespace jrt_lm::test
