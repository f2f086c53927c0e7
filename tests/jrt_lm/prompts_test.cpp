// SPDX-License-Identifier: Apache-2.0
// Prompts of few and many tokens, in the different ways of reading them, against formulas in double and against one
// another, on the CPU and (compiled once more) on a GPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <set>
#include <vector>

#include "jrt_lm/model_problem.hpp"
#include "jrt_lm/reference_model.hpp"
#include "jrt_lm/weights.hpp"

namespace jrt_lm::test {
namespace {

TEST_CASE("one short prompt after the other: as it comes, captured, replayed, with more rows than tokens") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const ReferenceModel reference(config, weights);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    unsigned seed = 0;
    // 16 rows, then 48, with no, few and many encoder tokens; each shape is met several times. Between them all else that
    // could move memory: a batch, and logits of all tokens.
    const auto read = [&](std::int64_t count, std::int64_t prefix) {
      const Tokens tokens = random_tokens(count, config.vocabulary, ++seed);
      const auto slot = static_cast<std::int32_t>(seed % 4);
      const auto logits = prefill_last(*model, tokens, slot, prefix);
      CHECK(relative_error(logits, reference.last_logits(tokens, prefix, 0)) <= precision.bound);
      CHECK(model->tokens_read(slot) == count);
      // The state, too: a token more, read as a prompt of its own and as a step.
      Tokens longer = tokens;
      longer.push_back(3);
      const auto expected = reference.last_logits(longer, prefix, 0);
      model->fork(slot, (slot + 1) % 4);
      CHECK(relative_error(prefill_last(*model, {3}, (slot + 1) % 4, 0, true), expected) <= precision.bound);
      CHECK(relative_error(step_one(*model, 3, slot), expected) <= precision.bound);
    };
    for (int again = 0; again < 3; ++again) {
      for (const std::int64_t count : {1, 7, 16, 33, 40, 48}) {
        for (const std::int64_t prefix : {std::int64_t{0}, count / 3, count}) {
          read(count, prefix);
        }
      }
      std::vector<Tokens> tokens{random_tokens(300, config.vocabulary, 7), random_tokens(9, config.vocabulary, 8)};
      const std::vector<Prompt> prompts{{tokens[0], 0, 100}, {tokens[1], 1, 9}};
      model->prefill(prompts, LogitsOf::all_tokens, {});
    }
  }
}

TEST_CASE("prompts of few tokens are those of separate kernels, however long their encoder regions") {
  for (const bool causal : {false, true}) {
    ModelConfig config = small_config();
    config.hidden = 64;  // whole chunks, as the kernel wants them
    config.layers.insert(config.layers.end(), {MixerKind::window, MixerKind::linear});
    config.has_encoder = !causal;
    config.encoder_tokens = causal ? 0 : 24;
    config.rotates = causal;
    config.window_kv_heads = causal ? 4 : 2;
    const TestWeights weights(config);
    const ReferenceModel reference(config, weights);
    for (const Precision& precision : precisions) {
      const auto whole = made(config, weights, precision.type);
      const auto separate = made(config, weights, precision.type, 4, 1 << 18, true);
      // A slot in which something has been, of which a sequence that starts there sees nothing.
      for (LanguageModel* const model : {whole.get(), separate.get()}) {
        static_cast<void>(prefill_last(*model, random_tokens(40, config.vocabulary, 3), 1, 0));
      }
      for (std::int64_t count = 1; count <= 17; ++count) {
        for (const std::int64_t prefix : std::set<std::int64_t>{0, 1, count / 2, count}) {
          if (causal && prefix > 0) {
            continue;
          }
          CAPTURE(count);
          CAPTURE(prefix);
          Tokens tokens = random_tokens(count, config.vocabulary, static_cast<unsigned>(count));
          const auto own = prefill_last(*whole, tokens, 1, prefix);
          CHECK(whole->likeliest().size() == 1);
          CHECK(relative_error(own, prefill_last(*separate, tokens, 1, prefix)) <= precision.bound);
          CHECK(relative_error(own, reference.last_logits(tokens, prefix)) <= precision.bound);
          // The same again, bit by bit; then it goes on: a token, and a few.
          CHECK(prefill_last(*whole, tokens, 1, prefix) == own);
          const std::int32_t next = static_cast<std::int32_t>(count % config.vocabulary);
          tokens.push_back(next);
          CHECK(relative_error(step_one(*whole, next, 1), reference.last_logits(tokens, prefix)) <= precision.bound);
          const Tokens more = random_tokens(1 + (count * 5 + prefix) % 16, config.vocabulary, 4);
          tokens.insert(tokens.end(), more.begin(), more.end());
          CHECK(relative_error(prefill_last(*whole, more, 1, 0, true), reference.last_logits(tokens, prefix)) <=
                precision.bound);
          CHECK(whole->tokens_read(1) == std::ssize(tokens));
          tokens.push_back(next);
          CHECK(relative_error(step_one(*whole, next, 1), reference.last_logits(tokens, prefix)) <= precision.bound);
        }
      }
    }
  }
}

