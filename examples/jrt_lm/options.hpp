// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "jrt_lm/generation.hpp"
#include "jrt_lm/language_model.hpp"

namespace jrt_lm {

/// The command line.
struct Options {
  bool help = false;
  std::string model_folder{};
  std::string random_weights{};  ///< a published layout instead of a folder
  ModelOptions model{};
  int ranks = 1;  ///< threads or GPUs that read a long prompt together
  GenerationOptions generation{};
  bool encoder_tokens_given = false;  ///< otherwise the model's own
  bool half_prefix = false;           ///< M is half of the context
  std::vector<std::vector<std::int32_t>> prompts{};
  std::vector<std::string> texts{};
  std::vector<std::int32_t> query{};
  std::optional<std::string> query_text{};
  std::string vocab{};
  std::string merges{};
  std::vector<std::int64_t> measure{};  ///< lengths of random prompts
  std::int64_t batch = 1;               ///< of random prompts
  std::int64_t repeats = 5;             ///< of a measurement
  bool json = false;
  bool quiet = false;
};

extern const char* const usage;

/// Errors are std::invalid_argument naming the option and its value.
Options parse_options(int argc, char** argv);

/// Token ids with commas or blanks between them; `where` stands in messages.
std::vector<std::int32_t> parse_tokens(const std::string& text, const std::string& where);

}  // namespace jrt_lm
