// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"

/// The oracle: prefix linear attention as the formula reads, in double, pair by pair, without state or chunks. For tests,
/// of this library and of users' own policies; O(T²) and it allocates.
namespace jrt::reference {

/// Numerator row and denominator of one query over the pairs that it sees, in double.
struct Sums {
  std::vector<double> numerator;
  double denominator = 0;
};

namespace detail {

template <AttentionConfig Config>
class Prefill {
 public:
  explicit Prefill(const PrefillArgs<Config>& args) : args_(args) {}

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
  [[nodiscard]] Features expanded(const E* x, bool zeroed, bool is_query, std::int64_t position) const {
    double input[Map::input_dim] = {};
    for (int i = 0; i < Map::input_dim && !zeroed; ++i) {
      input[i] = convert<double>(x[i]);
    }
    Features features(Map::feature_dim);
    if (is_query) {
      expand_query(args_.feature_map, input, features.data(), position);
    } else {
      expand_key(args_.feature_map, input, features.data(), position);
    }
    return features;
  }

  static double inner(const Features& a, const double* b, std::int64_t stride) {
    double sum = 0;
    for (std::size_t r = 0; r < a.size(); ++r) {
      sum += a[r] * b[static_cast<std::int64_t>(r) * stride];
    }
    return sum;
  }

  template <class E>
  static void add_pair(Sums& sums, double weight, const E* value) {
    sums.denominator += weight;
    for (int c = 0; c < Config::value_dim; ++c) {
      sums.numerator[static_cast<std::size_t>(c)] += weight * convert<double>(value[c]);
    }
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
          expanded(args_.key.row(span.batch_row, span.first_token + j, kv), j < span.left_pad, false, span.position(j)));
    }
    for (std::int64_t j = 0; j < encoder; ++j) {
      encoder_keys.push_back(expanded(args_.key_encoder.row(span.encoder_row, span.encoder_first + j, kv),
                                      j < span.left_pad, false, span.position(j)));
    }
    for (std::int64_t i = 0; i < span.row_tokens; ++i) {
      auto* const output = args_.output.row(span.batch_row, span.first_token + i, h);
      Sums sums{std::vector<double>(Config::value_dim), 0};
      if (i >= first && i < span.tokens) {
        const Features query =
            expanded(args_.query.row(span.batch_row, span.first_token + i, h), false, true, span.position(i));
        add_initial_state(sums, query, b, kv);
        for (std::int64_t j = first; j < encoder; ++j) {
          add_pair(sums, inner(query, encoder_keys[static_cast<std::size_t>(j)].data(), 1),
                   args_.value_encoder.row(span.encoder_row, span.encoder_first + j, kv));
        }
        const std::int64_t end = Config::Mask::reads_future ? span.tokens : i + 1;
        for (std::int64_t j = first; j < end; ++j) {
          add_pair(sums, inner(query, keys[static_cast<std::size_t>(j)].data(), 1),
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

  void add_initial_state(Sums& sums, const Features& query, std::int64_t b, std::int64_t kv) const {
    using Format = StateFormatOf<Config>;
    if (!jrt::detail::reads_initial_state(args_.initial_state, args_.has_initial_state, b)) {
      return;
    }
    const auto* const state = args_.initial_state.pool.head(args_.initial_state.slot(b), kv);
    std::vector<double> numbers(static_cast<std::size_t>(Format::normaliser_offset + Format::rows));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      numbers[i] = convert<double>(state[i]);
    }
    for (int c = 0; c < Config::value_dim; ++c) {
      sums.numerator[static_cast<std::size_t>(c)] += inner(query, numbers.data() + c, Format::columns);
    }
    sums.denominator += inner(query, numbers.data() + Format::normaliser_offset, 1);
  }

  const PrefillArgs<Config>& args_;
};

}  // namespace detail

/// Outputs, and denominators if there is a place for them, as `jrt::prefill` defines them. The arguments must be valid; no
/// final state is written, no slot skipped.
template <AttentionConfig Config>
void prefill(const PrefillArgs<Config>& args) {
  detail::Prefill<Config>(args).run();
}

}  // namespace jrt::reference
