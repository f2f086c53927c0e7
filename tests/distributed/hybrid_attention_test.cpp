// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <jrt/distributed/cpu.hpp>
#include <jrt/prefill.hpp>
#include <vector>

#include "distributed/pieces.hpp"

/// Hybrid attention, and a stack of it and a convolution, on ranks against one device.
namespace jrt::test {
namespace {

constexpr std::int64_t heads = 2;
constexpr std::int64_t query_heads = 4;
constexpr int dim = 4;
constexpr int value_dim = 5;
/// Long pieces are summed in parts, whatever device there is.
struct ShortSplit {
  static constexpr std::int64_t segments(std::int64_t tokens, std::int64_t /*heads_in_batch*/, std::int64_t /*workers*/) {
    return std::max<std::int64_t>(1, tokens / 48);
  }
};
struct Linear : PrefixLinearAttention<double, dim, value_dim> {
  using Split = ShortSplit;
};
using Hybrid = HybridAttention<Linear, WindowBeside<Linear, 6>>;
using Convolution = GatedConvolution<double, 3>;
using Model = Stack<Layer<Convolution, heads * dim>, Layer<Hybrid, heads>>;

/// A key projection that is convolved, then hybrid attention over it: layer 1 reads what layer 0 writes.
struct Tensors {
  Tensor<double> query, key, value, key_encoder, value_encoder, input, output, log_sum_exp, output_gradient;
  Tensor<double> query_gradient, key_gradient, value_gradient, key_encoder_gradient, value_encoder_gradient, input_gradient;
  std::vector<double> weight = random_tensor<double>({1, 1, 1, heads* dim * 3}, 21).values;
  StatePool<Model> final_states;

  Tensors(std::int64_t tokens, std::int64_t encoder, std::int64_t sequences) {
    query = random_tensor<double>({1, tokens, query_heads, dim}, 1);
    key = zero_tensor<double>({1, tokens, heads, dim});
    value = random_tensor<double>({1, tokens, heads, value_dim}, 3);
    key_encoder = random_tensor<double>({1, encoder, heads, dim}, 4);
    value_encoder = random_tensor<double>({1, encoder, heads, value_dim}, 5);
    input = random_tensor<double>({1, tokens, 1, heads * dim}, 6);
    output = zero_tensor<double>({1, tokens, query_heads, value_dim});
    log_sum_exp = zero_tensor<double>({1, tokens, query_heads, 1});
    output_gradient = random_tensor<double>({1, tokens, query_heads, value_dim}, 7);
    query_gradient = zero_tensor<double>(query.shape);
    key_gradient = zero_tensor<double>(key.shape);
    value_gradient = zero_tensor<double>(value.shape);
    key_encoder_gradient = zero_tensor<double>(key_encoder.shape);
    value_encoder_gradient = zero_tensor<double>(value_encoder.shape);
    input_gradient = zero_tensor<double>(input.shape);
    JRT_REQUIRE_OK(StatePool<Model>::allocate(sequences, 1, final_states));
  }

  PrefillArgs<Convolution> convolution() {
    PrefillArgs<Convolution> args;
    args.input = view_of(input);
    args.output = view_bthd(key.values.data(), {.tokens = key.shape.tokens, .dim = heads * dim});
    args.weight = weight.data();
    return args;
  }
  PrefillArgs<Hybrid> hybrid() {
    PrefillArgs<Hybrid> args;
    args.query = view_of(query);
    args.key = view_of(key);
    args.value = view_of(value);
    if (key_encoder.shape.tokens > 0) {
      args.key_encoder = view_of(key_encoder);
      args.value_encoder = view_of(value_encoder);
    }
    args.output = view_of(output);
    args.log_sum_exp = view_of(log_sum_exp);
    return args;
  }

  BackwardArgs<Convolution> convolution_gradients() {
    BackwardArgs<Convolution> args;
    args.input = view_of(input);
    args.weight = weight.data();
    args.output_gradient =
        view_bthd(static_cast<const double*>(key_gradient.values.data()), {.tokens = key.shape.tokens, .dim = heads * dim});
    args.input_gradient = view_of(input_gradient);
    return args;
  }
  BackwardArgs<Hybrid> hybrid_gradients() {
    const auto forward = hybrid();
    BackwardArgs<Hybrid> args;
    args.query = forward.query;
    args.key = forward.key;
    args.value = forward.value;
    args.key_encoder = forward.key_encoder;
    args.value_encoder = forward.value_encoder;
    args.output = forward.output;
    args.log_sum_exp = forward.log_sum_exp;
    args.output_gradient = view_of(output_gradient);
    args.query_gradient = view_of(query_gradient);
    args.key_gradient = view_of(key_gradient);
    args.value_gradient = view_of(value_gradient);
    if (key_encoder.shape.tokens > 0) {
      args.key_encoder_gradient = view_of(key_encoder_gradient);
      args.value_encoder_gradient = view_of(value_encoder_gradient);
    }
    return args;
  }

