// SPDX-License-Identifier: Apache-2.0
// Whole models against the authors' own outputs and against formulas in double, on the CPU and (compiled once more) on a
// GPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <jrt/state.hpp>
#include <jrt/state_exchange.hpp>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "jrt_lm/model_problem.hpp"
#include "jrt_lm/reference_model.hpp"
#include "jrt_lm/weights.hpp"
#include "support/safetensors.hpp"

namespace jrt_lm::test {
namespace {

/// The authors' tiny model and what it gave them.
struct Golden {
  Checkpoint checkpoint{data_folder() + "/jrt_tiny"};
  ModelConfig config = ModelConfig::from_file(data_folder() + "/jrt_tiny/config.json");
  support::SafeTensors file{data_folder() + "/jrt_tiny_logits.safetensors"};
  std::vector<Tokens> prompts;
  std::vector<Tokens> greedy;  // without the prompt

  Golden() {
    const auto ids = file.tensor("input_ids").as<std::int64_t>();
    const auto all = file.tensor("greedy").as<std::int64_t>();
    const auto sequences = file.tensor("input_ids").shape.at(0);
    const auto prompt = file.tensor("input_ids").shape.at(1);
    const auto total = file.tensor("greedy").shape.at(1);
    for (std::int64_t b = 0; b < sequences; ++b) {
      prompts.emplace_back(ids.begin() + b * prompt, ids.begin() + (b + 1) * prompt);
      greedy.emplace_back(all.begin() + b * total + prompt, all.begin() + (b + 1) * total);
    }
  }
  [[nodiscard]] std::vector<Request> requests() const {
    std::vector<Request> requests;
    for (const Tokens& prompt : prompts) {
      requests.push_back({prompt});
    }
    return requests;
  }
};

TEST_CASE("the authors' tiny model: logits at every position") {
  const Golden golden;
  for (const Precision& precision : precisions) {
    const auto model = made(golden.config, CheckpointWeights(golden.checkpoint), precision.type);
    std::vector<Prompt> prompts;
    for (std::size_t b = 0; b < golden.prompts.size(); ++b) {
      prompts.push_back({golden.prompts[b], static_cast<std::int32_t>(b), golden.config.encoder_tokens});
    }
    model->prefill(prompts, LogitsOf::all_tokens, {});
    const double error = relative_error(model->logits(), golden.file.tensor("logits").as<double>());
    MESSAGE(name_of(precision.type), ": relative error of the logits ", error);
    CHECK(error <= precision.bound);
  }
}

TEST_CASE("the authors' tiny model: twelve greedy tokens") {
  const Golden golden;
  for (const Precision& precision : precisions) {
    if (precision.type == NumberType::bfloat16) {
      continue;  // rounding decides between tokens that are almost as likely
    }
    const auto model = made(golden.config, CheckpointWeights(golden.checkpoint), precision.type);
    GenerationOptions options;
    options.new_tokens = std::ssize(golden.greedy.front());
    options.encoder_tokens = golden.config.encoder_tokens;
    CHECK(generate(*model, golden.requests(), options, {}).tokens == golden.greedy);
    // A stop token that never comes: step by step instead of all at once. And each prompt by itself.
    options.stop_token = static_cast<std::int32_t>(golden.config.vocabulary);
    CHECK(generate(*model, golden.requests(), options, {}).tokens == golden.greedy);
    for (std::size_t b = 0; b < golden.prompts.size(); ++b) {
      CHECK(generate(*model, std::vector<Request>{{golden.prompts[b]}}, options, {}).tokens.front() == golden.greedy[b]);
    }
  }
}

TEST_CASE("the authors' tiny model: greedy tokens of bfloat16 weights are as likely as the authors', but for rounding") {
  const Golden golden;
  const Precision& narrow = precisions.back();
  REQUIRE(narrow.type == NumberType::bfloat16);
  const CheckpointWeights weights(golden.checkpoint);
  GenerationOptions options;
  options.new_tokens = std::ssize(golden.greedy.front());
  options.encoder_tokens = golden.config.encoder_tokens;
  const auto generated = generate(*made(golden.config, weights, narrow.type), golden.requests(), options, {}).tokens;
  const auto exact = made(golden.config, weights, precisions.front().type);
  std::size_t as_the_authors = 0;
  for (std::size_t b = 0; b < generated.size(); ++b) {
    REQUIRE(std::ssize(generated[b]) == options.new_tokens);
    Tokens tokens = golden.prompts[b];
    tokens.insert(tokens.end(), generated[b].begin(), generated[b].end());
    exact->prefill(std::vector<Prompt>{{tokens, 0, golden.config.encoder_tokens}}, LogitsOf::all_tokens, {});
    const std::vector<double> logits = exact->logits();
    for (std::size_t i = 0; i < generated[b].size(); ++i) {
      const std::vector<double> row = logits_row(logits, golden.prompts[b].size() + i - 1, golden.config);
      double squares = 0;
      for (const double logit : row) {
        squares += logit * logit;
      }
      // Each of two logits is off by a few times their mean error.
      const double rounding = 8 * narrow.bound * std::sqrt(squares / static_cast<double>(row.size()));
      const double best = *std::max_element(row.begin(), row.begin() + golden.config.vocabulary);
      CHECK(row[static_cast<std::size_t>(generated[b][i])] >= best - rounding);
    }
    as_the_authors += generated[b] == golden.greedy[b] ? 1 : 0;
  }
  MESSAGE(as_the_authors, " of ", generated.size(), " sequences are the authors' to the last token");
}

TEST_CASE("logits are those of the formulas, for any prefix and padding") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const ReferenceModel reference(config, weights);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type, 6);
    std::vector<Tokens> tokens;
    std::vector<Prompt> prompts;
    struct Case {
      std::int64_t tokens, prefix, zero_keys;
    };
    // Neighbours whose encoder regions touch and do not touch.
    const std::vector<Case> cases{{1, 1, 0}, {40, 17, 0}, {24, 24, 0}, {9, 9, 4}, {70, 0, 0}, {33, 20, 33}};
    for (std::size_t i = 0; i < cases.size(); ++i) {
      tokens.push_back(random_tokens(cases[i].tokens, config.vocabulary, static_cast<unsigned>(i)));
    }
    std::vector<double> expected;
    for (std::size_t i = 0; i < cases.size(); ++i) {
      prompts.push_back({tokens[i], static_cast<std::int32_t>(i), cases[i].prefix, cases[i].zero_keys});
      const auto rows = reference.logits(tokens[i], cases[i].prefix, cases[i].zero_keys);
      expected.insert(expected.end(), rows.begin(), rows.end());
    }
    model->prefill(prompts, LogitsOf::all_tokens, {});
    CHECK(relative_error(model->logits(), expected) <= precision.bound);
    // The same in groups of prompts, and only the last rows.
    const auto grouped = made(config, weights, precision.type, 6, 50);
    double progress = 0;
    grouped->prefill(prompts, LogitsOf::last_tokens, [&](double done) {
      CHECK(done > progress);
      progress = done;
    });
    CHECK(progress == doctest::Approx(1));
    const auto last = grouped->logits();
    std::size_t row = 0;
    for (std::size_t i = 0; i < cases.size(); ++i) {
      row += tokens[i].size();
      CHECK(relative_error(logits_row(last, i, config), logits_row(expected, row - 1, config)) <= precision.bound);
    }
    const std::int64_t best = std::max_element(last.begin(), last.begin() + config.vocabulary) - last.begin();
    CHECK(grouped->likeliest().front() == best);
  }
}

