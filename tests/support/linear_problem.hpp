// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <jrt/decode.hpp>
#include <jrt/policy/favor.hpp>
#include <jrt/prefill.hpp>
#include <jrt/reference/linear_attention.hpp>
#include <string>
#include <type_traits>
#include <vector>

#include "support/tensor.hpp"

/// One call's inputs as plain values, and functions that place them, run an operation on a backend and read the results.
namespace jrt::test {

#define JRT_REQUIRE_OK(call)                 \
  do {                                       \
    const ::jrt::Status jrt_status = (call); \
    INFO(std::string(jrt_status.message())); \
    REQUIRE(jrt_status.ok());                \
  } while (false)

struct ProblemShape {
  std::int64_t batch = 2;
  std::int64_t tokens = 10;
  std::int64_t prefix = 0;
  std::int64_t heads = 2;
  std::int64_t query_heads = 2;
};

/// `Sequences` with its arrays owned.
struct SequenceLists {
  std::int64_t count = 0;
  std::vector<std::int32_t> cu_seqlens{};
  std::vector<std::int32_t> cu_encoder_seqlens{};
  std::vector<std::int32_t> seq_lens{};
  std::vector<std::int32_t> prefix_lens{};
  std::vector<std::int32_t> left_pads{};
  std::vector<std::int32_t> first_positions{};
};

/// The same for the oracles.
inline Sequences view_of(const SequenceLists& lists) {
  const auto pointer = [](const std::vector<std::int32_t>& list) { return list.empty() ? nullptr : list.data(); };
  return {lists.count,
          pointer(lists.cu_seqlens),
          pointer(lists.cu_encoder_seqlens),
          pointer(lists.seq_lens),
          pointer(lists.prefix_lens),
          pointer(lists.left_pads),
          pointer(lists.first_positions)};
}

/// The same in a backend's memory.
template <class Backend>
class PlacedSequences {
 public:
  explicit PlacedSequences(const SequenceLists& lists)
      : lists_{Array(lists.cu_seqlens),  Array(lists.cu_encoder_seqlens), Array(lists.seq_lens),
               Array(lists.prefix_lens), Array(lists.left_pads),          Array(lists.first_positions)},
        count_(lists.count),
        given_{!lists.cu_seqlens.empty(),  !lists.cu_encoder_seqlens.empty(), !lists.seq_lens.empty(),
               !lists.prefix_lens.empty(), !lists.left_pads.empty(),          !lists.first_positions.empty()} {}

  Sequences view() { return {count_, pointer(0), pointer(1), pointer(2), pointer(3), pointer(4), pointer(5)}; }

 private:
  using Array = typename Backend::template Array<std::int32_t>;
  const std::int32_t* pointer(int i) { return given_[i] ? lists_[i].data() : nullptr; }

  Array lists_[6];
  std::int64_t count_;
  bool given_[6];
};

/// A feature map as the backend can use it: arrays that it points to are in the backend's memory.
template <class Backend, class Map>
class PlacedMap {
 public:
  explicit PlacedMap(const Map& map) : map_(map) {}
  Map view() { return map_; }

 private:
  Map map_;
};
template <class Backend, int d, int m>
class PlacedMap<Backend, FavorPlus<d, m>> {
 public:
  explicit PlacedMap(const FavorPlus<d, m>& map) : projection_({map.projection, map.projection + d * m}) {}
  FavorPlus<d, m> view() { return {projection_.data()}; }

 private:
  typename Backend::template Array<float> projection_;
};

template <class Config>
struct Problem {
  using E = typename Config::Element;
  static constexpr int d = Config::FeatureMap::input_dim;
  static constexpr int dv = Config::value_dim;

  Tensor<E> query;
  Tensor<E> key;
  Tensor<E> value;
  Tensor<E> key_encoder;
  Tensor<E> value_encoder;
  SequenceLists sequences;
  typename Config::FeatureMap map{};