  /// Results of tokens, then of the encoder region.
  std::vector<Tensor<double>*> results() {
    return {&output, &log_sum_exp, &query_gradient, &key_gradient, &value_gradient, &input_gradient};
  }
  std::vector<Tensor<double>*> encoder_results() { return {&key_encoder_gradient, &value_encoder_gradient}; }
};

const auto no_layer = [](int) { return Status(); };

/// What ranks have.
std::vector<Tensors> divided(const Pieces& pieces) {
  const Tensors given(pieces.offsets().back(), pieces.offsets(true).back(), pieces.sequences());
  std::vector<Tensors> parts;
  for (int r = 0; r < pieces.ranks; ++r) {
    Tensors& part = parts.emplace_back(pieces.local_tokens(r), pieces.local_tokens(r, true), pieces.sequences());
    part.query = pieces.of_rank(given.query, r);
    part.value = pieces.of_rank(given.value, r);
    part.key_encoder = pieces.of_rank(given.key_encoder, r, true);
    part.value_encoder = pieces.of_rank(given.value_encoder, r, true);
    part.input = pieces.of_rank(given.input, r);
    part.output_gradient = pieces.of_rank(given.output_gradient, r);
  }
  return parts;
}

/// A rank's calls, forward and backward.
template <class C>
Status run_rank(Tensors& part, const Pieces& pieces, C& communicator) {
  const Cpu on;
  ContextPlan<Convolution> convolution;
  ContextPlan<Hybrid> hybrid;
  Pieces without_encoder = pieces;
  without_encoder.encoder_tokens.clear();
  Status status = ContextPlan<Convolution>::make(without_encoder.layout(), communicator.rank(), on, convolution);
  if (status.ok()) {
    status = ContextPlan<Hybrid>::make(pieces.layout(), communicator.rank(), on, hybrid);
  }
  if (!status.ok()) {
    return status;
  }
  ContextPrefillArgs<Model> args;
  args.layers = {ContextPrefillArgs<Convolution>{part.convolution(), &convolution},
                 ContextPrefillArgs<Hybrid>{part.hybrid(), &hybrid}};
  args.final_state = {part.final_states.view()};
  OwnWorkspace workspace(prefill_workspace_bytes(args, on));
  status = prefill(args, no_layer, communicator, workspace.view(), on);
  if (!status.ok()) {
    return status;
  }
  ContextBackwardArgs<Model> gradients;
  gradients.layers = {ContextBackwardArgs<Convolution>{part.convolution_gradients(), &convolution},
                      ContextBackwardArgs<Hybrid>{part.hybrid_gradients(), &hybrid}};
  OwnWorkspace gradient_workspace(backward_workspace_bytes(gradients, on));
  return backward(gradients, no_layer, communicator, gradient_workspace.view(), on);
}

template <class C>
void compare(const Pieces& pieces) {
  const auto offsets = pieces.offsets();
  const auto encoder_offsets = pieces.offsets(true);
  Tensors one(offsets.back(), encoder_offsets.back(), pieces.sequences());
  PrefillArgs<Model> model;
  model.layers = {one.convolution(), one.hybrid()};
  model.sequences.count = pieces.sequences();
  model.sequences.cu_seqlens = offsets.data();
  model.sequences.cu_encoder_seqlens = encoder_offsets.back() > 0 ? encoder_offsets.data() : nullptr;
  model.final_state = {one.final_states.view()};
  OwnWorkspace memory(prefill_workspace_bytes(model, Cpu{}));
  JRT_REQUIRE_OK(prefill(model, no_layer, memory.view(), Cpu{}));
  BackwardArgs<Model> model_gradients;
  model_gradients.layers = {one.convolution_gradients(), one.hybrid_gradients()};
  model_gradients.sequences = model.sequences;
  OwnWorkspace more(backward_workspace_bytes(model_gradients, Cpu{}));
  JRT_REQUIRE_OK(backward(model_gradients, no_layer, more.view(), Cpu{}));

  Tensors whole(offsets.back(), encoder_offsets.back(), pieces.sequences());
  std::vector<Tensors> parts = divided(pieces);
  const auto results = run_ranks<C>(pieces.ranks, [&](C& communicator) {
    return run_rank(parts[static_cast<std::size_t>(communicator.rank())], pieces, communicator);
  });
  JRT_REQUIRE_RANKS_OK(results);
  for (int r = 0; r < pieces.ranks; ++r) {
    Tensors& part = parts[static_cast<std::size_t>(r)];
    for (std::size_t i = 0; i < whole.results().size(); ++i) {
      pieces.put(*part.results()[i], r, *whole.results()[i]);
    }
    for (std::size_t i = 0; i < whole.encoder_results().size(); ++i) {
      pieces.put(*part.encoder_results()[i], r, *whole.encoder_results()[i], true);
    }
  }
  for (std::size_t i = 0; i < whole.results().size(); ++i) {
    CAPTURE(i);
    CHECK(relative_error(whole.results()[i]->values, one.results()[i]->values) <= 1e-12);
  }
  for (std::size_t i = 0; i < whole.encoder_results().size(); ++i) {
    CAPTURE(i);
    CHECK(relative_error(whole.encoder_results()[i]->values, one.encoder_results()[i]->values) <= 1e-12);
  }
  for (std::int64_t g = 0; g < pieces.sequences(); ++g) {
    int last = pieces.ranks - 1;
    while (last > 0 && !pieces.any_tokens(last, g)) {
      --last;
    }
    // The rings are the last bytes of a slot: equal to the bit.
    const auto ring = [&](StatePool<Model>& pool) {
      const auto slot = static_cast<std::int32_t>(g);
      const auto slots = layer_slots<1>(StateSlots<Model>{pool.view(), &slot});
      using Format = StateFormatOf<Hybrid>;
      const auto* const head = reinterpret_cast<const std::byte*>(slots.pool.head(slot, heads - 1));
      return std::vector<std::byte>(head + Format::window_offset_bytes, head + Format::head_bytes);
    };
    const auto sums = [&](StatePool<Model>& pool) {
      const auto view = layer_pool<1>(pool.view());
      const auto* const head = reinterpret_cast<const double*>(view.head(g, heads - 1));
      return std::vector<double>(head, head + StateFormatOf<Linear>::head_values);
    };
    if (pieces.layout().first_token(pieces.ranks, g) > 0) {
      CHECK(ring(parts[static_cast<std::size_t>(last)].final_states) == ring(one.final_states));
      CHECK(relative_error(sums(parts[static_cast<std::size_t>(last)].final_states), sums(one.final_states)) <= 1e-12);
    }
  }
}

TEST_CASE("a stack with hybrid attention on ranks agrees with one device") {
  for (const Pieces& pieces : {
           Pieces{1, {50}, {20}},
           Pieces{2, {40, 30}, {10, 25}},
           Pieces{3, {40, 0, 20}},
           Pieces{4, {3, 4, 2, 30}, {3, 0, 2, 8}},  // shorter than the window
           Pieces{3, {22, 9, 0, /**/ 0, 3, 4, /**/ 0, 1, 30}, {20, 0, 0, /**/ 0, 5, 0, /**/ 0, 4, 2}},  // packed
           Pieces{2, {19, 17, 15, 16}, {4, 3, 2, 1}},
           Pieces{3, {200, 150, 170}, {120, 0, 100}},  // in parts
           Pieces{2, {110, 90, /**/ 3, 130}, {60, 150, /**/ 50, 0}},
       }) {
    CAPTURE(pieces.ranks);
    compare<ThreadCommunicator>(pieces);
    compare<WorkFirst>(pieces);
  }
}

TEST_CASE("a rank that fails in any exchange of a stack leaves nobody waiting") {
  const Pieces pieces{2, {40, 30}, {10, 25}};
  check_failures([&] {
    std::vector<Tensors> parts = divided(pieces);
    return run_ranks<Failing>(2, [&](Failing& communicator) {
      return run_rank(parts[static_cast<std::size_t>(communicator.rank())], pieces, communicator);
    });
  });
}

TEST_CASE("hybrid attention refuses a state of a divided sequence") {
  const Pieces pieces{2, {50, 9}, {}, {1}};
  ContextPlan<Hybrid> plan;
  const Status status = ContextPlan<Hybrid>::make(pieces.layout(), 0, Cpu{}, plan);
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(status.message().find("has an initial state and lies on more than one rank") != std::string_view::npos);
}

}  // namespace
}  // namespace jrt::test
