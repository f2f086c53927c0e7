// SPDX-License-Identifier: Apache-2.0
// Staged steps, commits and speculation, on the CPU and (compiled once more) on a GPU: against formulas in double, steps of
// one token, and generation without speculation.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <jrt/state.hpp>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "jrt_lm/draft.hpp"
#include "jrt_lm/model_problem.hpp"
#include "jrt_lm/reference_model.hpp"

namespace jrt_lm::test {
namespace {

ModelConfig config_of(std::vector<MixerKind> layers) {
  ModelConfig config = small_config();
  config.hidden = 64;  // whole chunks: products of few rows, and one kernel for whole steps, on a GPU
  config.layers = std::move(layers);
  return config;
}

/// All mixers together, and each by itself.
std::vector<ModelConfig> configs() {
  using enum MixerKind;
  return {config_of(small_config().layers), config_of({linear, linear}), config_of({window, window}),
          config_of({convolution, convolution})};
}

/// Weights with which a token is likely to follow itself: what layers add to its embedding, which is also the table that
/// makes logits, is small.
class EchoWeights : public WeightSourceOf<EchoWeights> {
 public:
  explicit EchoWeights(const ModelConfig& config) : weights_(config) {}

  template <class T>
  void fill(const TensorSpec& tensor, T* to) const {
    const bool small = tensor.name.find("out_proj") != std::string::npos || tensor.name.find("fc2") != std::string::npos;
    for (const double number : *weights_.find(tensor.name)) {
      *to++ = jrt::convert<T>(small ? number / 64 : number);
    }
  }

