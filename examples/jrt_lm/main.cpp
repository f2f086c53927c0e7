// SPDX-License-Identifier: Apache-2.0
// A JRT-RNN or Based language model on the library's kernels: reads a checkpoint in the authors' layout and generates
// tokens, on the CPU or a GPU. `jrt_lm --help` says how; docs/jrt-rnn.md explains it.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "jrt_lm/generation.hpp"
#include "jrt_lm/measurement.hpp"
#include "jrt_lm/model_tensors.hpp"
#include "jrt_lm/options.hpp"
#include "jrt_lm/progress_line.hpp"
#include "jrt_lm/ranked_model.hpp"
#if defined(JRT_LM_TOKENIZER)
#include "jrt_lm/tokenizer.hpp"
#endif

namespace {

using namespace jrt_lm;

#if !defined(JRT_LM_TOKENIZER)
/// In place of the real one, where PCRE2 was not found when this was built.
struct Tokenizer {
  Tokenizer(const std::string& /*vocab*/, const std::string& /*merges*/) {
    throw std::invalid_argument("--vocab needs PCRE2 (libpcre2-dev), which was not found when this program was built");
  }
  static std::vector<std::int32_t> encode(const std::string& /*text*/) { return {}; }
  static std::string decode(const std::vector<std::int32_t>& /*tokens*/) { return {}; }
};
#endif

/// A model, and the time from its files to where it can read a prompt.
struct Loaded {
  std::unique_ptr<LanguageModel> model;
  double milliseconds = 0;
};

/// Checkpoint or random weights, and the model made of them; the checkpoint is closed afterwards.
std::unique_ptr<LanguageModel> open_model(const Options& options) {
  if (options.model_folder.empty() == options.random_weights.empty()) {
    throw std::invalid_argument(options.model_folder.empty()
                                    ? "neither a model's folder nor --random-weights is given (--help explains)"
                                    : "both a folder, '" + options.model_folder + "', and --random-weights " +
                                          options.random_weights + " are given");
  }
  if (!options.random_weights.empty()) {
    return make_ranked_model(options.ranks, ModelConfig::published(options.random_weights), RandomWeights(), options.model);
  }
  ModelConfig config = ModelConfig::from_file(options.model_folder + "/config.json");
  const Checkpoint checkpoint(options.model_folder);
  settle_tensors(config, checkpoint);
  return make_ranked_model(options.ranks, config, CheckpointWeights(checkpoint), options.model);
}

Loaded load_model(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  Loaded loaded{open_model(options)};
  loaded.model->synchronize();
  loaded.milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  if (!options.quiet && loaded.milliseconds >= 1000) {  // less is over before anyone asks
    std::fprintf(stderr, "%s: %.2f billion numbers loaded in %.1f s\n",
                 options.random_weights.empty() ? options.model_folder.c_str() : options.random_weights.c_str(),
                 static_cast<double>(parameter_count(loaded.model->config())) * 1e-9, loaded.milliseconds * 1e-3);
  }
  return loaded;
}

std::vector<Request> requests_of(const Options& options, const std::optional<Tokenizer>& tokenizer) {
  const auto encoded = [&](const std::string& text, const char* option) {
    if (!tokenizer) {
      throw std::invalid_argument(std::string(option) + " needs --vocab and --merges");
    }
    auto tokens = tokenizer->encode(text);
    if (tokens.empty()) {
      throw std::invalid_argument(std::string(option) + " has 0 tokens, but a prompt needs at least 1");
    }
    return tokens;
  };
  std::vector<Request> requests;
  for (const auto& prompt : options.prompts) {
    requests.push_back({prompt, options.query});
  }
  for (const std::string& text : options.texts) {
    requests.push_back({encoded(text, "--text"), options.query});
  }
  if (!options.query.empty() && options.query_text) {
    throw std::invalid_argument("both --query and --query-text are given");
  }
  if (requests.empty()) {
    throw std::invalid_argument("there is no prompt: give --tokens, --tokens-file, --text or --measure");
  }
  if (options.query_text) {
    const std::vector<std::int32_t> query = encoded(*options.query_text, "--query-text");
    for (Request& request : requests) {
      request.query = query;
    }
  }
  return requests;
}

/// The encoder region that the model was trained with, unless another was asked for.
void take_encoder_of(const LanguageModel& model, Options& options) {
  if (!options.encoder_tokens_given) {
    options.generation.encoder_tokens = model.config().encoder_tokens;
  }
}

nlohmann::ordered_json about(const Loaded& loaded, const Options& options) {
  const LanguageModel& model = *loaded.model;
  nlohmann::ordered_json json;
  json["model"] = options.random_weights.empty() ? options.model_folder : options.random_weights;
  json["parameters"] = parameter_count(model.config());
  json["device"] = model.device_name();
  json["type"] = name_of(options.model.type);
  json["load_ms"] = loaded.milliseconds;
  return json;
}

void generate_and_print(Options options) {
  std::optional<Tokenizer> tokenizer;
  if (options.vocab.empty() != options.merges.empty()) {
    throw std::invalid_argument("--vocab and --merges belong together, but one of them is missing");
  }
  if (!options.vocab.empty()) {
    tokenizer.emplace(options.vocab, options.merges);
  }
  const std::vector<Request> requests = requests_of(options, tokenizer);
  options.model.slots = std::ssize(requests);
  if (options.half_prefix) {
    throw std::invalid_argument("--prefix half is for --measure; prompts of one's own need a number");
  }
  const Loaded loaded = load_model(options);
  LanguageModel* const model = loaded.model.get();
  take_encoder_of(*model, options);
  ProgressLine progress(options.quiet);
  const Generation result = generate(*model, requests, options.generation, progress.of(requests, options.generation));
  progress.end();
  if (!options.json) {
    for (const auto& tokens : result.tokens) {
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        std::cout << (i == 0 ? "" : " ") << tokens[i];
      }
      std::cout << "\n";
      if (tokenizer) {
        std::cout << tokenizer->decode(tokens) << "\n";
      }
    }
    return;
  }
  nlohmann::ordered_json json = about(loaded, options);
  json["tokens"] = result.tokens;
  if (tokenizer) {
    for (const auto& tokens : result.tokens) {
      json["text"].push_back(tokenizer->decode(tokens));
    }
  }
  json["prompt_tokens"] = result.prompt_tokens;
  json["prefill_ms"] = result.prefill_seconds * 1e3;
  json["prefill_tokens_per_s"] = static_cast<double>(result.prompt_tokens) / result.prefill_seconds;
  json["decode_rounds"] = result.decode_rounds;
  json["decode_ms_per_token"] = result.milliseconds_per_token();
  json["decode_tokens_per_s"] = result.decoded_per_second();
  if (options.generation.speculate != 0) {
    json["speculate"] = options.generation.speculate;
    json["drafted_tokens"] = result.drafted_tokens;
    json["accepted_tokens"] = result.accepted_tokens;
    json["decode_ms_per_round"] = result.milliseconds_per_round();
  }
  json["steps_in_one_kernel"] = model->stepped_in_one_kernel();
  json["state_bytes_per_sequence"] = model->state_bytes();
  json["device_bytes"] = model->device_bytes();
  // Bytes that are no UTF-8, as a token may end within a character, are replaced.
  std::cout << json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
}

