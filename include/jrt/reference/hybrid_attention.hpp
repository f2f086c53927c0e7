// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/prefill.hpp"
#include "jrt/reference/linear_attention.hpp"
#include "jrt/reference/sums.hpp"
#include "jrt/reference/window_attention.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"

/// The oracle of the hybrid mixer: the formula itself, in double, pair by pair, with s_ij = q_i·k_j/√d:
///
///           Σ_{i−L ≤ j ≤ i} e^{s_ij} v_j + Σ_{j < i−L} φ(q_i)·φ(k_j) v_j + Σ_{j<M} φ(q_i)·φ(k_enc_j) v_enc_j
///     y_i = ─────────────────────────────────────────────────────────────────────────────────────────────────
///                                  the same sums without the values, + ε
///
/// For tests; O(T² · D) and it allocates.
namespace jrt::reference {

namespace detail {

template <HybridConfig Config>
class HybridPrefill {
 public:
  explicit HybridPrefill(const PrefillArgs<Config>& args) : args_(args) {}

  void run() const {
    const std::int64_t count = jrt::detail::sequence_count(args_.sequences, args_.query.batch);
    for (std::int64_t b = 0; b < count; ++b) {
      for (std::int64_t h = 0; h < args_.query.heads; ++h) {
        head(b, h);
      }
    }
  }

 private:
  using Linear = typename Config::Linear;
  using Window = typename Config::Window;
  using Format = StateFormatOf<Config>;
  using Features = std::vector<double>;
  static constexpr int head_dim = Window::head_dim;
  static constexpr int value_dim = Window::value_dim;

  /// All that the queries of one sequence and head may see.
  struct Seen {
    const typename Format::LinearFormat::Scalar* state = nullptr;  // the sum over tokens whose keys are no longer kept
    WindowTokens<Window> tokens;
    std::vector<Features> features;  // of their keys
    std::vector<Features> encoder_features;
    std::vector<const typename Config::Element*> encoder_values;
  };

  void head(std::int64_t b, std::int64_t h) const {
    const auto span = jrt::detail::sequence_span(args_.sequences, b, args_.query.tokens, args_.key_encoder.tokens);
    const std::int64_t kv = h / (args_.query.heads / args_.key.heads);
    Seen seen;
    if (jrt::detail::reads_initial_state(args_.initial_state, args_.has_initial_state, b)) {
      const auto* const state = args_.initial_state.pool.head(args_.initial_state.slot(b), kv);
      const auto* const ring = reinterpret_cast<const unsigned char*>(state) + Format::window_offset_bytes;
      seen.state = reinterpret_cast<const typename Format::LinearFormat::Scalar*>(state);
      seen.tokens.add_cache(reinterpret_cast<const typename Window::Element*>(ring));
      for (const std::vector<double>& key : seen.tokens.keys) {
        seen.features.push_back(features_of_key(key));
      }
    }
    const std::int64_t prefix = Linear::Mask::reads_encoder ? span.prefix : 0;
    for (std::int64_t j = span.left_pad; j < prefix; ++j) {
      const std::int64_t token = span.encoder_first + j;
      seen.encoder_features.push_back(
          features_of_key(in_double(args_.key_encoder.row(span.encoder_row, token, kv), head_dim)));
      seen.encoder_values.push_back(args_.value_encoder.row(span.encoder_row, token, kv));
    }
    for (std::int64_t i = 0; i < span.row_tokens; ++i) {
      const std::int64_t token = span.first_token + i;
      Sums sums{std::vector<double>(value_dim), 1};
      if (i >= span.left_pad && i < span.tokens) {
        seen.tokens.add_token(args_.key.row(span.batch_row, token, kv), args_.value.row(span.batch_row, token, kv), {});
        seen.features.push_back(features_of_key(seen.tokens.keys.back()));
        sums = attended(in_double(args_.query.row(span.batch_row, token, h), head_dim), seen);
      }
      auto* const output = args_.output.row(span.batch_row, token, h);
      for (int c = 0; c < value_dim; ++c) {
        output[c] = convert<typename Config::Element>(sums.numerator[static_cast<std::size_t>(c)] / sums.denominator);
      }
    }
  }

  [[nodiscard]] Features features_of_key(const std::vector<double>& key) const {
    return key_features(args_.feature_map, key, 0);
  }

  /// Sums of the last token's query. All weights and ε are divided by the largest e^s, if that is above 1, so that none
  /// overflows.
  [[nodiscard]] Sums attended(const std::vector<double>& query, const Seen& seen) const {
    const Features query_of_map = query_features(args_.feature_map, query, 0);
    const std::vector<std::vector<double>>& keys = seen.tokens.keys;
    const std::size_t first_exact = keys.size() - std::min<std::size_t>(keys.size(), Window::left_window + 1);
    const auto score = [&](std::size_t j) { return dot(query, keys[j]) / std::sqrt(static_cast<double>(head_dim)); };
    double largest = 0;
    for (std::size_t j = first_exact; j < keys.size(); ++j) {
      largest = std::max(largest, score(j));
    }
    const double factor = std::exp(-largest);
    Sums sums{std::vector<double>(value_dim), Linear::Normaliser::epsilon * factor};
    for (std::size_t j = 0; j < keys.size(); ++j) {
      sums.add(j >= first_exact ? std::exp(score(j) - largest) : dot(query_of_map, seen.features[j]) * factor,
               seen.tokens.values[j].data());
    }
    for (std::size_t j = 0; j < seen.encoder_values.size(); ++j) {
      sums.add(dot(query_of_map, seen.encoder_features[j]) * factor, seen.encoder_values[j]);
    }
    if (seen.state != nullptr) {
      add_state<typename Format::LinearFormat>(sums, query_of_map, seen.state, factor);
    }
    return sums;
  }

  const PrefillArgs<Config>& args_;
};

}  // namespace detail

/// Outputs as `jrt::prefill` defines them, from an initial state where there is one; also the reference of a decode step
/// from that state. The arguments must be valid; no final state is written, no slot skipped.
template <HybridConfig Config>
void prefill(const PrefillArgs<Config>& args) {
  detail::HybridPrefill<Config>(args).run();
}

}  // namespace jrt::reference
