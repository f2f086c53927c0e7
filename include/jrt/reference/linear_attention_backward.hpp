// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "jrt/backward.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/feature_map.hpp"
#include "jrt/reference/linear_attention.hpp"
#include "jrt/reference/sums.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// The oracle of linear attention's gradients: the chain rule pair by pair, in double. With w_ij = φ(q_i)·φ(k_j) for every
/// pair that query i sees, o_i = Σ_j w_ij v_j and n_i = Σ_j w_ij,
///
///     y_i = f(n_i) o_i,    do_i = f(n_i) dy_i,    dn_i = f'(n_i) (o_i · dy_i),
///     dw_ij = do_i · v_j + dn_i,    dφ(q_i) = Σ_j dw_ij φ(k_j),    dφ(k_j) = Σ_i dw_ij φ(q_i),    dv_j = Σ_i w_ij do_i.
///
/// o and n are computed anew, so the saved outputs and denominators are not read. For tests; O(T² · D) and it allocates.
namespace jrt::reference {

namespace detail {

template <AttentionConfig Config>
class LinearBackward {
 public:
  explicit LinearBackward(const BackwardArgs<Config>& args) : args_(args) {}

  void run() const {
    const std::int64_t count = jrt::detail::sequence_count(args_.sequences, args_.query.batch);
    for (std::int64_t b = 0; b < count; ++b) {
      for (std::int64_t h = 0; h < args_.key.heads; ++h) {
        head(b, h);
      }
    }
  }

 private:
  using Map = typename Config::FeatureMap;
  using GradientFormat = StateGradientFormatOf<Config>;
  using Numbers = std::vector<double>;

  /// A key and its value, both with their gradients; of its features, not of the key itself.
  struct Pair {
    Numbers features;
    Numbers value;
    Numbers features_gradient = Numbers(Map::feature_dim);
    Numbers value_gradient = Numbers(Config::value_dim);
  };

  /// Sums and their gradients.
  struct State {
    Numbers sums = Numbers(std::size_t{Map::feature_dim} * Config::value_dim);
    Numbers normaliser = Numbers(Map::feature_dim);

    template <class Scalar>
    void read(const Scalar* stored) {
      for (std::size_t i = 0; i < sums.size(); ++i) {
        sums[i] = convert<double>(stored[i]);
      }
      for (std::size_t i = 0; i < normaliser.size(); ++i) {
        normaliser[i] = convert<double>(stored[sums.size() + i]);
      }
    }
    template <class Scalar>
    void write(Scalar* stored) const {
      for (std::size_t i = 0; i < sums.size(); ++i) {
        stored[i] = static_cast<Scalar>(sums[i]);
      }
      for (std::size_t i = 0; i < normaliser.size(); ++i) {
        stored[sums.size() + i] = static_cast<Scalar>(normaliser[i]);
      }
    }
    /// Row r times [vector, last].
    [[nodiscard]] double row_dot(std::size_t r, const Numbers& vector, double last) const {
      double sum = normaliser[r] * last;
      for (std::size_t c = 0; c < vector.size(); ++c) {
        sum += sums[r * vector.size() + c] * vector[c];
      }
      return sum;
    }
    void add_outer(const Numbers& features, const Numbers& vector, double last) {
      for (std::size_t r = 0; r < features.size(); ++r) {
        normaliser[r] += features[r] * last;
        for (std::size_t c = 0; c < vector.size(); ++c) {
          sums[r * vector.size() + c] += features[r] * vector[c];
        }
      }
    }
  };

  /// Pairs [first, end) of a sequence; before `zero_end` their keys are treated as zero.
  template <class E>
  [[nodiscard]] std::vector<Pair> pairs(const TensorView<const E>& key, const TensorView<const E>& value, std::int64_t row,
                                        std::int64_t offset, std::int64_t h, std::int64_t end,
                                        const jrt::detail::SequenceSpan& span) const {
    std::vector<Pair> result;
    for (std::int64_t j = 0; j < end; ++j) {
      const Numbers x =
          j < span.left_pad ? Numbers(Map::input_dim) : in_double(key.row(row, offset + j, h), Map::input_dim);
      Pair pair;
      pair.features = key_features(args_.feature_map, x, span.position(j));
      pair.value = in_double(value.row(row, offset + j, h), Config::value_dim);
      result.push_back(pair);
    }
    return result;
  }