TEST_CASE("decoding from states is reading everything anew") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const ReferenceModel reference(config, weights);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    // Three sequences of different lengths, in slots that are not their places; the batch keeps a row of padding.
    const std::vector<std::int64_t> lengths{3, 21, 50};
    const Tokens slots{2, 0, jrt::skip_slot, 3};
    std::vector<Tokens> sequences;
    std::vector<Prompt> prompts;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      sequences.push_back(random_tokens(lengths[i], config.vocabulary, static_cast<unsigned>(i)));
    }
    const Tokens places{2, 0, 3};
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      prompts.push_back({sequences[i], places[i], std::min<std::int64_t>(lengths[i], config.encoder_tokens)});
    }
    model->prefill(prompts, LogitsOf::last_tokens, {});
    for (int s = 0; s < 8; ++s) {
      const Tokens next = random_tokens(4, config.vocabulary, static_cast<unsigned>(100 + s));
      model->step(next, slots);
      const auto logits = model->logits();
      for (std::size_t row = 0, i = 0; row < slots.size(); ++row) {
        if (slots[row] != jrt::skip_slot) {
          sequences[i].push_back(next[row]);
          CHECK(model->tokens_read(slots[row]) == std::ssize(sequences[i]));
          const auto expected = reference.last_logits(sequences[i], prompts[i].prefix);
          CHECK(relative_error(logits_row(logits, row, config), expected) <= precision.bound);
          ++i;
        }
      }
    }
  }
}