void measure_and_print(Options options) {
  if (!options.prompts.empty() || !options.texts.empty() || !options.query.empty() || options.query_text) {
    throw std::invalid_argument("--measure makes its own prompts, but others are given");
  }
  options.model.slots = options.batch;
  const Loaded loaded = load_model(options);
  LanguageModel* const model = loaded.model.get();
  take_encoder_of(*model, options);
  nlohmann::ordered_json json = about(loaded, options);
  json["measurements"] = nlohmann::ordered_json::array();
  for (const std::int64_t tokens : options.measure) {
    MeasurementOptions what;
    what.tokens = tokens;
    what.repeats = options.repeats;
    what.generation = options.generation;
    if (options.half_prefix) {
      what.generation.encoder_tokens = tokens / 2;
    }
    const Measurement m = measure(*model, what);
    if (!options.json) {
      const std::string staged = options.generation.speculate != 0
                                     ? "; staged step of " + std::to_string(options.generation.speculate) + " tokens " +
                                           std::to_string(m.staged_ms) + " ms, with its commit and the host's part " +
                                           std::to_string(m.speculative_ms) + " ms"
                                     : "";
      const std::string read = m.read_weights_ms > 0
                                   ? "; reading as much as the weights takes " + std::to_string(m.read_weights_ms) + " ms"
                                   : "";
      std::printf(
          "%lld prompts of %lld tokens, %lld of them the prefix, read %lld times: prefill %.2f ms, %.0f tokens/s; decode "
          "step %.4f ms, "
          "%.0f tokens/s%s%s\n",
          static_cast<long long>(options.batch), static_cast<long long>(tokens), static_cast<long long>(m.prefix),
          static_cast<long long>(options.generation.reads), m.prefill_ms, m.prefill_tokens_per_s, m.decode_ms_per_token,
          m.decode_tokens_per_s, staged.c_str(), read.c_str());
      std::fflush(stdout);
      continue;
    }
    nlohmann::ordered_json row;
    row["batch"] = options.batch;
    row["tokens"] = tokens;
    row["prefix"] = m.prefix;
    row["reads"] = options.generation.reads;
    row["prefill_ms"] = m.prefill_ms;
    row["prefill_tokens_per_s"] = m.prefill_tokens_per_s;
    row["decode_ms_per_token"] = m.decode_ms_per_token;
    row["decode_tokens_per_s"] = m.decode_tokens_per_s;
    if (options.generation.speculate != 0) {
      row["speculate"] = options.generation.speculate;
      row["staged_step_ms"] = m.staged_ms;
      row["speculative_step_ms"] = m.speculative_ms;
    }
    row["read_weights_ms"] = m.read_weights_ms;
    row["state_bytes_per_sequence"] = model->state_bytes();
    row["device_bytes"] = model->device_bytes();
    json["measurements"].push_back(row);
  }
  if (options.json) {
    std::cout << json.dump(1) << "\n";
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse_options(argc, argv);
  if (options.help) {
    std::cout << usage;
    return 0;
  }
  if (options.measure.empty()) {
    generate_and_print(options);
  } else {
    measure_and_print(options);
  }
  return 0;
} catch (const std::bad_alloc&) {
  std::cerr << "jrt_lm: there is not enough memory for this model and these prompts\n";
  return 1;
} catch (const std::exception& error) {
  std::cerr << "jrt_lm: " << error.what() << "\n";
  return 1;
}