 private:
  TestWeights weights_;
};

std::vector<Tokens> prompts_of(const ModelConfig& config) {
  return {random_tokens(3, config.vocabulary, 1), random_tokens(21, config.vocabulary, 2),
          random_tokens(50, config.vocabulary, 3)};
}

void read(LanguageModel& model, const std::vector<Tokens>& sequences, const Tokens& slots, std::int64_t encoder_tokens) {
  std::vector<Prompt> prompts;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    prompts.push_back({sequences[i], slots[i], std::min(std::ssize(sequences[i]), encoder_tokens)});
  }
  model.prefill(prompts, LogitsOf::last_tokens, {});
}

TEST_CASE("staged steps and commits of any number of tokens are those of the formulas") {
  for (const ModelConfig& config : configs()) {
    const TestWeights weights(config);
    const ReferenceModel reference(config, weights);
    for (const Precision& precision : precisions) {
      const auto model = made(config, weights, precision.type);
      const std::vector<Tokens> prompts = prompts_of(config);
      const Tokens places{2, 0, 3};
      const Tokens slots{2, 0, jrt::skip_slot, 3};
      read(*model, prompts, places, config.encoder_tokens);
      std::vector<Tokens> sequences = prompts;
      for (const int count : {4, 1, 8, 2, 16, 3}) {
        const Tokens next = random_tokens(4 * count, config.vocabulary, static_cast<unsigned>(100 + count));
        model->staged_step(next, slots);
        const std::vector<double> logits = model->logits();
        const Tokens likeliest = model->likeliest();
        Tokens accepted;
        for (std::size_t row = 0, i = 0; row < slots.size(); ++row) {
          accepted.push_back(static_cast<std::int32_t>((static_cast<int>(row) + count) % (count + 1)));
          if (slots[row] == jrt::skip_slot) {
            continue;
          }
          CHECK(model->tokens_read(slots[row]) == std::ssize(sequences[i]));
          const auto first = next.begin() + static_cast<std::ptrdiff_t>(row) * count;
          Tokens whole = sequences[i];
          for (int t = 0; t < count; ++t) {
            whole.push_back(first[t]);
            const auto at = row * static_cast<std::size_t>(count) + static_cast<std::size_t>(t);
            const auto own = logits_row(logits, at, config);
            const auto expected = reference.last_logits(whole, std::min(std::ssize(prompts[i]), config.encoder_tokens));
            CHECK(relative_error(own, expected) <= precision.bound);
            CHECK(likeliest[at] == std::max_element(own.begin(), own.begin() + config.vocabulary) - own.begin());
          }
          sequences[i].insert(sequences[i].end(), first, first + accepted.back());
          ++i;
        }
        model->commit(accepted);
      }
      for (std::size_t i = 0; i < places.size(); ++i) {
        CHECK(model->tokens_read(places[i]) == std::ssize(sequences[i]));
      }
      // A step of one token goes on from there.
      const Tokens one(4, 5);
      model->step(one, slots);
      const std::vector<double> logits = model->logits();
      for (std::size_t row = 0, i = 0; row < slots.size(); ++row) {
        if (slots[row] != jrt::skip_slot) {
          sequences[i].push_back(5);
          const auto expected =
              reference.last_logits(sequences[i], std::min(std::ssize(prompts[i]), config.encoder_tokens));
          CHECK(relative_error(logits_row(logits, row, config), expected) <= precision.bound);
          ++i;
        }
      }
    }
  }
}

TEST_CASE("a staged step leaves states as they were, and rejected tokens leave no trace, bit by bit") {
  for (const ModelConfig& config : configs()) {
    const TestWeights weights(config);
    for (const Precision& precision : precisions) {
      const auto model = made(config, weights, precision.type);
      read(*model, prompts_of(config), {0, 1, 2}, config.encoder_tokens);
      std::vector<std::vector<std::byte>> before;
      for (const std::int32_t slot : {0, 1, 2}) {
        before.push_back(model->save(slot));
      }
      const auto is_as_before = [&] {
        return model->save(0) == before[0] && model->save(1) == before[1] && model->save(2) == before[2];
      };
      const Tokens slots{0, 1, 2};
      const Tokens first = random_tokens(12, config.vocabulary, 20);
      model->staged_step(first, slots);
      const std::vector<double> logits = model->logits();
      CHECK(is_as_before());
      model->staged_step(first, slots);
      CHECK(model->logits() == logits);
      model->commit(Tokens{0, 0, 0});
      CHECK(is_as_before());
      // Other tokens behind those that are accepted: the same logits, the same states.
      std::vector<std::vector<std::byte>> after;
      for (const int change : {0, 1}) {
        Tokens tokens = first;
        for (const std::size_t rejected : {3U, 6U, 7U, 9U, 10U, 11U}) {
          tokens[rejected] = (tokens[rejected] + change) % static_cast<std::int32_t>(config.vocabulary);
        }
        model->staged_step(tokens, slots);
        const std::vector<double> others = model->logits();
        for (const std::size_t accepted : {0U, 1U, 2U, 4U, 5U, 8U}) {
          CHECK(logits_row(others, accepted, config) == logits_row(logits, accepted, config));
        }
        model->commit(Tokens{3, 2, 1});
        for (const std::int32_t slot : slots) {
          after.push_back(model->save(slot));
          model->load(before[static_cast<std::size_t>(slot)], slot);
        }
      }
      for (std::size_t i = 0; i < 3; ++i) {
        CHECK(after[i] == after[i + 3]);
        CHECK(after[i] != before[i]);
      }
    }
  }
}

TEST_CASE("where a product's rows do not know of one another, a staged step is several steps, bit by bit") {
  // A GPU's products of few rows; a CPU's sums depend on how many rows there are. Windows add in another order.
  using enum MixerKind;
  for (const std::vector<MixerKind>& layers : {std::vector{linear, convolution, linear}, std::vector{convolution}}) {
    const ModelConfig config = config_of(layers);
    const TestWeights weights(config);
    for (const Precision& precision : precisions) {
      const bool any_number = device == DeviceKind::cuda && precision.type == NumberType::bfloat16;
      const auto staged = made(config, weights, precision.type, 2, 1 << 18, true);
      const auto stepped = made(config, weights, precision.type, 2, 1 << 18, true);
      read(*staged, {random_tokens(30, 29, 4)}, {1}, config.encoder_tokens);
      read(*stepped, {random_tokens(30, 29, 4)}, {1}, config.encoder_tokens);
      for (const std::int64_t count :
           any_number ? std::vector<std::int64_t>{4, 1, 8, 16, 3} : std::vector<std::int64_t>{1}) {
        const Tokens next = random_tokens(count, config.vocabulary, static_cast<unsigned>(count));
        staged->staged_step(next, Tokens{1});
        const std::vector<double> logits = staged->logits();
        const auto accepted = static_cast<std::int32_t>((count + 1) / 2);
        staged->commit(Tokens{accepted});
        for (std::int32_t t = 0; t < accepted; ++t) {
          const auto expected = step_one(*stepped, next[static_cast<std::size_t>(t)], 1);
          CHECK(logits_row(logits, static_cast<std::size_t>(t), config) == expected);
        }
        CHECK(staged->save(1) == stepped->save(1));
      }
    }
  }
}

/// Staged steps and commits of several models side by side, fed with the same.
class SideBySide {
 public:
  explicit SideBySide(std::vector<LanguageModel*> models) : models_(std::move(models)) {}