TEST_CASE("steps in one kernel are steps, whatever is in the batch beside a sequence") {
  ModelConfig config = small_config();
  config.hidden = 64;  // whole chunks, as the kernel wants them
  config.layers.insert(config.layers.end(), {MixerKind::window, MixerKind::linear});
  for (const bool rotates : {true, false}) {
    config.rotates = rotates;
    config.window_kv_heads = rotates ? 2 : 4;
    config.mlp_input_bias = config.convolution_bias = rotates;
    const TestWeights weights(config);
    const ReferenceModel reference(config, weights);
    for (const Precision& precision : precisions) {
      constexpr std::int64_t slots = 20;
      const auto whole = made(config, weights, precision.type, slots);
      const auto separate = made(config, weights, precision.type, slots, 1 << 18, true);
      std::vector<Tokens> sequences;
      std::vector<Prompt> prompts;
      for (std::int64_t i = 0; i < 16; ++i) {
        sequences.push_back(random_tokens(1 + 3 * i, config.vocabulary, static_cast<unsigned>(i)));
      }
      Tokens all;
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        const std::int64_t prefix = std::min<std::int64_t>(std::ssize(sequences[i]), config.encoder_tokens);
        prompts.push_back({sequences[i], static_cast<std::int32_t>(i), prefix});
        all.push_back(i == 7 ? jrt::skip_slot : static_cast<std::int32_t>(i));
      }
      whole->prefill(prompts, LogitsOf::last_tokens, {});
      separate->prefill(prompts, LogitsOf::last_tokens, {});
      whole->fork(3, 19);
      std::vector<std::int64_t> prefixes;
      for (const Prompt& prompt : prompts) {
        prefixes.push_back(prompt.prefix);
      }
      for (int s = 0; s < 7; ++s) {
        const Tokens next = random_tokens(16, config.vocabulary, static_cast<unsigned>(50 + s));
        whole->step(next, all);
        separate->step(next, all);
        const bool has_kernel = device == DeviceKind::cuda && precision.type == NumberType::bfloat16;
        CHECK(separate->stepped_in_one_kernel() == false);
        if (has_kernel) {
          WARN(whole->stepped_in_one_kernel());
        }
        const auto logits = whole->logits();
        const auto others = separate->logits();
        const auto likeliest = whole->likeliest();
        for (std::size_t i = 0; i < sequences.size(); ++i) {
          if (all[i] == jrt::skip_slot) {
            continue;
          }
          sequences[i].push_back(next[i]);
          const auto row = logits_row(logits, i, config);
          CHECK(relative_error(row, reference.last_logits(sequences[i], prefixes[i])) <= precision.bound);
          CHECK(relative_error(row, logits_row(others, i, config)) <= precision.bound);
          CHECK(likeliest[i] == std::max_element(row.begin(), row.begin() + config.vocabulary) - row.begin());
        }
        // The same sequence by itself: bit by bit where one kernel does both.
        const auto alone = step_one(*whole, next[3], 19);
        const auto together = logits_row(logits, 3, config);
        CHECK(relative_error(alone, together) <= precision.bound);
        if (whole->stepped_in_one_kernel()) {
          CHECK(alone == together);
        }
      }
      if (whole->stepped_in_one_kernel()) {
        CHECK(whole->save(3) == whole->save(19));
      }
    }
  }
}

