// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "jrt_lm/generation.hpp"
#include "jrt_lm/language_model.hpp"

/// What tests of whole models share: which device and types they run with, and small models.
namespace jrt_lm::test {

using Tokens = std::vector<std::int32_t>;

/// A number type and the relative error that logits may have.
struct Precision {
  NumberType type;
  double bound;
};
#if defined(JRT_TEST_CUDA)
inline constexpr DeviceKind device = DeviceKind::cuda;
inline const std::vector<Precision> precisions{{NumberType::float32, 2e-5}, {NumberType::bfloat16, 4e-2}};
#else
inline constexpr DeviceKind device = DeviceKind::cpu;
inline const std::vector<Precision> precisions{
    {NumberType::float64, 1e-9}, {NumberType::float32, 2e-5}, {NumberType::bfloat16, 4e-2}};
#endif

inline std::string data_folder() {
  const char* const directory = std::getenv("JRT_TEST_DATA");
  return directory != nullptr ? directory : JRT_TEST_DATA_DEFAULT;
}

/// The shape that all builds have: a model of the golden one's kind with things that it lacks (key/value heads shared by
/// query heads, biases), small enough for all pairs of tokens.
inline ModelConfig small_config() {
  ModelConfig config;
  config.source = "small";
  config.vocabulary = 29;
  config.vocabulary_rows = 32;
  config.width = 64;
  config.hidden = 48;
  config.channels = 96;
  config.heads = 4;
  config.window_kv_heads = 2;
  config.shape = {16, 16, 4, 3};
  config.encoder_tokens = 24;
  config.has_encoder = true;
  config.window_scale = 0.3;
  config.convolution_projection_bias = true;
  config.convolution_bias = true;
  config.linear_output_bias = true;
  config.window_input_bias = true;
  config.window_output_bias = true;
  config.mlp_input_bias = true;
  config.mlp_output_bias = true;
  config.layers = {MixerKind::linear, MixerKind::window, MixerKind::convolution, MixerKind::linear, MixerKind::convolution};
  return config;
}

inline std::unique_ptr<LanguageModel> made(const ModelConfig& config, const WeightSource& weights, NumberType type,
                                           std::int64_t slots = 4, std::int64_t tokens_per_group = 1 << 18,
                                           bool separate_kernels = false) {
  ModelOptions options;
  options.device = device;
  options.type = type;
  options.slots = slots;
  options.threads = 2;
  options.tokens_per_group = tokens_per_group;
  options.separate_kernels = separate_kernels;
  return make_model(config, weights, options);
}

/// Null, and a message, where this program has no such model.
inline std::unique_ptr<LanguageModel> made_if_compiled(const ModelConfig& config, const WeightSource& weights,
                                                       NumberType type, std::int64_t slots = 4) {
  try {
    return made(config, weights, type, slots);
  } catch (const std::runtime_error& error) {
    const std::string_view what = error.what();
    const auto says = [&](std::string_view part) { return what.find(part) != std::string_view::npos; };
    if (!says("was compiled for") && !says("no compiled operator")) {  // its type or device, or its shape
      throw;
    }
    MESSAGE("not compiled: " << error.what());
    return nullptr;
  }
}

/// A published layout's widths, in few layers and tokens, with the same weights in float32, in bfloat16, and in bfloat16 by
/// separate kernels alone.
struct ShortPublished {
  ModelConfig config;
  std::unique_ptr<LanguageModel> exact;
  std::unique_ptr<LanguageModel> whole;
  std::unique_ptr<LanguageModel> separate;

  [[nodiscard]] std::vector<LanguageModel*> all() const { return {exact.get(), whole.get(), separate.get()}; }
};

/// On a GPU: calls `function` with each published layout that this program was compiled for.
template <class Function>
void each_short_published(std::int64_t slots, const Function& function) {
  if (device != DeviceKind::cuda) {
    return;
  }
  for (const char* const name : {"360m", "1.3b"}) {
    CAPTURE(name);
    const RandomWeights weights;
    ShortPublished models{ModelConfig::published(name), nullptr, nullptr, nullptr};
    ModelConfig& config = models.config;
    config.layers.resize(5);  // with all kinds of mixers
    config.vocabulary = config.vocabulary_rows = 1000;
    models.exact = made_if_compiled(config, weights, NumberType::float32, slots);
    if (models.exact == nullptr) {
      continue;
    }
    models.whole = made(config, weights, NumberType::bfloat16, slots);
    models.separate = made(config, weights, NumberType::bfloat16, slots, 1 << 18, true);
    function(models);
  }
}

inline Tokens random_tokens(std::int64_t count, std::int64_t vocabulary, unsigned seed) {
  std::mt19937 generator(seed);
  Tokens tokens;
  for (std::int64_t t = 0; t < count; ++t) {
    tokens.push_back(static_cast<std::int32_t>(generator() % static_cast<std::uint64_t>(vocabulary)));
  }
  return tokens;
}

inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

/// Row `row` of logits.
inline std::vector<double> logits_row(const std::vector<double>& logits, std::size_t row, const ModelConfig& config) {
  const auto columns = static_cast<std::ptrdiff_t>(config.vocabulary_rows);
  const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(row) * columns;
  return {begin, begin + columns};
}

inline std::vector<double> prefill_last(LanguageModel& model, const Tokens& tokens, std::int32_t slot, std::int64_t prefix,
                                        bool continues = false) {
  const Prompt prompt{tokens, slot, prefix, 0, continues};
  model.prefill(std::span(&prompt, 1), LogitsOf::last_tokens, {});
  return model.logits();
}

inline std::vector<double> step_one(LanguageModel& model, std::int32_t token, std::int32_t slot) {
  model.step(std::span(&token, 1), std::span(&slot, 1));
  return model.logits();
}

}  // namespace jrt_lm::test