  /// Logits of each model, of a step of `count` random tokens for each slot, `accepted` of which are committed.
  std::vector<std::vector<double>> step(const Tokens& slots, std::int64_t count, const Tokens& accepted) {
    const Tokens next = random_tokens(std::ssize(slots) * count, models_.front()->config().vocabulary, ++steps_);
    std::vector<std::vector<double>> logits;
    for (LanguageModel* const model : models_) {
      model->staged_step(next, slots);
      logits.push_back(model->logits());
      model->commit(accepted);
    }
    return logits;
  }

  /// The seed of the last step's tokens.
  [[nodiscard]] unsigned steps() const { return steps_; }

 private:
  std::vector<LanguageModel*> models_;
  unsigned steps_ = 0;
};

/// Whether a model has one kernel for a step of few rows, if the GPU is one for which there is such a kernel.
bool may_have_one_kernel(const Precision& precision) {
  return device == DeviceKind::cuda && precision.type == NumberType::bfloat16;
}

TEST_CASE("staged steps in one kernel are those of separate kernels but for rounding, whatever is in the batch beside") {
  for (const bool rotates : {true, false}) {
    ModelConfig config = config_of(small_config().layers);
    config.layers.insert(config.layers.end(), {MixerKind::window, MixerKind::linear});
    config.rotates = rotates;
    config.window_kv_heads = rotates ? 2 : 4;
    config.mlp_input_bias = config.convolution_bias = rotates;
    const TestWeights weights(config);
    for (const Precision& precision : precisions) {
      constexpr std::int64_t slots = 18;
      const auto whole = made(config, weights, precision.type, slots);
      const auto separate = made(config, weights, precision.type, slots, 1 << 18, true);
      std::vector<Tokens> prompts;
      Tokens all;
      for (std::int32_t i = 0; i < 16; ++i) {
        prompts.push_back(random_tokens(1 + 3 * i, config.vocabulary, static_cast<unsigned>(i)));
        all.push_back(i);
      }
      for (LanguageModel* const model : {whole.get(), separate.get()}) {
        read(*model, prompts, all, config.encoder_tokens);
      }
      SideBySide both({whole.get(), separate.get()});
      // As many sequences and tokens of each as fit in a step of the kernel; the ring of a window has 5 rows.
      struct Size {
        std::int32_t sequences;
        std::int32_t tokens;
      };
      for (const Size size : {Size{1, 2}, Size{1, 16}, Size{16, 1}, Size{2, 8}, Size{1, 4}, Size{3, 5}, Size{5, 3},
                              Size{1, 1}, Size{4, 4}, Size{1, 7}, Size{2, 4}, Size{1, 9}, Size{8, 2}}) {
        CAPTURE(size.sequences);
        CAPTURE(size.tokens);
        Tokens places;
        Tokens accepted;
        for (std::int32_t i = 0; i < size.sequences; ++i) {
          places.push_back(size.sequences > 2 && i == 1 ? jrt::skip_slot : i * 7 % 16);
          accepted.push_back((size.tokens + i) % (size.tokens + 1));
        }
        // The last sequence once more, by itself.
        const std::int32_t last = places.back();
        whole->fork(last, 17);
        const auto logits = both.step(places, size.tokens, accepted);
        if (may_have_one_kernel(precision)) {
          WARN(whole->stepped_in_one_kernel());
        }
        CHECK_FALSE(separate->stepped_in_one_kernel());
        for (std::size_t row = 0; row < places.size() * static_cast<std::size_t>(size.tokens); ++row) {
          if (places[row / static_cast<std::size_t>(size.tokens)] != jrt::skip_slot) {
            CHECK(relative_error(logits_row(logits[0], row, config), logits_row(logits[1], row, config)) <=
                  precision.bound);
          }
        }
        if (whole->stepped_in_one_kernel()) {
          const Tokens next = random_tokens(std::ssize(places) * size.tokens, config.vocabulary, both.steps());
          whole->staged_step(Tokens(next.end() - size.tokens, next.end()), Tokens{17});
          const auto alone = whole->logits();
          for (std::size_t t = 0; t < static_cast<std::size_t>(size.tokens); ++t) {
            const std::size_t row = (places.size() - 1) * static_cast<std::size_t>(size.tokens) + t;
            CHECK(logits_row(alone, t, config) == logits_row(logits[0], row, config));
          }
          whole->commit(Tokens{accepted.back()});
          CHECK(whole->save(17) == whole->save(last));
        }
      }
      // More rows than it takes.
      whole->staged_step(random_tokens(18, config.vocabulary, 1), Tokens{0, 1, 2});
      CHECK_FALSE(whole->stepped_in_one_kernel());
    }
  }
}

TEST_CASE("in the published layouts staged steps in one kernel differ from others by rounding alone") {
  each_short_published(4, [](const ShortPublished& models) {
    const ModelConfig& config = models.config;
    std::vector<Tokens> prompts;
    for (const int count : {1, 70, 120, 300}) {  // rings that are not full, will be, and have been
      prompts.push_back(random_tokens(count, config.vocabulary, static_cast<unsigned>(count)));
    }
    for (LanguageModel* const model : models.all()) {
      read(*model, prompts, {0, 1, 2, 3}, 40);
    }
    SideBySide all(models.all());
    for (const std::int32_t count : {4, 2, 3, 4}) {
      const auto logits = all.step({0, 1, 2, 3}, count, {count, count - 1, 1, count});
      WARN(models.whole->stepped_in_one_kernel());
      const double rounding = relative_error(logits[2], logits[0]);
      CHECK(relative_error(logits[1], logits[0]) <= 1.5 * rounding);
      CHECK(relative_error(logits[1], logits[2]) <= 2 * rounding);
    }
    for (const std::int32_t slot : {3, 0, 2}) {
      for (const std::int32_t count : {8, 16, 5, 13, 16, 16}) {
        const auto logits = all.step({slot}, count, {count - count / 3});
        WARN(models.whole->stepped_in_one_kernel());
        const double rounding = relative_error(logits[2], logits[0]);
        CHECK(relative_error(logits[1], logits[0]) <= 1.5 * rounding);
        CHECK(relative_error(logits[1], logits[2]) <= 2 * rounding);
      }
    }
    // One token after another, by the same kernel.
    const RandomWeights weights;
    const auto stepped = made(config, weights, NumberType::bfloat16);
    const Tokens next = random_tokens(16, config.vocabulary, 99);
    for (LanguageModel* const model : {models.exact.get(), stepped.get()}) {
      read(*model, prompts, {0, 1, 2, 3}, 40);
    }
    models.exact->staged_step(next, Tokens{3});
    const auto expected = models.exact->logits();
    stepped->staged_step(next, Tokens{3});
    const auto staged = stepped->logits();
    for (std::size_t t = 0; t < next.size(); ++t) {
      const auto one = step_one(*stepped, next[t], 3);
      const auto row = logits_row(expected, t, config);
      const double rounding = relative_error(one, row);
      CHECK(relative_error(logits_row(staged, t, config), row) <= 2 * rounding);
    }
  });
}

TEST_CASE("in the published layouts a staged step is bit by bit the same, however often it is made") {
  // Blocks and warps wait for one another's numbers in other orders each time.
  if (device != DeviceKind::cuda) {
    return;
  }
  using enum MixerKind;
  for (const std::vector<MixerKind>& layers : {std::vector{convolution, convolution}, {linear, window}}) {
    ModelConfig config = ModelConfig::published("360m");
    config.layers = layers;
    config.vocabulary = config.vocabulary_rows = 1000;
    const RandomWeights weights;
    const auto model = made_if_compiled(config, weights, NumberType::bfloat16, 16);
    if (model == nullptr) {
      continue;
    }
    std::vector<Tokens> prompts;
    Tokens slots;
    for (std::int32_t i = 0; i < 16; ++i) {
      prompts.push_back(random_tokens(150 + i, config.vocabulary, static_cast<unsigned>(i)));
      slots.push_back(i);
    }
    read(*model, prompts, slots, 0);
    for (const std::size_t sequences : {1U, 4U, 16U}) {
      const Tokens of_slots(slots.begin(), slots.begin() + static_cast<std::ptrdiff_t>(sequences));
      const Tokens tokens = random_tokens(16, config.vocabulary, 7);
      model->staged_step(tokens, of_slots);
      const auto logits = model->logits();
      int others = 0;
      for (int n = 0; n < 200; ++n) {
        model->staged_step(tokens, of_slots);
        others += model->logits() == logits ? 0 : 1;
      }
      CHECK(others == 0);
    }
  }
}

TEST_CASE("the device accepts what the host would") {
  const ModelConfig config = config_of(small_config().layers);
  const TestWeights weights(config);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    const auto other = made(config, weights, precision.type);
    const Tokens slots{0, jrt::skip_slot, 1, 2};
    read(*model, prompts_of(config), {0, 1, 2}, config.encoder_tokens);
    read(*other, prompts_of(config), {0, 1, 2}, config.encoder_tokens);
    for (int round = 0; round < 8; ++round) {
      Tokens tokens = random_tokens(16, config.vocabulary, static_cast<unsigned>(round));
      for (int guess = 1; guess < 4; ++guess) {  // guesses, some of them right
        other->staged_step(tokens, slots);
        const Tokens likeliest = other->likeliest();
        for (std::size_t row = 0; row < 4; ++row) {
          if ((static_cast<int>(row) + round) % 4 >= guess) {
            const std::size_t at = row * 4 + static_cast<std::size_t>(guess);
            tokens[at] = likeliest[at - 1];
          }
        }
      }
      other->staged_step(tokens, slots);
      const Tokens likeliest = other->likeliest();
      Tokens accepted;
      for (std::size_t row = 0; row < 4; ++row) {
        const auto of_row = [&](const Tokens& all) { return std::span(all).subspan(row * 4, 4); };
        accepted.push_back(static_cast<std::int32_t>(accepted_tokens(of_row(tokens), of_row(likeliest))));
      }
      CHECK(*std::max_element(accepted.begin(), accepted.end()) > 1);
      other->commit(accepted);
      CHECK(model->speculative_step(tokens, slots) == likeliest);
      for (const std::int32_t slot : {0, 1, 2}) {
        CHECK(model->tokens_read(slot) == other->tokens_read(slot));
        CHECK(model->save(slot) == other->save(slot));
      }
    }
  }
}