TEST_CASE("in the published layouts steps in one kernel differ from others by rounding alone") {
  constexpr std::int64_t slots = 16;
  each_short_published(slots, [](const ShortPublished& models) {
    const std::int64_t vocabulary = models.config.vocabulary;
    std::vector<Tokens> sequences;
    Tokens all;
    for (std::int32_t i = 0; i < slots; ++i) {
      sequences.push_back(random_tokens(1 + 9 * i, vocabulary, static_cast<unsigned>(i)));
      all.push_back(i);
    }
    for (LanguageModel* const model : models.all()) {
      std::vector<Prompt> prompts;
      for (std::int32_t i = 0; i < slots; ++i) {
        prompts.push_back({sequences[static_cast<std::size_t>(i)], i, 1 + 4 * i});
      }
      model->prefill(prompts, LogitsOf::last_tokens, {});
    }
    for (unsigned s = 0; s < 5; ++s) {
      const Tokens next = random_tokens(slots, vocabulary, 70 + s);
      for (LanguageModel* const model : models.all()) {
        model->step(next, all);
      }
      WARN(models.whole->stepped_in_one_kernel());
      const auto expected = models.exact->logits();
      const auto separate = models.separate->logits();
      const double rounding = relative_error(separate, expected);
      CHECK(relative_error(models.whole->logits(), expected) <= 1.5 * rounding);
      CHECK(relative_error(models.whole->logits(), separate) <= 2 * rounding);
    }
  });
}

TEST_CASE("many tokens and few, with rotation and without, with an encoder region and causal") {
  // Long enough that products are divided by rows, and that linear attention has many chunks.
  ModelConfig config = small_config();
  config.layers.resize(3);
  for (const bool causal : {false, true}) {
    config.has_encoder = !causal;
    config.encoder_tokens = causal ? 0 : 24;
    config.rotates = causal;
    config.window_kv_heads = causal ? 4 : 1;
    const TestWeights weights(config);
    const ReferenceModel reference(config, weights);
    for (const Precision& precision : precisions) {
      const auto model = made(config, weights, precision.type);
      for (const std::int64_t count : {70, 700}) {
        const Tokens tokens = random_tokens(count, config.vocabulary, 12);
        const std::int64_t prefix = causal ? 0 : count / 3;
        const auto expected = reference.logits(tokens, prefix);
        const Prompt prompt{tokens, 0, prefix};
        model->prefill(std::span(&prompt, 1), LogitsOf::all_tokens, {});
        CHECK(relative_error(model->logits(), expected) <= precision.bound);
      }
    }
  }
}

TEST_CASE("greedy steps are steps that are fed with the likeliest tokens, rows of padding or not") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    const Tokens tokens = random_tokens(30, config.vocabulary, 6);
    static_cast<void>(prefill_last(*model, tokens, 1, 10));
    model->fork(1, 2);
    const Tokens slots{jrt::skip_slot, 1, jrt::skip_slot};
    Tokens next{5, 7, 0};
    const Tokens all = model->greedy_steps(next, slots, 4);
    REQUIRE(all.size() == 12);
    CHECK(model->tokens_read(1) == 34);
    const Tokens forked{jrt::skip_slot, 2, jrt::skip_slot};
    for (std::size_t s = 0; s < 4; ++s) {
      model->step(next, forked);
      next[1] = model->likeliest()[1];
      CHECK(next[1] == all[3 * s + 1]);
    }
    CHECK(model->save(1) == model->save(2));
    CHECK_THROWS_WITH_AS(model->greedy_steps(next, slots, 0),
                         "there are 0 steps, but slot -1 can take from 1 to 2147483647", std::invalid_argument);
  }
}

TEST_CASE("a sequence gives the same in a batch and by itself") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    const Tokens a = random_tokens(37, config.vocabulary, 1);
    const Tokens b = random_tokens(80, config.vocabulary, 2);
    const Tokens c = random_tokens(5, config.vocabulary, 3);
    const std::vector<Prompt> batch{{a, 0, 24}, {b, 1, 24}, {c, 2, 5}};
    model->prefill(batch, LogitsOf::last_tokens, {});
    const auto together = model->logits();
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const Tokens tokens(batch[i].tokens.begin(), batch[i].tokens.end());
      CHECK(relative_error(prefill_last(*model, tokens, 3, batch[i].prefix), logits_row(together, i, config)) <=
            precision.bound);
    }
  }
}