  void head(std::int64_t b, std::int64_t h) const {
    const auto span = jrt::detail::sequence_span(args_.sequences, b, args_.query.tokens, args_.key_encoder.tokens);
    const std::int64_t first = Config::Padding::keeps_padded_keys ? 0 : span.left_pad;
    const std::int64_t group = args_.query.heads / args_.key.heads;
    const std::int64_t prefix = Config::Mask::reads_encoder ? span.prefix : 0;
    auto tokens = pairs(args_.key, args_.value, span.batch_row, span.first_token, h, span.tokens, span);
    auto encoder = pairs(args_.key_encoder, args_.value_encoder, span.encoder_row, span.encoder_first, h, prefix, span);
    State initial;
    State initial_gradient;
    if (jrt::detail::reads_initial_state(args_.initial_state, args_.has_initial_state, b)) {
      initial.read(args_.initial_state.pool.head(args_.initial_state.slot(b), h));
    }
    State final_gradient;
    if (!args_.final_state_gradient.empty()) {
      final_gradient.read(args_.final_state_gradient.pool.head(args_.final_state_gradient.slot(b), h));
      initial_gradient = final_gradient;
      for (std::vector<Pair>* const some : {&tokens, &encoder}) {
        for (auto j = static_cast<std::size_t>(first); j < some->size(); ++j) {
          add_state_gradient(final_gradient, (*some)[j]);
        }
      }
    }
    for (std::int64_t i = 0; i < span.row_tokens; ++i) {
      for (std::int64_t g = h * group; g < (h + 1) * group; ++g) {
        Numbers gradient(Map::input_dim);
        if (i >= first && i < span.tokens) {
          const Numbers x = in_double(args_.query.row(span.batch_row, span.first_token + i, g), Map::input_dim);
          const Numbers dy =
              in_double(args_.output_gradient.row(span.batch_row, span.first_token + i, g), Config::value_dim);
          std::vector<Pair*> seen;
          for (std::int64_t j = first; j < prefix; ++j) {
            seen.push_back(&encoder[static_cast<std::size_t>(j)]);
          }
          for (std::int64_t j = first; j < (Config::Mask::reads_future ? span.tokens : i + 1); ++j) {
            seen.push_back(&tokens[static_cast<std::size_t>(j)]);
          }
          const Numbers features_gradient =
              query(query_features(args_.feature_map, x, span.position(i)), dy, seen, initial, initial_gradient);
          expand_query_vjp(args_.feature_map, x.data(), features_gradient.data(), gradient.data(), span.position(i));
        }
        write_row(args_.query_gradient, span.batch_row, span.first_token + i, g, gradient);
      }
    }
    write_pairs(tokens, first, span, h, span.row_tokens,
                {args_.key, args_.key_gradient, args_.value_gradient, span.batch_row, span.first_token});
    write_pairs(encoder, first, span, h, span.encoder_tokens,
                {args_.key_encoder, args_.key_encoder_gradient, args_.value_encoder_gradient, span.encoder_row,
                 span.encoder_first});
    if (!args_.initial_state_gradient.empty()) {
      initial_gradient.write(args_.initial_state_gradient.pool.head(args_.initial_state_gradient.slot(b), h));
    }
  }

  static void add_state_gradient(const State& gradient, Pair& pair) {
    for (std::size_t r = 0; r < pair.features.size(); ++r) {
      pair.features_gradient[r] += gradient.row_dot(r, pair.value, 1);
      for (std::size_t c = 0; c < pair.value.size(); ++c) {
        pair.value_gradient[c] += gradient.sums[r * pair.value.size() + c] * pair.features[r];
      }
    }
  }