/// Prompts that repeat themselves, and one that does not.
std::vector<Request> repetitive_requests() {
  std::vector<Request> requests;
  const Tokens phrase = random_tokens(7, 29, 5);
  Tokens repeated;
  for (int i = 0; i < 6; ++i) {
    repeated.insert(repeated.end(), phrase.begin(), phrase.end());
  }
  requests.push_back({repeated});
  requests.push_back({{1, 2, 3}});
  requests.push_back({{4, 4, 4, 9, 4, 4, 4}});
  return requests;
}

/// Without speculation and with it, on the same kernels.
void check_same_tokens(LanguageModel& model, const std::vector<Request>& requests, GenerationOptions options,
                       bool guesses_right) {
  const Generation plain = generate(model, requests, options, {});
  CHECK(plain.drafted_tokens == 0);
  for (const std::int64_t count : {2, 4, 7, 16}) {
    CAPTURE(count);
    options.speculate = count;
    const Generation speculative = generate(model, requests, options, {});
    CHECK(speculative.tokens == plain.tokens);
    CHECK(speculative.decoded_tokens == plain.decoded_tokens);
    CHECK(speculative.drafted_tokens > 0);
    CHECK(speculative.accepted_tokens <= speculative.drafted_tokens);
    if (guesses_right) {
      CHECK(speculative.accepted_tokens > 0);
      CHECK(speculative.decode_rounds < plain.decode_rounds);
    }
  }
}