/// A saved sequence of the small model, whose window (layer 1, two heads) says that it has seen `count` tokens.
std::vector<std::byte> with_window_counts(std::vector<std::byte> saved, std::int64_t count) {
  const std::string magic(jrt::SavedStatesHeader::expected_magic, sizeof jrt::SavedStatesHeader::expected_magic);
  std::vector<std::size_t> headers;
  const std::string_view text(reinterpret_cast<const char*>(saved.data()), saved.size());
  for (std::size_t at = text.find(magic); at != std::string_view::npos; at = text.find(magic, at + 1)) {
    headers.push_back(at);
  }
  REQUIRE(headers.size() == small_config().layers.size());
  // The count is the last number of a head.
  const std::size_t numbers = headers[1] + sizeof(jrt::SavedStatesHeader);
  const std::size_t head = (headers[2] - numbers) / 2;
  for (const std::size_t end : {numbers + head, numbers + 2 * head}) {
    std::memcpy(saved.data() + (end - sizeof count), &count, sizeof count);
  }
  return saved;
}

TEST_CASE("forks and saved states go back to where they were, bit by bit") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  for (const Precision& precision : precisions) {
    const auto model = made(config, weights, precision.type);
    static_cast<void>(prefill_last(*model, random_tokens(40, config.vocabulary, 8), 0, 24));
    model->fork(0, 1);
    const auto saved = model->save(0);
    const auto go_on = [&](std::int32_t slot) {
      std::vector<double> all;
      for (const std::int32_t token : {4, 9, 2}) {
        const auto row = step_one(*model, token, slot);
        all.insert(all.end(), row.begin(), row.end());
      }
      return all;
    };
    const auto expected = go_on(0);
    CHECK(go_on(1) == expected);
    model->load(saved, 3);
    CHECK(model->tokens_read(3) == 40);
    CHECK(model->save(3) == saved);
    CHECK(go_on(3) == expected);
    // Into another model of the same kind.
    const auto other = made(config, weights, precision.type);
    other->load(saved, 2);
    CHECK(other->tokens_read(2) == 40);
    CHECK(other->save(2) == saved);

    // What is wrong changes nothing.
    const auto before = model->save(3);
    const auto refused = [&](std::vector<std::byte> bytes, const std::string& words) {
      std::string message;
      try {
        model->load(bytes, 3);
      } catch (const std::exception& error) {
        message = error.what();
      }
      CHECK_MESSAGE(message.find(words) != std::string::npos, message);
      CHECK(model->save(3) == before);
    };
    refused({saved.begin(), saved.end() - 1},
            std::to_string(saved.size() - 1) + " bytes, but this model's has " + std::to_string(saved.size()));
    refused(std::vector<std::byte>(saved.size()), "does not begin with the header");
    auto broken = saved;
    broken[8] = std::byte{77};
    refused(broken, "has 77 layers, but the model has 5");
    broken = saved;
    broken[23] = std::byte{1};
    refused(broken, "has read 72057594037927976 tokens, but may have read from 0 to 2147483647");
    // The window's layer has seen as many tokens as the sequence has read, whichever of the two numbers is wrong.
    broken = saved;
    broken[16] = std::byte{39};
    refused(broken, "has read 39 tokens, but its layer 1 has seen 40");
    refused(with_window_counts(saved, 41), "has read 40 tokens, but its layer 1 has seen 41");
    refused(with_window_counts(saved, INT64_MAX), "is 9223372036854775807, but must be from 0 to");
    refused(with_window_counts(saved, -1), "is -1, but must be from 0 to");
    // The header of the last layer's states is behind the numbers of all others.
    broken = saved;
    const std::string magic = "JRTSTATE";
    const auto* const as_bytes = reinterpret_cast<const std::byte*>(magic.data());
    const auto last = std::find_end(broken.begin(), broken.end(), as_bytes, as_bytes + magic.size());
    REQUIRE(last != broken.end());
    *last = std::byte{'X'};
    refused(broken, "load_states");
  }
}

