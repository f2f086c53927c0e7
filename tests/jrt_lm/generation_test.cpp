// SPDX-License-Identifier: Apache-2.0
// Reading twice, short prompts and ends of sequences, against what formulas in double would generate.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <jrt/prompt/repeated_prompt.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "jrt_lm/model_problem.hpp"
#include "jrt_lm/reference_model.hpp"

namespace jrt_lm::test {
namespace {

/// The exact type of a device: with it greedy tokens do not depend on rounding.
const NumberType exact = precisions.front().type;

struct Problem {
  ModelConfig config = small_config();
  TestWeights weights{config};
  ReferenceModel reference{config, weights};

  /// Greedy tokens after `read`, of which `first_prefix` tokens are the encoder region; with `grows` all tokens up to that
  /// number are, anew for each.
  [[nodiscard]] Tokens expected(Tokens read, std::int64_t prefix, std::int64_t zero_keys, std::int64_t count,
                                bool grows = false) const {
    Tokens generated;
    const std::int64_t begun = std::min(std::ssize(read), prefix);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t region = grows ? std::min(std::ssize(read), prefix) : begun;
      const Numbers logits = reference.last_logits(read, region, zero_keys);
      generated.push_back(
          static_cast<std::int32_t>(std::max_element(logits.begin(), logits.begin() + config.vocabulary) - logits.begin()));
      read.push_back(generated.back());
    }
    return generated;
  }
};

TEST_CASE("short prompts: each strategy is what it says") {
  const Problem problem;
  const auto model = made(problem.config, problem.weights, exact);
  // Shorter, of the region's length, and longer.
  const std::vector<Tokens> prompts{random_tokens(5, 29, 1), random_tokens(24, 29, 2), random_tokens(31, 29, 3),
                                    random_tokens(22, 29, 4)};
  std::vector<Request> requests;
  for (const Tokens& prompt : prompts) {
    requests.push_back({prompt});
  }
  GenerationOptions options;
  options.new_tokens = 6;
  options.encoder_tokens = problem.config.encoder_tokens;
  options.pad_token = 11;
  for (const auto strategy : {ShortPromptStrategy::shorten, ShortPromptStrategy::left_pad, ShortPromptStrategy::read_twice,
                              ShortPromptStrategy::iterative}) {
    options.short_prompt = strategy;
    const Generation result = generate(*model, requests, options, {});
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      Tokens read = prompts[i];
      std::int64_t zero_keys = 0;
      while (std::ssize(read) < options.encoder_tokens && strategy == ShortPromptStrategy::left_pad) {
        read.insert(read.begin(), options.pad_token);
        ++zero_keys;
      }
      while (std::ssize(read) < options.encoder_tokens && strategy == ShortPromptStrategy::read_twice) {
        read.insert(read.begin(), read[prompts[i].size() - 1]);
      }
      const bool grows = strategy == ShortPromptStrategy::iterative;
      CHECK_MESSAGE(result.tokens[i] == problem.expected(read, options.encoder_tokens, zero_keys, 6, grows),
                    name_of(strategy), ", prompt ", i);
    }
  }
}

TEST_CASE("reading twice in pieces that continue is reading the whole prompt") {
  const Problem problem;
  const auto model = made(problem.config, problem.weights, exact);
  const std::vector<Request> requests{{random_tokens(20, 29, 1), random_tokens(3, 29, 2)}, {random_tokens(9, 29, 3), {}}};
  const Tokens separator{6, 7};
  for (const std::int64_t reads : {1, 2, 3}) {
    GenerationOptions options;
    options.new_tokens = 5;
    options.reads = reads;
    options.separator = separator;
    const Generation result = generate(*model, requests, options, {});
    std::int64_t tokens = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const jrt::RepeatedPrompt prompt{requests[i].context, requests[i].query, separator, reads};
      Tokens whole(static_cast<std::size_t>(jrt::repeated_prompt_tokens(prompt)));
      REQUIRE(jrt::write_repeated_prompt(prompt, whole).ok());
      tokens += std::ssize(whole);
      CHECK(result.tokens[i] == problem.expected(whole, 0, 0, 5));
    }
    CHECK(result.prompt_tokens == tokens);
    CHECK(result.decode_rounds == 4);
    CHECK(result.decoded_tokens == 8);
  }
  // With an encoder region it is in the first piece.
  GenerationOptions options;
  options.new_tokens = 3;
  options.reads = 2;
  options.encoder_tokens = 12;
  const Generation result = generate(*model, requests, options, {});
  Tokens whole = requests[0].context;
  whole.insert(whole.end(), requests[0].context.begin(), requests[0].context.end());
  whole.insert(whole.end(), requests[0].query.begin(), requests[0].query.end());
  CHECK(result.tokens[0] == problem.expected(whole, 12, 0, 3));
}

TEST_CASE("sequences end by themselves, and others go on as if nothing were") {
  const Problem problem;
  const auto model = made(problem.config, problem.weights, exact);
  const std::vector<Request> requests{{random_tokens(12, 29, 1)}, {random_tokens(30, 29, 2)}, {random_tokens(7, 29, 3)}};
  GenerationOptions options;
  options.new_tokens = 20;
  const auto all = generate(*model, requests, options, {}).tokens;
  for (std::int32_t stop = 0; stop < 29; ++stop) {
    options.stop_token = stop;
    const auto stopped = generate(*model, requests, options, {}).tokens;
    for (std::size_t i = 0; i < all.size(); ++i) {
      auto end = std::find(all[i].begin(), all[i].end(), stop);
      CHECK(stopped[i] == Tokens(all[i].begin(), end == all[i].end() ? end : end + 1));
    }
  }
}

