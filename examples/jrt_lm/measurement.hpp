// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt_lm/generation.hpp"
#include "jrt_lm/language_model.hpp"

namespace jrt_lm {

struct MeasurementOptions {
  std::int64_t tokens = 0;         ///< of each prompt
  std::int64_t repeats = 5;        ///< that count, after one that does not
  GenerationOptions generation{};  ///< how prompts are read; `new_tokens` decode steps are timed
};

/// Medians.
struct Measurement {
  std::int64_t prefix = 0;          ///< encoder tokens of each prompt
  double prefill_ms = 0;            ///< until there is the first new token
  double prefill_tokens_per_s = 0;  ///< tokens of the prompts, however often they were read
  double decode_ms_per_token = 0;   ///< a greedy step of the whole batch
  double decode_tokens_per_s = 0;
  double staged_ms = 0;        ///< with speculation: a staged step, which gives that many tokens to each sequence at most
  double speculative_ms = 0;   ///< likewise: with its commit, and the tokens told to the host
  double read_weights_ms = 0;  ///< the shortest time of reading so many bytes; 0: not measured on this device
};

/// Times prefill and decoding of random prompts in all slots of a model.
Measurement measure(LanguageModel& model, const MeasurementOptions& options);

}  // namespace jrt_lm