TEST_CASE("wrong arguments are refused with both values, and change nothing") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const auto model = made(config, weights, precisions.front().type, 2);
  CHECK_THROWS_WITH_AS(static_cast<void>(model->logits()), "there are no logits before the first prefill or step",
                       std::invalid_argument);
  const Tokens good{1, 2, 3};
  static_cast<void>(prefill_last(*model, good, 0, 3));
  const auto before = model->save(0);
  const auto refused = [&](const std::vector<Prompt>& prompts, const char* message) {
    CHECK_THROWS_WITH_AS(model->prefill(prompts, LogitsOf::last_tokens, {}), message, std::invalid_argument);
    CHECK(model->save(0) == before);
  };
  const Tokens outside{1, 32};
  const Tokens negative{-1};
  refused({{good, 0, 0}, {outside, 1, 0}},
          "prompt 1, position 1, is token 32, but the embeddings have tokens from 0 to 31");
  refused({{negative, 0, 0}}, "prompt 0, position 0, is token -1, but the embeddings have tokens from 0 to 31");
  refused({{Tokens{}, 0, 0}}, "prompt 0 has 0 tokens, but must have from 1 to 2147483647");
  refused({{good, 2, 0}}, "slot 2 is not one of the model's, which are from 0 to 1");
  refused({{good, 0, 0}, {good, 0, 0}}, "two sequences of a call have slot 0");
  refused({{good, 0, 4}}, "prompt 0 has a prefix of 4 tokens, but may have at most 3 (its own)");
  refused({{good, 0, 1, 0, true}}, "prompt 0 has a prefix of 1 tokens, but may have at most 0 (it continues a sequence)");
  refused({{good, 0, 0, 4}}, "prompt 0 has 4 zero keys, but 3 tokens");
  const Tokens slots{0, 1};
  CHECK_THROWS_WITH_AS(model->step(good, slots),
                       "a step has 3 tokens for 2 slots, but must have one for each, and at least one",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(model->step(outside, slots),
                       "row 1 of a step is token 32, but the embeddings have tokens from 0 to 31", std::invalid_argument);
  CHECK_THROWS_WITH_AS(model->fork(0, 2), "slot 2 is not one of the model's, which are from 0 to 1", std::invalid_argument);
  ModelConfig causal = config;
  causal.has_encoder = false;
  const auto based = made(causal, weights, precisions.front().type, 1);
  const std::vector<Prompt> with_prefix{{good, 0, 1}};
  CHECK_THROWS_WITH_AS(based->prefill(with_prefix, LogitsOf::last_tokens, {}),
                       "prompt 0 has a prefix of 1 tokens, but may have at most 0 (the model has no encoder region)",
                       std::invalid_argument);
  // A model that has read all that can be counted.
  auto full = model->save(1);
  for (std::size_t i = 16; i < 24; ++i) {
    full[i] = std::byte{i < 19    ? static_cast<unsigned char>(0xff)
                        : i == 19 ? static_cast<unsigned char>(0x7f)
                                  : static_cast<unsigned char>(0)};
  }
  model->load(with_window_counts(full, INT32_MAX), 1);
  CHECK(model->tokens_read(1) == INT32_MAX);
  CHECK_THROWS_WITH_AS(static_cast<void>(step_one(*model, 1, 1)), "there are 1 steps, but slot 1 can take from 1 to 0",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(static_cast<void>(prefill_last(*model, good, 1, 0, true)),
                       "prompt 0 has 3 tokens, but must have from 1 to 0", std::invalid_argument);
  ModelConfig strange = config;
  strange.shape.left_window = 5;
  CHECK_THROWS_WITH_AS(made(strange, weights, precisions.front().type),
                       doctest::Contains("no compiled operator is 'window d16 L5', but only window d16 L4"),
                       std::runtime_error);
  // Dimensions of mixers that it does not have do not matter.
  strange.layers.assign(2, MixerKind::linear);
  CHECK(made(strange, TestWeights(strange), precisions.front().type) != nullptr);
}

}  // namespace
}  // namespace jrt_lm::test