  Problem() = default;
  explicit Problem(const ProblemShape& shape, unsigned seed = 1)
      : query(random_tensor<E>({shape.batch, shape.tokens, shape.query_heads, d}, seed)),
        key(random_tensor<E>({shape.batch, shape.tokens, shape.heads, d}, seed + 1)),
        value(random_tensor<E>({shape.batch, shape.tokens, shape.heads, dv}, seed + 2)),
        key_encoder(random_tensor<E>({shape.batch, shape.prefix, shape.heads, d}, seed + 3)),
        value_encoder(random_tensor<E>({shape.batch, shape.prefix, shape.heads, dv}, seed + 4)) {}

  [[nodiscard]] TensorShape output_shape() const { return {query.shape.batch, query.shape.tokens, query.shape.heads, dv}; }
  [[nodiscard]] TensorShape denominators_shape() const {
    return {query.shape.batch, query.shape.tokens, query.shape.heads, 1};
  }
  [[nodiscard]] std::int64_t sequence_count() const {
    return sequences.cu_seqlens.empty() ? query.shape.batch : sequences.count;
  }
};

/// The same numbers in double, for the oracle.
template <class Config>
struct InDouble : Config {
  using Element = double;
  using StateScalar = double;
  using Products = FloatProducts;
};

/// The bound on errors of an operator's outputs.
template <class Config>
constexpr double output_tolerance() {
  const bool split = std::is_same_v<typename Config::Element, float> && detail::ProductsOf<Config>::type::splits_numbers;
  return split ? 1e-5 : tolerance<typename Config::Element>();
}

template <class Config>
Problem<InDouble<Config>> in_double(const Problem<Config>& problem) {
  Problem<InDouble<Config>> result;
  result.query = converted<double>(problem.query);
  result.key = converted<double>(problem.key);
  result.value = converted<double>(problem.value);
  result.key_encoder = converted<double>(problem.key_encoder);
  result.value_encoder = converted<double>(problem.value_encoder);
  result.sequences = problem.sequences;
  result.map = problem.map;
  return result;
}

/// The numbers of some states: slots x heads, each S then z then padding.
template <class Config>
using StateNumbers = std::vector<typename Config::StateScalar>;

template <class Config>
std::size_t state_numbers(std::int64_t slots, std::int64_t heads) {
  return static_cast<std::size_t>(slots * heads * StateFormatOf<Config>::head_elements);
}

/// Numbers that look like the state of a few tokens: sums over random keys, in `slots` slots.
template <class Config>
StateNumbers<Config> random_states(std::int64_t slots, std::int64_t heads, unsigned seed,
                                   [[maybe_unused]] const typename Config::FeatureMap& map = {}) {
  using Map = typename Config::FeatureMap;
  using Format = StateFormatOf<Config>;
  StateNumbers<Config> states(state_numbers<Config>(slots, heads));
  const auto keys = random_tensor<double>({slots, 3, heads, Config::FeatureMap::input_dim}, seed);
  const auto values = random_tensor<double>({slots, 3, heads, Config::value_dim}, seed + 1);
  for (std::int64_t s = 0; s < slots; ++s) {
    for (std::int64_t h = 0; h < heads; ++h) {
      std::vector<double> sums(static_cast<std::size_t>(Format::normaliser_offset + Format::rows));
      for (std::int64_t t = 0; t < 3; ++t) {
        std::vector<double> features(Format::rows);
        if constexpr (std::is_empty_v<Map>) {  // g++ 13 takes a parameter without data for uninitialised
          expand_key(Map{}, &keys.at(s, t, h, 0), features.data(), t + 1);
        } else {
          expand_key(map, &keys.at(s, t, h, 0), features.data(), t + 1);
        }
        for (int r = 0; r < Format::rows; ++r) {
          for (int c = 0; c < Format::columns; ++c) {
            sums[static_cast<std::size_t>(r * Format::columns + c)] +=
                features[static_cast<std::size_t>(r)] * values.at(s, t, h, c);
          }
          sums[static_cast<std::size_t>(Format::normaliser_offset + r)] += features[static_cast<std::size_t>(r)];
        }
      }
      for (std::size_t i = 0; i < sums.size(); ++i) {
        states[static_cast<std::size_t>((s * heads + h) * Format::head_elements) + i] =
            convert<typename Config::StateScalar>(sums[i]);
      }
    }
  }
  return states;
}

/// φ(q)ᵀz of every query.
template <class Config>
using Denominators = Tensor<jrt::detail::ConfigCompute<Config>>;

/// What a run gave: outputs, the final states of all slots (S, z and padding), and denominators if it was told to.
template <class Config>
struct Results {
  Tensor<typename Config::Element> output;
  StateNumbers<Config> states;
  Denominators<Config> denominators{};
};

struct RunOptions {
  Layout layout = Layout::bthd;
  std::vector<std::uint8_t> has_initial_state{};
  bool denominators = false;
};

/// Prefill from `initial` (one slot per sequence; empty: none) on `Backend`. Also checks that nothing around the output was
/// touched.
template <class Backend, class Config>
Results<Config> run_prefill(const Problem<Config>& problem, const StateNumbers<Config>& initial = {},
                            const RunOptions& options = {}) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  const std::int64_t heads = problem.key.shape.heads;
  const std::int64_t slots = problem.sequence_count();
  Placed<Backend, E> query(problem.query, options.layout);
  Placed<Backend, E> key(problem.key, options.layout);
  Placed<Backend, E> value(problem.value, options.layout);
  Placed<Backend, E> key_encoder(problem.key_encoder, options.layout);
  Placed<Backend, E> value_encoder(problem.value_encoder, options.layout);
  Placed<Backend, E> output(problem.output_shape(), options.layout);
  Placed<Backend, jrt::detail::ConfigCompute<Config>> denominators(problem.denominators_shape(), options.layout);
  PlacedSequences<Backend> sequences(problem.sequences);
  typename Backend::template Array<typename Config::StateScalar> initial_states(initial);
  typename Backend::template Array<typename Config::StateScalar> final_states(
      StateNumbers<Config>(state_numbers<Config>(slots, heads)));
  typename Backend::template Array<std::uint8_t> has_initial(options.has_initial_state);

