// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/distributed/cpu.hpp>
#include <jrt/policy/rotary.hpp>
#include <jrt/prefill.hpp>
#include <string_view>
#include <thread>
#include <vector>

#include "distributed/pieces.hpp"

/// Window and convolution on ranks against one device.
namespace jrt::test {
namespace {

constexpr std::int64_t heads = 2;
constexpr std::int64_t query_heads = 4;
constexpr int dim = 4;
constexpr std::int64_t channels = 6;

struct Window : SlidingWindowAttention<double, dim, 7> {};
struct RotatedWindow : SlidingWindowAttention<double, dim, 7> {
  using Rotary = RotaryHalves<dim>;
};
using Convolution = GatedConvolution<double, 4>;

/// Tensors of either mixer, whose inputs are random and whose results are 0; states of `Format`.
template <class Config>
struct Batch;

template <WindowConfig Config>
struct Batch<Config> {
  Tensor<double> query, key, value, output_gradient;
  Tensor<double> output, log_sum_exp, query_gradient, key_gradient, value_gradient;

  static constexpr std::int64_t state_heads = heads;

  template <class Self, class Function>
  static void for_inputs(Self& self, const Function& function) {
    function(self.query, query_heads, dim);
    function(self.key, heads, dim);
    function(self.value, heads, dim);
    function(self.output_gradient, query_heads, dim);
  }
  template <class Self, class Function>
  static void for_results(Self& self, const Function& function) {
    function(self.output, query_heads, dim);
    function(self.log_sum_exp, query_heads, 1);
    function(self.query_gradient, query_heads, dim);
    function(self.key_gradient, heads, dim);
    function(self.value_gradient, heads, dim);
  }
  PrefillArgs<Config> forward() {
    PrefillArgs<Config> args;
    args.query = view_of(query);
    args.key = view_of(key);
    args.value = view_of(value);
    args.output = view_of(output);
    args.log_sum_exp = view_of(log_sum_exp);
    return args;
  }
  BackwardArgs<Config> backward() {
    BackwardArgs<Config> args;
    args.query = view_of(query);
    args.key = view_of(key);
    args.value = view_of(value);
    args.output = view_of(output);
    args.log_sum_exp = view_of(log_sum_exp);
    args.output_gradient = view_of(output_gradient);
    args.query_gradient = view_of(query_gradient);
    args.key_gradient = view_of(key_gradient);
    args.value_gradient = view_of(value_gradient);
    return args;
  }
};

template <ConvolutionConfig Config>
struct Batch<Config> {
  Tensor<double> input, gate, output_gradient;
  Tensor<double> output, input_gradient, gate_gradient;
  std::vector<double> weight = random_tensor<double>({1, 1, 1, channels* Config::kernel_width}, 21).values;
  std::vector<double> bias = random_tensor<double>({1, 1, 1, channels}, 22).values;
  std::vector<double> weight_gradient = std::vector<double>(channels * Config::kernel_width);
  std::vector<double> bias_gradient = std::vector<double>(channels);
  StatePool<ConvolutionGradientFormatOf<Config>> final_gradient, initial_gradient;

  static constexpr std::int64_t state_heads = channels;

  template <class Self, class Function>
  static void for_inputs(Self& self, const Function& function) {
    function(self.input, 1, channels);
    function(self.gate, 1, channels);
    function(self.output_gradient, 1, channels);
  }
  template <class Self, class Function>
  static void for_results(Self& self, const Function& function) {
    function(self.output, 1, channels);
    function(self.input_gradient, 1, channels);
    function(self.gate_gradient, 1, channels);
  }
  PrefillArgs<Config> forward() {
    PrefillArgs<Config> args;
    args.input = view_of(input);
    args.gate = view_of(gate);
    args.output = view_of(output);
    args.weight = weight.data();
    args.bias = bias.data();
    return args;
  }
  BackwardArgs<Config> backward() {
    BackwardArgs<Config> args;
    args.input = view_of(input);
    args.gate = view_of(gate);
    args.weight = weight.data();
    args.bias = bias.data();
    args.output_gradient = view_of(output_gradient);
    args.input_gradient = view_of(input_gradient);
    args.gate_gradient = view_of(gate_gradient);
    args.weight_gradient = weight_gradient.data();
    args.bias_gradient = bias_gradient.data();
    args.final_state_gradient = {final_gradient.view()};
    args.initial_state_gradient = {initial_gradient.view()};
    return args;
  }
};

/// Whether the backward pass takes part: gradients do not pass through a window's cache.
template <class Config>
bool has_gradients(const Pieces& pieces) {
  return ConvolutionConfig<Config> || pieces.has_initial_state.empty();
}

template <class Config>
struct Call {
  using Format = StateFormatOf<Config>;
  Batch<Config> batch;
  StatePool<Format> initial, final_states;