TEST_CASE("in the published layouts prompts of few tokens differ from those of separate kernels by rounding alone") {
  each_short_published(4, [](const ShortPublished& models) {
    for (const int count : {16, 3, 8, 9, 1}) {
      for (const bool continues : {false, true, true}) {
        const Tokens tokens = random_tokens(count, models.config.vocabulary, static_cast<unsigned>(count));
        const std::int64_t prefix = continues || !models.config.has_encoder ? 0 : (count + 1) / 2;
        const auto expected = prefill_last(*models.exact, tokens, 1, prefix, continues);
        const auto own = prefill_last(*models.whole, tokens, 1, prefix, continues);
        const double rounding = relative_error(prefill_last(*models.separate, tokens, 1, prefix, continues), expected);
        CHECK(relative_error(own, expected) <= 2 * rounding);
      }
    }
  });
}

TEST_CASE("prompts of hundreds of tokens, alone and together, whole and continued") {
  // On Hopper GPUs products of so many rows are tiled: convolutions go over their tiles and from a state.
  ModelConfig config = small_config();
  const RandomWeights weights;
  const auto exact = made(config, weights, NumberType::float32);
  for (const Precision& precision : precisions) {
    CAPTURE(name_of(precision.type));
    const double bound = std::max(precision.bound, 2e-5);  // the other's
    const auto model = made(config, weights, precision.type);
    const auto compare = [&](const std::vector<Prompt>& prompts, LogitsOf rows) {
      model->prefill(prompts, rows, {});
      exact->prefill(prompts, rows, {});
      CHECK(relative_error(model->logits(), exact->logits()) <= bound);
    };
    const Tokens first = random_tokens(700, config.vocabulary, 1);
    const Tokens second = random_tokens(257, config.vocabulary, 2);
    for (const LogitsOf rows : {LogitsOf::last_tokens, LogitsOf::all_tokens}) {
      compare({{first, 0, 300}}, rows);
      compare({{second, 1, 257}, {first, 2, 0}}, rows);
      Prompt more{second, 0, 0};
      more.continues = true;
      compare({more}, rows);
      for (int step = 0; step < 3; ++step) {
        const Tokens next = random_tokens(3, config.vocabulary, 30 + static_cast<unsigned>(step));
        for (LanguageModel* const its : {model.get(), exact.get()}) {
          its->step(next, Tokens{0, 1, 2});
        }
        CHECK(relative_error(model->logits(), exact->logits()) <= bound);
      }
    }
  }
}

TEST_CASE("a prompt in pieces is the prompt as a whole") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    const Tokens tokens = random_tokens(90, config.vocabulary, 5);
    const auto whole = prefill_last(*model, tokens, 0, 20);
    std::vector<double> pieces;
    std::ptrdiff_t first = 0;
    for (const std::ptrdiff_t count : {30, 1, 2, 57}) {
      const Tokens piece(tokens.begin() + first, tokens.begin() + first + count);
      pieces = prefill_last(*model, piece, 1, first == 0 ? 20 : 0, first > 0);
      first += count;
    }
    CHECK(model->tokens_read(1) == 90);
    CHECK(relative_error(pieces, whole) <= precision.bound);
    CHECK(relative_error(step_one(*model, 3, 1), step_one(*model, 3, 0)) <= precision.bound);
  }
}

}  // namespace
}  // namespace jrt_lm::test
