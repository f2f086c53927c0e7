// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "jrt/mixer/linear_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/feature_map.hpp"
#include "jrt/reference/sums.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"

/// The oracle of prefix linear attention: the formula itself, in double, pair by pair, without state or chunks. For tests
/// of this library and of users' own policies; O(T²) and it allocates.
namespace jrt::reference {

namespace detail {

template <FeatureMap Map>
std::vector<double> query_features(const Map& map, const std::vector<double>& x, std::int64_t position) {
  std::vector<double> features(Map::feature_dim);
  expand_query(map, x.data(), features.data(), position);
  return features;
}
template <FeatureMap Map>
std::vector<double> key_features(const Map& map, const std::vector<double>& x, std::int64_t position) {
  std::vector<double> features(Map::feature_dim);
  expand_key(map, x.data(), features.data(), position);
  return features;
}

/// Adds all the pairs that a head's state sums up, with their weights times `factor`.
template <class Format>
void add_state(Sums& sums, const std::vector<double>& query, const typename Format::Scalar* state, double factor = 1) {
  for (int r = 0; r < Format::rows; ++r) {
    const double feature = query[static_cast<std::size_t>(r)] * factor;
    for (int c = 0; c < Format::columns; ++c) {
      sums.numerator[static_cast<std::size_t>(c)] += feature * convert<double>(state[r * Format::columns + c]);
    }
    sums.denominator += feature * convert<double>(state[Format::normaliser_offset + r]);
  }
}

template <AttentionConfig Config>
class LinearPrefill {
 public:
  explicit LinearPrefill(const PrefillArgs<Config>& args) : args_(args) {}

  void run() const {
    const std::int64_t count = jrt::detail::sequence_count(args_.sequences, args_.query.batch);
    for (std::int64_t b = 0; b < count; ++b) {
      for (std::int64_t h = 0; h < args_.query.heads; ++h) {
        head(b, h);
      }
    }
  }

 private:
  using Map = typename Config::FeatureMap;
  using Features = std::vector<double>;

  template <class E>
  [[nodiscard]] Features features_of_key(const E* x, bool padded, std::int64_t position) const {
    return key_features(args_.feature_map, padded ? std::vector<double>(Map::input_dim) : in_double(x, Map::input_dim),
                        position);
  }

  void head(std::int64_t b, std::int64_t h) const {
    const auto span = jrt::detail::sequence_span(args_.sequences, b, args_.query.tokens, args_.key_encoder.tokens);
    const std::int64_t kv = h / (args_.query.heads / args_.key.heads);
    constexpr bool keeps_pads = Config::Padding::keeps_padded_keys;
    const std::int64_t first = keeps_pads ? 0 : span.left_pad;
    const std::int64_t encoder = Config::Mask::reads_encoder ? span.prefix : 0;

    std::vector<Features> keys;
    std::vector<Features> encoder_keys;
    for (std::int64_t j = 0; j < span.tokens; ++j) {
      keys.push_back(
          features_of_key(args_.key.row(span.batch_row, span.first_token + j, kv), j < span.left_pad, span.position(j)));
    }
    for (std::int64_t j = 0; j < encoder; ++j) {
      encoder_keys.push_back(features_of_key(args_.key_encoder.row(span.encoder_row, span.encoder_first + j, kv),
                                             j < span.left_pad, span.position(j)));
    }
    for (std::int64_t i = 0; i < span.row_tokens; ++i) {
      auto* const output = args_.output.row(span.batch_row, span.first_token + i, h);
      Sums sums{std::vector<double>(Config::value_dim), 0};
      if (i >= first && i < span.tokens) {
        const auto* const row = args_.query.row(span.batch_row, span.first_token + i, h);
        const Features query = query_features(args_.feature_map, in_double(row, Map::input_dim), span.position(i));
        if (jrt::detail::reads_initial_state(args_.initial_state, args_.has_initial_state, b)) {
          add_state<StateFormatOf<Config>>(sums, query, args_.initial_state.pool.head(args_.initial_state.slot(b), kv));
        }
        for (std::int64_t j = first; j < encoder; ++j) {
          sums.add(dot(query, encoder_keys[static_cast<std::size_t>(j)]),
                   args_.value_encoder.row(span.encoder_row, span.encoder_first + j, kv));
        }
        const std::int64_t end = Config::Mask::reads_future ? span.tokens : i + 1;
        for (std::int64_t j = first; j < end; ++j) {
          sums.add(dot(query, keys[static_cast<std::size_t>(j)]),
                   args_.value.row(span.batch_row, span.first_token + j, kv));
        }
      }
      if (Config::Normaliser::uses_denominator && args_.denominators.data != nullptr) {
        using Denominator = jrt::detail::ConfigCompute<Config>;
        *args_.denominators.row(span.batch_row, span.first_token + i, h) = static_cast<Denominator>(sums.denominator);
      }
      const double factor = Config::Normaliser::factor(Config::Normaliser::uses_denominator ? sums.denominator : 0.0);
      for (int c = 0; c < Config::value_dim; ++c) {
        output[c] = convert<typename Config::Element>(sums.numerator[static_cast<std::size_t>(c)] * factor);
      }
    }
  }

  const PrefillArgs<Config>& args_;
};

}  // namespace detail

/// Outputs, and denominators if a view for them is given, as `jrt::prefill` defines them. The arguments must be valid; no
/// final state is written, no slot skipped.
template <AttentionConfig Config>
void prefill(const PrefillArgs<Config>& args) {
  detail::LinearPrefill<Config>(args).run();
}

}  // namespace jrt::reference