  Call(std::int64_t tokens, std::int64_t sequences) {
    unsigned seed = 1;
    Batch<Config>::for_inputs(batch, [&](auto& tensor, std::int64_t of_heads, std::int64_t width) {
      tensor = random_tensor<double>({1, tokens, of_heads, width}, seed++);
    });
    Batch<Config>::for_results(batch, [&](auto& tensor, std::int64_t of_heads, std::int64_t width) {
      tensor = zero_tensor<double>({1, tokens, of_heads, width});
    });
    JRT_REQUIRE_OK(StatePool<Format>::allocate(sequences, Batch<Config>::state_heads, initial));
    JRT_REQUIRE_OK(StatePool<Format>::allocate(sequences, Batch<Config>::state_heads, final_states));
    if constexpr (ConvolutionConfig<Config>) {
      using F = ConvolutionGradientFormatOf<Config>;
      JRT_REQUIRE_OK(StatePool<F>::allocate(sequences, channels, batch.final_gradient));
      JRT_REQUIRE_OK(StatePool<F>::allocate(sequences, channels, batch.initial_gradient));
      const std::int64_t count = sequences * channels * F::head_elements;
      const auto values = random_tensor<double>({1, 1, 1, count}, 31).values;
      std::copy(values.begin(), values.end(), batch.final_gradient.view().data);
    }
  }

