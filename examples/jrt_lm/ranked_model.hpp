// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "jrt_lm/language_model.hpp"

namespace jrt_lm {

/// The same model on `ranks` ranks (threads of the CPU, or GPUs 0 … ranks − 1), each with all weights: a prompt that is
/// long enough is read by all of them, with one exchange of constant size per layer. Decoding, and everything else, is the
/// last rank's, where the state is then. `options.rank` is ignored.
std::unique_ptr<LanguageModel> make_ranked_model(int ranks, const ModelConfig& config, const WeightSource& weights,
                                                 const ModelOptions& options);

/// The same of models that are there: rank i is models[i]. A prompt that takes ranks more than `seconds` is an error, which
/// says how far each has come; an error of one rank ends the exchanges of all, and is thrown. Others may follow.
std::unique_ptr<LanguageModel> join_models(std::vector<std::unique_ptr<LanguageModel>> models, double seconds);

}  // namespace jrt_lm