TEST_CASE("tokens are the same with speculation and without, and repetition makes them fewer steps") {
  const std::vector<Request> requests = repetitive_requests();
  for (const ModelConfig& config : configs()) {
    GenerationOptions options;
    options.encoder_tokens = config.encoder_tokens;
    for (const Precision& precision : precisions) {
      CAPTURE(name_of(precision.type));
      // Separate kernels, so that on a GPU steps of one token are the same kernels. Random weights leave no ties.
      options.new_tokens = 40;
      const TestWeights weights(config);
      if (precision.type != NumberType::bfloat16) {  // there rounding decides between tokens that are almost as likely
        check_same_tokens(*made(config, weights, precision.type, 4, 1 << 18, true), requests, options, false);
      }
      const EchoWeights echo(config);
      check_same_tokens(*made(config, echo, precision.type, 4, 1 << 18, true), requests, options, true);
      check_same_tokens(*made(config, echo, precision.type), requests, options, true);  // in one kernel, where there is one
      options.new_tokens = 1;
      options.speculate = 4;
      const auto model = made(config, echo, precision.type);
      CHECK(generate(*model, requests, options, {}).tokens.front().size() == 1);
      options.new_tokens = 0;
      CHECK(generate(*model, requests, options, {}).tokens.front().empty());
      options.speculate = 0;
    }
  }
}