  /// States after 11 other tokens.
  void make_initial_states() {
    Call before(11, 1);
    auto args = before.batch.forward();
    for (std::int64_t g = 0; g < initial.slots(); ++g) {
      const auto slot = static_cast<std::int32_t>(g);
      args.final_state = {initial.view(), &slot};
      JRT_REQUIRE_OK(prefill(args, Cpu{}));
    }
  }
};

template <class Format>
std::vector<std::uint64_t> bits_of(StatePool<Format>& pool, std::int64_t slot) {
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(Format::slot_bytes(pool.heads()) / 8));
  std::memcpy(bits.data(), pool.view().head(slot, 0), bits.size() * 8);
  return bits;
}

template <class Config, class C = ThreadCommunicator>
void compare(const Pieces& pieces) {
  using Format = StateFormatOf<Config>;
  const std::int64_t sequences = pieces.sequences();
  const auto offsets = pieces.offsets();
  auto continues = pieces.has_initial_state;
  continues.resize(static_cast<std::size_t>(sequences));

  Call<Config> one(offsets.back(), sequences);
  one.make_initial_states();
  auto forward = one.batch.forward();
  forward.sequences.count = sequences;
  forward.sequences.cu_seqlens = offsets.data();
  forward.initial_state = {one.initial.view()};
  forward.has_initial_state = continues.data();
  forward.final_state = {one.final_states.view()};
  JRT_REQUIRE_OK(prefill(forward, Cpu{}));
  if (has_gradients<Config>(pieces)) {
    auto backward_args = one.batch.backward();
    backward_args.sequences = forward.sequences;
    if constexpr (ConvolutionConfig<Config>) {
      backward_args.initial_state = forward.initial_state;
      backward_args.has_initial_state = continues.data();
    }
    JRT_REQUIRE_OK(backward(backward_args, Cpu{}));
  }

  Call<Config> all(offsets.back(), sequences);
  std::vector<Call<Config>> parts;
  for (int r = 0; r < pieces.ranks; ++r) {
    Call<Config>& part = parts.emplace_back(pieces.local_tokens(r), sequences);
    part.make_initial_states();
    std::vector<const Tensor<double>*> given;
    Batch<Config>::for_inputs(all.batch, [&](const auto& tensor, auto, auto) { given.push_back(&tensor); });
    std::size_t i = 0;
    Batch<Config>::for_inputs(part.batch, [&](auto& tensor, auto, auto) { tensor = pieces.of_rank(*given[i++], r); });
  }
  const auto results = run_ranks<C>(pieces.ranks, [&](C& communicator) {
    Call<Config>& part = parts[static_cast<std::size_t>(communicator.rank())];
    const Cpu on;
    ContextPlan<Config> plan;
    Status status = ContextPlan<Config>::make(pieces.layout(), communicator.rank(), on, plan);
    if (!status.ok()) {
      return status;
    }
    ContextPrefillArgs<Config> args{part.batch.forward(), &plan};
    args.local.initial_state = {part.initial.view()};
    args.local.final_state = {part.final_states.view()};
    OwnWorkspace workspace(prefill_workspace_bytes(args, on));
    status = prefill(args, communicator, workspace.view(), on);
    if (!status.ok() || !has_gradients<Config>(pieces)) {
      return status;
    }
    ContextBackwardArgs<Config> gradients{part.batch.backward(), &plan};
    if constexpr (ConvolutionConfig<Config>) {
      gradients.local.initial_state = {part.initial.view()};
    }
    OwnWorkspace more(backward_workspace_bytes(gradients, on));
    return backward(gradients, communicator, more.view(), on);
  });
  JRT_REQUIRE_RANKS_OK(results);

  for (int r = 0; r < pieces.ranks; ++r) {
    std::vector<Tensor<double>*> whole;
    Batch<Config>::for_results(all.batch, [&](auto& tensor, auto, auto) { whole.push_back(&tensor); });
    std::size_t i = 0;
    Batch<Config>::for_results(parts[static_cast<std::size_t>(r)].batch,
                               [&](auto& tensor, auto, auto) { pieces.put(tensor, r, *whole[i++]); });
  }
  std::vector<const Tensor<double>*> expected;
  Batch<Config>::for_results(one.batch, [&](const auto& tensor, auto, auto) { expected.push_back(&tensor); });
  std::size_t i = 0;
  Batch<Config>::for_results(all.batch, [&](const auto& tensor, auto, auto) {
    CAPTURE(i);
    const double bound = ConvolutionConfig<Config> && i == 0 ? 0 : 1e-12;  // outputs of the convolution: the same bits
    CHECK(relative_error(tensor.values, expected[i++]->values) <= bound);
  });
  for (std::int64_t g = 0; g < sequences; ++g) {
    int last = pieces.ranks - 1;
    while (last > 0 && !pieces.any_tokens(last, g)) {
      --last;
    }
    if (pieces.layout().first_token(pieces.ranks, g) > 0) {
      CHECK(bits_of<Format>(parts[static_cast<std::size_t>(last)].final_states, g) == bits_of<Format>(one.final_states, g));
    }
  }
  if constexpr (ConvolutionConfig<Config>) {
    const auto summed = [&](auto member) {
      std::vector<double> sum((one.batch.*member).size());
      for (Call<Config>& part : parts) {
        for (std::size_t k = 0; k < sum.size(); ++k) {
          sum[k] += (part.batch.*member)[k];
        }
      }
      return sum;
    };
    CHECK(relative_error(summed(&Batch<Config>::weight_gradient), one.batch.weight_gradient) <= 1e-12);
    CHECK(relative_error(summed(&Batch<Config>::bias_gradient), one.batch.bias_gradient) <= 1e-12);
    for (std::int64_t g = 0; g < sequences; ++g) {
      int first = 0;
      while (first + 1 < pieces.ranks && !pieces.any_tokens(first, g)) {
        ++first;
      }
      if (continues[static_cast<std::size_t>(g)] != 0) {
        const auto numbers = [&](auto& pool) {
          const double* const begin = pool.view().head(g, 0);
          return std::vector<double>(begin, begin + channels * (Config::kernel_width - 1));
        };
        CHECK(relative_error(numbers(parts[static_cast<std::size_t>(first)].batch.initial_gradient),
                             numbers(one.batch.initial_gradient)) <= 1e-12);
      }
    }
  }
}

TEST_CASE_TEMPLATE("ranks agree with one device", Config, Window, RotatedWindow, Convolution) {
  for (const Pieces& pieces : {
           Pieces{1, {40}},
           Pieces{2, {30, 12}},
           Pieces{3, {30, 0, 20}},
           Pieces{4, {5, 3, 2, 30}},                            // shorter than the window
           Pieces{4, {1, 1, 0, 1}},                             // than the convolution, too
           Pieces{3, {12, 5, 0, /**/ 0, 3, 4, /**/ 0, 1, 20}},  // packed
           Pieces{2, {9, 7, 5, 6}},
           Pieces{2, {20, 9, 11, 7}, {}, {1, 1}, {11, 11}},  // from states
           Pieces{3, {20, 10, /**/ 0, 3, /**/ 0, 9}, {}, {0, 1}, {0, 11}},
       }) {
    CAPTURE(pieces.ranks);
    compare<Config>(pieces);
    compare<Config, WorkFirst>(pieces);
  }
}

TEST_CASE_TEMPLATE("outputs are the same where nobody asks for states", Config, Window, RotatedWindow, Convolution) {
  for (const Pieces& pieces :
       {Pieces{2, {30, 12}}, Pieces{4, {5, 3, 2, 30}}, Pieces{3, {12, 5, 0, /**/ 0, 3, 4, /**/ 0, 1, 20}}}) {
    CAPTURE(pieces.ranks);
    std::vector<double> outputs[2];
    for (const bool with_states : {true, false}) {
      std::vector<Call<Config>> parts;
      for (int rank = 0; rank < pieces.ranks; ++rank) {
        parts.emplace_back(pieces.local_tokens(rank), pieces.sequences());
      }
      JRT_REQUIRE_RANKS_OK(run_ranks(pieces.ranks, [&](ThreadCommunicator& communicator) {
        Call<Config>& part = parts[static_cast<std::size_t>(communicator.rank())];
        ContextPlan<Config> plan;
        Status status = ContextPlan<Config>::make(pieces.layout(), communicator.rank(), Cpu{}, plan);
        ContextPrefillArgs<Config> args{part.batch.forward(), &plan};
        if (with_states) {
          args.local.final_state = {part.final_states.view()};
        }
        OwnWorkspace workspace(prefill_workspace_bytes(args, Cpu{}));
        return status.ok() ? prefill(args, communicator, workspace.view(), Cpu{}) : status;
      }));
      for (const Call<Config>& part : parts) {
        const std::vector<double>& output = part.batch.output.values;
        outputs[with_states ? 1 : 0].insert(outputs[with_states ? 1 : 0].end(), output.begin(), output.end());
      }
    }
    CHECK(relative_error(outputs[0], outputs[1]) <= 1e-13);
  }
}

/// Rank 1 of two does not call; or calls, is told that its arguments are wrong, and aborts.
template <class Config>
std::vector<Status> with_failing_rank(bool backward_too, bool aborts, int time_limit_ms) {
  const Pieces pieces{2, {30, 20}};
  return run_ranks(
      2,
      [&](ThreadCommunicator& communicator) {
        const bool fails = communicator.rank() == 1;
        if (fails && !aborts && !backward_too) {
          std::this_thread::sleep_for(std::chrono::milliseconds(4 * time_limit_ms));
          return Status();
        }
        Call<Config> call(pieces.local_tokens(communicator.rank()), 1);
        const Cpu on;
        ContextPlan<Config> plan;
        Status status = ContextPlan<Config>::make(pieces.layout(), communicator.rank(), on, plan);
        ContextPrefillArgs<Config> args{call.batch.forward(), &plan};
        args.local.output = fails && aborts ? args.local.output.slice_tokens(0, 1) : args.local.output;
        OwnWorkspace workspace(prefill_workspace_bytes(args, on));
        status = prefill(args, communicator, workspace.view(), on);
        if (!status.ok() || !backward_too) {
          return status;
        }
        if (fails) {  // between the two passes
          std::this_thread::sleep_for(std::chrono::milliseconds(4 * time_limit_ms));
          return Status();
        }
        const ContextBackwardArgs<Config> gradients{call.batch.backward(), &plan};
        OwnWorkspace more(backward_workspace_bytes(gradients, on));
        return backward(gradients, communicator, more.view(), on);
      },
      time_limit_ms);
}

TEST_CASE_TEMPLATE("a rank that fails leaves nobody waiting", Config, Window, Convolution) {
  // The first rank waits until its rows were read.
  for (const bool backward_too : {false, true}) {
    CAPTURE(backward_too);
    const auto results = with_failing_rank<Config>(backward_too, false, 100);
    CHECK(results[0].code() == StatusCode::device_error);
    CHECK(results[0].message().find("has waited 100 ms for rank 1") != std::string_view::npos);
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto results = with_failing_rank<Config>(false, true, 60000);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
  CHECK(results[1].code() == StatusCode::invalid_argument);
  CHECK(results[0].message().find("has called abort") != std::string_view::npos);
}

TEST_CASE("a state whose halo would reach before the call is refused") {
  const Pieces pieces{2, {5, 9}, {}, {1}, {11}};
  ContextPlan<Window> plan;
  const Status status = ContextPlan<Window>::make(pieces.layout(), 1, Cpu{}, plan);
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(status.message().find("has an initial state and 5 tokens before rank 1, but must have 0 or at least 8") !=
        std::string_view::npos);
}

}  // namespace
}  // namespace jrt::test
