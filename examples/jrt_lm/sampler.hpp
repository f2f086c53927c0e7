// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace jrt_lm {

struct SamplingOptions {
  std::int64_t top_k = 1;  ///< only the k likeliest tokens; 0: all. 1 is greedy
  double top_p = 1;        ///< only the likeliest tokens whose probabilities together first reach p
  double temperature = 1;  ///< logits are divided by it; 0 is greedy, what smaller and smaller temperatures come to
  std::uint64_t seed = 1;  ///< of the sequence of draws

  [[nodiscard]] bool greedy() const { return top_k == 1 || temperature == 0; }
};

/// Draws tokens from logits. One for each sequence, so that its draws do not depend on what else is in the batch; the same
/// seed and logits give the same tokens on every machine (the standard's engine, no distribution of the standard
/// library's).
class Sampler {
 public:
  /// std::invalid_argument with both values for options out of range. `sequence` sets sequences with one seed apart.
  explicit Sampler(const SamplingOptions& options, std::uint64_t sequence = 0);

  /// A token of `logits`, which is the vocabulary's part of a row. std::invalid_argument where one of them is not finite.
  std::int32_t draw(std::span<const double> logits);

 private:
  SamplingOptions options_;
  std::mt19937_64 generator_;
  std::vector<std::int32_t> order_;
  std::vector<double> weights_;
};

}  // namespace jrt_lm