TEST_CASE("speculation with stop tokens, contexts that are read twice, and regions that grow with the answer") {
  const ModelConfig config = config_of(small_config().layers);
  const NumberType exact = precisions.front().type;
  const TestWeights random(config);
  const EchoWeights echo(config);
  for (const WeightSource* weights : {static_cast<const WeightSource*>(&random), static_cast<const WeightSource*>(&echo)}) {
    const bool repeats = weights == &echo;
    const auto model = made(config, *weights, exact, 4, 1 << 18, true);
    GenerationOptions options;
    options.new_tokens = 24;
    options.encoder_tokens = config.encoder_tokens;
    for (std::int32_t stop = 0; stop < 29; ++stop) {
      options.stop_token = stop;
      options.speculate = 0;
      const auto plain = generate(*model, repetitive_requests(), options, {});
      options.speculate = 5;
      const auto speculative = generate(*model, repetitive_requests(), options, {});
      CHECK(speculative.tokens == plain.tokens);
      CHECK(speculative.decoded_tokens == plain.decoded_tokens);
    }
    options.stop_token.reset();
    options.speculate = 0;
    for (const ShortPromptStrategy strategy :
         {ShortPromptStrategy::left_pad, ShortPromptStrategy::read_twice, ShortPromptStrategy::iterative}) {
      options.short_prompt = strategy;
      options.pad_token = 6;
      check_same_tokens(*model, repetitive_requests(), options, repeats);
    }
    options.short_prompt = ShortPromptStrategy::shorten;
    options.reads = 2;
    options.separator = {7};
    std::vector<Request> requests = repetitive_requests();
    for (Request& request : requests) {
      request.query = {3, 1};
    }
    check_same_tokens(*model, requests, options, repeats);
  }
}