  PrefillArgs<Config> args;
  args.query = query.view();
  args.key = key.view();
  args.value = value.view();
  if (Config::Mask::reads_encoder) {
    args.key_encoder = key_encoder.view();
    args.value_encoder = value_encoder.view();
  }
  args.output = output.view();
  if (options.denominators) {
    args.denominators = denominators.view();
  }
  args.sequences = sequences.view();
  if (!initial.empty()) {
    args.initial_state = {view_pool<Format>(initial_states.data(), slots, heads)};
  }
  if (!options.has_initial_state.empty()) {
    args.has_initial_state = has_initial.data();
  }
  args.final_state = {view_pool<Format>(final_states.data(), slots, heads)};
  PlacedMap<Backend, typename Config::FeatureMap> map(problem.map);
  args.feature_map = map.view();
  JRT_REQUIRE_OK(prefill(args, Backend::execution()));
  CHECK(output.surroundings_intact());
  CHECK(denominators.surroundings_intact());
  return {output.read(), final_states.read(), options.denominators ? denominators.read() : Denominators<Config>{}};
}

/// The oracle's outputs, and denominators if there is a place for them, for the same problem, in double.
template <class Config>
Tensor<double> reference_output(const Problem<Config>& problem, const StateNumbers<Config>& initial = {},
                                Tensor<double>* denominators = nullptr) {
  using Double = InDouble<Config>;
  using Format = StateFormatOf<Double>;
  Problem<Double> exact = in_double(problem);
  auto output = zero_tensor<double>(exact.output_shape());
  std::vector<double> states;
  for (const auto number : initial) {
    states.push_back(convert<double>(number));
  }
  PrefillArgs<Double> args;
  args.query = view_of(exact.query);
  args.key = view_of(exact.key);
  args.value = view_of(exact.value);
  args.key_encoder = view_of(exact.key_encoder);
  args.value_encoder = view_of(exact.value_encoder);
  args.output = view_of(output);
  if (denominators != nullptr) {
    *denominators = {exact.denominators_shape(), std::vector<double>(element_count(exact.denominators_shape()))};
    args.denominators = view_of(*denominators);
  }
  args.sequences = view_of(problem.sequences);
  if (!states.empty()) {
    args.initial_state = {view_pool<Format>(states.data(), problem.sequence_count(), problem.key.shape.heads)};
  }
  args.feature_map = problem.map;
  reference::prefill(args);
  return output;
}