TEST_CASE("draws: the same seed, the same tokens; a sequence's do not depend on the batch") {
  const Problem problem;
  const auto model = made(problem.config, problem.weights, exact);
  const std::vector<Request> requests{{random_tokens(12, 29, 1)}, {random_tokens(30, 29, 2)}};
  GenerationOptions options;
  options.new_tokens = 12;
  options.sampling = {.top_k = 0, .top_p = 0.9, .temperature = 1.5, .seed = 4};
  const auto first = generate(*model, requests, options, {}).tokens;
  CHECK(generate(*model, requests, options, {}).tokens == first);
  CHECK(generate(*model, std::span(requests).first(1), options, {}).tokens.front() == first.front());
  options.sampling.seed = 5;
  CHECK(generate(*model, requests, options, {}).tokens != first);
  options.sampling = {.top_k = 3, .top_p = 1e-9, .temperature = 2};  // a nucleus of one token
  GenerationOptions greedy;
  greedy.new_tokens = 12;
  CHECK(generate(*model, requests, options, {}).tokens == generate(*model, requests, greedy, {}).tokens);
}

TEST_CASE("a temperature of 0 is greedy") {
  const Problem problem;
  const auto model = made(problem.config, problem.weights, exact);
  const std::vector<Request> requests{{random_tokens(12, 29, 1)}, {random_tokens(30, 29, 2)}};
  GenerationOptions options;
  options.new_tokens = 12;
  const auto greedy = generate(*model, requests, options, {}).tokens;
  for (const std::uint64_t seed : {1, 2}) {
    options.sampling = {.top_k = 0, .top_p = 0.9, .temperature = 0, .seed = seed};
    CHECK(generate(*model, requests, options, {}).tokens == greedy);
  }
}

TEST_CASE("what would take hours by mistake is refused before it is begun") {
  const Problem problem;
  const auto model = made(problem.config, problem.weights, exact, 1);
  const std::vector<Request> three{{{1, 2, 3}}};
  const auto error = [&](const GenerationOptions& options) {
    try {
      static_cast<void>(generate(*model, three, options, {}));
    } catch (const std::invalid_argument& caught) {
      return std::string(caught.what());
    }
    return std::string();
  };
  GenerationOptions options;
  options.new_tokens = 1;
  options.encoder_tokens = max_padded_tokens + 1;
  for (const auto strategy : {ShortPromptStrategy::left_pad, ShortPromptStrategy::read_twice}) {
    options.short_prompt = strategy;
    CHECK(error(options) == "a prompt of 3 tokens is to be padded to 1048577 ('" + std::string(name_of(strategy)) +
                                "'), but padding reaches up to 1048576: all of it is read as text is");
  }
  // Without padding the region costs nothing, however long.
  options.encoder_tokens = std::int64_t{1} << 40;
  for (const auto strategy : {ShortPromptStrategy::shorten, ShortPromptStrategy::iterative}) {
    options.short_prompt = strategy;
    CHECK(error(options).empty());
  }
  options = {};
  options.reads = max_reads + 1;
  CHECK(error(options) ==
        "a context is shown 1025 times, but may be shown at most 1024 times: each time is a prefill of its own");
  options.reads = max_reads;
  options.new_tokens = 0;
  CHECK(error(options).empty());
  const std::int64_t read_before = model->tokens_read(0);
  options = {};
  options.new_tokens = std::int64_t{INT32_MAX} - 1;
  CHECK(error(options) ==
        "prompt 0 is read as 3 tokens and 2147483646 are to follow, but at most 2147483645 can: positions "
        "are counted in 32 bits");
  options.new_tokens = INT64_MAX;
  CHECK_FALSE(error(options).empty());
  CHECK(model->tokens_read(0) == read_before);
}

TEST_CASE("nothing to generate, and wrong arguments") {
  const Problem problem;
  const auto model = made(problem.config, problem.weights, exact, 1);
  const std::vector<Request> one{{random_tokens(12, 29, 1)}};
  GenerationOptions options;
  options.new_tokens = 0;
  const Generation result = generate(*model, one, options, {});
  CHECK(result.tokens == std::vector<Tokens>{{}});
  CHECK(model->tokens_read(0) == 12);
  const auto refused = [&](const std::vector<Request>& requests, const char* message) {
    CHECK_THROWS_WITH(generate(*model, requests, options, {}), message);
    CHECK(model->tokens_read(0) == 12);
  };
  refused({}, "there are 0 prompts, but must be from 1 to 1 (the model's slots)");
  refused({one[0], one[0]}, "there are 2 prompts, but must be from 1 to 1 (the model's slots)");
  refused({{{}}}, "RepeatedPrompt: 'context.size()' is 0, but must be at least 1.");
  options.reads = 0;
  refused(one, "RepeatedPrompt: 'repetitions' is 0, but must be at least 1.");
  options.reads = 2;
  options.encoder_tokens = 20;
  options.short_prompt = ShortPromptStrategy::read_twice;
  refused(one, "a context of 12 tokens is shown 2 times, but 'read-twice' for short prompts needs one that is shown once");
  options.reads = 1;
  options.new_tokens = -1;
  refused(one, "new tokens and encoder tokens are -1 and 20, but must be at least 0");
}

}  // namespace
}  // namespace jrt_lm::test