  /// Gradient of one query's features; adds to those of what it sees.
  static Numbers query(const Numbers& features, const Numbers& dy, const std::vector<Pair*>& seen, const State& initial,
                       State& initial_gradient) {
    Sums sums{Numbers(Config::value_dim), 0};
    for (std::size_t r = 0; r < features.size(); ++r) {
      sums.denominator += features[r] * initial.normaliser[r];
      for (std::size_t c = 0; c < dy.size(); ++c) {
        sums.numerator[c] += features[r] * initial.sums[r * dy.size() + c];
      }
    }
    for (const Pair* const pair : seen) {
      sums.add(dot(features, pair->features), pair->value.data());
    }
    const double denominator = Config::Normaliser::uses_denominator ? sums.denominator : 0;
    const double factor = Config::Normaliser::factor(denominator);
    Numbers numerator_gradient = dy;
    for (double& gradient : numerator_gradient) {
      gradient *= factor;
    }
    const double denominator_gradient = Config::Normaliser::factor_derivative(denominator) * dot(sums.numerator, dy);

    Numbers features_gradient(features.size());
    for (std::size_t r = 0; r < features.size(); ++r) {
      features_gradient[r] = initial.row_dot(r, numerator_gradient, denominator_gradient);
    }
    initial_gradient.add_outer(features, numerator_gradient, denominator_gradient);
    for (Pair* const pair : seen) {
      const double weight = dot(features, pair->features);
      const double weight_gradient = dot(numerator_gradient, pair->value) + denominator_gradient;
      for (std::size_t r = 0; r < features.size(); ++r) {
        features_gradient[r] += weight_gradient * pair->features[r];
        pair->features_gradient[r] += weight_gradient * features[r];
      }
      for (std::size_t c = 0; c < dy.size(); ++c) {
        pair->value_gradient[c] += weight * numerator_gradient[c];
      }
    }
    return features_gradient;
  }

  /// Where gradients of keys and values go.
  template <class E>
  struct Target {
    TensorView<const E> key;
    TensorView<E> key_gradient;
    TensorView<E> value_gradient;
    std::int64_t row;
    std::int64_t offset;
  };

  /// Gradients of pairs [first, …), and 0 for the other positions of the sequence, `end` in all.
  template <class E = typename Config::Element>
  void write_pairs(const std::vector<Pair>& all, std::int64_t first, const jrt::detail::SequenceSpan& span, std::int64_t h,
                   std::int64_t end, const Target<E>& to) const {
    for (std::int64_t j = 0; j < end; ++j) {
      Numbers key_gradient(Map::input_dim);
      Numbers value_gradient(Config::value_dim);
      if (j >= first && j < static_cast<std::int64_t>(all.size())) {
        const Pair& pair = all[static_cast<std::size_t>(j)];
        value_gradient = pair.value_gradient;
        if (j >= span.left_pad) {  // a padded key that is kept was replaced by 0
          const Numbers x = in_double(to.key.row(to.row, to.offset + j, h), Map::input_dim);
          expand_key_vjp(args_.feature_map, x.data(), pair.features_gradient.data(), key_gradient.data(), span.position(j));
        }
      }
      write_row(to.key_gradient, to.row, to.offset + j, h, key_gradient);
      write_row(to.value_gradient, to.row, to.offset + j, h, value_gradient);
    }
  }

  template <class E>
  static void write_row(const TensorView<E>& view, std::int64_t row, std::int64_t token, std::int64_t h,
                        const Numbers& numbers) {
    if (view.data != nullptr) {
      for (std::size_t i = 0; i < numbers.size(); ++i) {
        view.row(row, token, h)[i] = convert<E>(numbers[i]);
      }
    }
  }

  const BackwardArgs<Config>& args_;
};

}  // namespace detail

/// Gradients as `jrt::backward` defines them. The arguments must be valid; no slot is skipped.
template <AttentionConfig Config>
void backward(const BackwardArgs<Config>& args) {
  detail::LinearBackward<Config>(args).run();
}

}  // namespace jrt::reference