/// Numbers of states without the padding between heads, for comparison by norm.
template <class Format>
std::vector<double> without_padding(const std::vector<typename Format::Scalar>& states) {
  std::vector<double> used;
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (static_cast<std::int64_t>(i) % Format::head_elements < Format::normaliser_offset + Format::rows) {
      used.push_back(convert<double>(states[i]));
    }
  }
  return used;
}
template <class Config>
std::vector<double> used_numbers(const StateNumbers<Config>& states) {
  return without_padding<StateFormatOf<Config>>(states);
}

/// `part`, which begins with token `first` of `whole`, goes there.
template <class E>
void put_tokens(const Tensor<E>& part, std::int64_t first, Tensor<E>& whole) {
  for (std::int64_t b = 0; b < part.shape.batch; ++b) {
    std::copy(part.values.data() + part.index(b, 0, 0, 0),
              part.values.data() + part.index(b, 0, 0, 0) + part.shape.tokens * part.shape.heads * part.shape.dim,
              whole.values.data() + whole.index(b, first, 0, 0));
  }
}

/// Steps through `tokens` tokens of the problem from `first` on, `width` at a time, updating `states` in place; the outputs
/// of all steps, one after the other, and their denominators if there is a place for them.
template <class Backend, class Config>
Tensor<typename Config::Element> run_decode(const Problem<Config>& problem, std::int64_t first, std::int64_t tokens,
                                            StateNumbers<Config>& states, std::int64_t width = 1,
                                            Denominators<Config>* denominators = nullptr) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  const std::int64_t batch = problem.query.shape.batch;
  const std::int64_t heads = problem.key.shape.heads;
  Tensor<E> outputs{{batch, tokens, problem.query.shape.heads, Config::value_dim}, {}};
  outputs.values.resize(element_count(outputs.shape));
  if (denominators != nullptr) {
    denominators->shape = {batch, tokens, problem.query.shape.heads, 1};
    denominators->values.resize(element_count(denominators->shape));
  }
  typename Backend::template Array<typename Config::StateScalar> pool(states);
  for (std::int64_t t = 0; t < tokens; t += width) {
    const std::int64_t step = std::min(width, tokens - t);
    Placed<Backend, E> query(token_slice(problem.query, first + t, step), Layout::spaced);
    Placed<Backend, E> key(token_slice(problem.key, first + t, step), Layout::bhtd);
    Placed<Backend, E> value(token_slice(problem.value, first + t, step), Layout::packed);
    Placed<Backend, E> output(TensorShape{batch, step, problem.query.shape.heads, Config::value_dim}, Layout::spaced);
    Placed<Backend, jrt::detail::ConfigCompute<Config>> sums(TensorShape{batch, step, problem.query.shape.heads, 1},
                                                             Layout::spaced);
    typename Backend::template Array<std::int32_t> positions(
        std::vector<std::int32_t>(static_cast<std::size_t>(batch), static_cast<std::int32_t>(first + t)));
    DecodeArgs<Config> args;
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    args.output = output.view();
    if (denominators != nullptr) {
      args.denominators = sums.view();
    }
    args.source = {view_pool<Format>(pool.data(), batch, heads)};
    args.first_positions = positions.data();
    PlacedMap<Backend, typename Config::FeatureMap> map(problem.map);
    args.feature_map = map.view();
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
    CHECK(output.surroundings_intact());
    CHECK(sums.surroundings_intact());
    put_tokens(output.read(), t, outputs);
    if (denominators != nullptr) {
      put_tokens(sums.read(), t, *denominators);
    }
  }
  states = pool.read();
  return outputs;
}

}  // namespace jrt::test