TEST_CASE("what is not finite is told as without speculation") {
  const ModelConfig config = config_of(small_config().layers);
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Request> requests{{{1, 2, 3, 1, 2}}, {{7, 8, 9, 7, 8, 9}}};
  const auto message = [&](LanguageModel& model, std::int64_t speculate) -> std::string {
    GenerationOptions options;
    options.new_tokens = 60;
    options.speculate = speculate;
    try {
      static_cast<void>(generate(model, requests, options, {}));
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  const SpoiltWeights at_once(config, "transformer.ln_f.weight", 3, 1, nan);
  for (const Precision& precision : precisions) {
    const auto model = made(config, at_once, precision.type);
    CHECK(message(*model, 4) == message(*model, 0));
    CHECK(message(*model, 4).find("sequence 0, step 0") == 0);
  }
  // A state that is not finite in the middle of a sequence: the step that meets it, and no commit before, says so.
  const EchoWeights weights(config);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    read(*model, {{1, 2, 3}, {4, 5, 6}}, {0, 1}, 0);
    std::vector<std::byte> saved = model->save(1);
    const std::size_t size = precision.type == NumberType::float64 ? 8 : precision.type == NumberType::float32 ? 4 : 2;
    std::fill_n(saved.end() - static_cast<std::ptrdiff_t>(size), size, std::byte{0xff});  // NaN in all types
    model->load(saved, 1);
    const Tokens likeliest = model->speculative_step(Tokens{4, 4, 4, 4, 4, 4}, Tokens{0, 1});
    CHECK(*std::min_element(likeliest.begin(), likeliest.begin() + 3) != no_token);
    CHECK(likeliest[3] == no_token);
    CHECK(model->tokens_read(1) == 4);  // no guess is accepted after it
    CHECK(model->first_not_finite(4, 1) == static_cast<std::int64_t>(config.layers.size()));
  }
}

template <class Function>
std::string refused(const Function& function) {
  try {
    function();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("wrong arguments are refused with both values, and change nothing") {
  const ModelConfig config = config_of(small_config().layers);
  const EchoWeights weights(config);
  const auto model = made(config, weights, precisions.front().type);
  read(*model, {{1, 2, 3}, {4, 5}}, {0, 1}, 0);
  const auto before = model->save(0);
  CHECK(refused([&] { model->commit(Tokens{1}); }) == "there is nothing to commit: the last call was no staged step");
  CHECK(refused([&] {
          model->staged_step(Tokens{1, 2, 3}, Tokens{0, 1});
        }).find("a staged step has 3 tokens for 2 slots") == 0);
  CHECK(refused([&] { model->staged_step(Tokens{}, Tokens{}); }).find("a staged step has 0 tokens for 0 slots") == 0);
  CHECK(refused([&] { model->staged_step(Tokens(17, 1), Tokens{0}); }).find("a staged step has 17 tokens for 1") == 0);
  CHECK(refused([&] { model->staged_step(Tokens{1, 99}, Tokens{0}); }).find("row 1 of a staged step is token 99") == 0);
  CHECK(refused([&] { model->staged_step(Tokens{1, 2}, Tokens{9}); }).find("9") != std::string::npos);
  CHECK(refused([&] { model->staged_step(Tokens{1, 2}, Tokens{0, 0}); }) == "two sequences of a call have slot 0");
  model->staged_step(Tokens{1, 2}, Tokens{0});
  CHECK(refused([&] { model->commit(Tokens{1, 1}); }).find("a commit has 2 numbers of tokens") == 0);
  model->staged_step(Tokens{1, 2}, Tokens{0});
  CHECK(refused([&] { model->commit(Tokens{3}); }).find("a commit takes 3 tokens") == 0);
  model->staged_step(Tokens{1, 2}, Tokens{0});
  model->step(Tokens{1}, Tokens{1});
  CHECK(refused([&] { model->commit(Tokens{1}); }).find("there is nothing to commit") == 0);
  CHECK(model->save(0) == before);
  CHECK(model->tokens_read(0) == 3);

  GenerationOptions options;
  const auto generation = [&] {
    return refused([&] { static_cast<void>(generate(*model, std::vector<Request>{{{1, 2}}}, options, {})); });
  };
  options.speculate = 1;
  CHECK(generation().find("a speculative step takes 1 tokens, but must take from 2 to 16") == 0);
  options.speculate = 17;
  CHECK(generation().find("a speculative step takes 17 tokens") == 0);
  options.speculate = 4;
  options.sampling.top_k = 5;
  CHECK(generation().find("a speculative step takes 4 tokens and keeps the likeliest, but tokens are drawn") == 0);
  options.sampling.temperature = 0;
  CHECK(generation().empty());
}

}  // namespace
}  // namespace jrt_lm::test
