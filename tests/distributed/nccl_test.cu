// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>
#include <doctest/doctest.h>
#include <nccl.h>

#include <barrier>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <jrt/distributed/cuda.cuh>
#include <jrt/distributed/nccl.cuh>
#include <string>
#include <thread>
#include <vector>

#include "support/linear_problem.hpp"
#include "support/tensor.hpp"

/// Ranks are threads with a GPU each; against the call on one GPU.
namespace jrt::test {

/// One rank that has the whole.
struct Alone {
  static int rank() { return 0; }
  static int size() { return 1; }
  static Status all_gather(const void*, void*, std::size_t, const Cuda&) { return {}; }
  static Status exchange(std::span<const OutgoingBytes>, std::span<const IncomingBytes>, const Cuda&) { return {}; }
  static void abort() {}
};

namespace {

static_assert(Communicator<NcclCommunicator, Cuda>);

int devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

/// Memory of the current device.
template <class T>
class DeviceCopy {
 public:
  explicit DeviceCopy(const std::vector<T>& values) : count_(values.size()) {
    REQUIRE(cudaMalloc(&data_, count_ * sizeof(T) + 16) == cudaSuccess);
    REQUIRE(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
    // A copy from pageable memory may return before it has reached the device, and other streams do not wait for it.
    REQUIRE(cudaStreamSynchronize(nullptr) == cudaSuccess);
  }
  explicit DeviceCopy(std::size_t count) : DeviceCopy(std::vector<T>(count)) {}
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;
  ~DeviceCopy() { cudaFree(data_); }
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::vector<T> values() const {
    std::vector<T> host(count_);
    REQUIRE(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return host;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

constexpr std::int64_t heads = 2;
struct Linear : PrefixLinearAttention<float, 16, 32> {
  using Split = LengthSplit<512>;
};
using LinearOfDevice = PrefixLinearAttention<float, 16, 32>;
using Window = SlidingWindowAttention<float, 16, 31>;
using Convolution = GatedConvolution<float, 3>;

/// Rows [first, first + count) of host values on the device.
DeviceCopy<float> rows(const std::vector<float>& all, std::int64_t dim, std::int64_t first, std::int64_t count) {
  const auto* const begin = all.data() + first * heads * dim;
  return DeviceCopy<float>(std::vector<float>(begin, begin + count * heads * dim));
}
template <class T>
auto view(T* data, std::int64_t tokens, std::int64_t dim) {
  return view_bthd(data, {.tokens = tokens, .heads = heads, .dim = dim});
}

/// Outputs of a rank's tokens and, of linear attention, the gradients of keys.
struct Results {
  std::vector<float> output;
  std::vector<float> key_gradient;
};

struct Inputs {
  std::int64_t tokens = 4096;
  std::int64_t prefix = 2048;
  std::vector<float> query = random_tensor<float>({1, tokens, heads, 16}, 1).values;
  std::vector<float> key = random_tensor<float>({1, tokens, heads, 16}, 2).values;
  std::vector<float> value = random_tensor<float>({1, tokens, heads, 32}, 3).values;
  std::vector<float> key_encoder = random_tensor<float>({1, prefix, heads, 16}, 4).values;
  std::vector<float> value_encoder = random_tensor<float>({1, prefix, heads, 32}, 5).values;
  std::vector<float> output_gradient = random_tensor<float>({1, tokens, heads, 32}, 6).values;
};

/// How a rank's calls run; `all_are_here()` returns when every rank has called it: memory comes and goes while no rank
/// waits for another on its GPU, since the driver may want both to be idle.
struct Way {
  bool captured = false;
  std::function<void()> all_are_here = [] {};
};

/// Enqueues, or captures and replays twice.
template <class C, class Call>
void enqueue(C& communicator, const Call& call, const Cuda& on, const Way& way) {
  way.all_are_here();
  JRT_REQUIRE_OK(call());
  if constexpr (requires { communicator.await_ranks(std::chrono::seconds(60), on); }) {
    JRT_REQUIRE_OK(communicator.await_ranks(std::chrono::seconds(60), on));
  }
  REQUIRE(cudaStreamSynchronize(on.stream()) == cudaSuccess);
  way.all_are_here();
  if (!way.captured) {
    return;
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  REQUIRE(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  JRT_REQUIRE_OK(call());
  REQUIRE(cudaStreamEndCapture(on.stream(), &graph) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&replay, graph, 0) == cudaSuccess);
  way.all_are_here();
  for (int i = 0; i < 2; ++i) {
    REQUIRE(cudaGraphLaunch(replay, on.stream()) == cudaSuccess);
  }
  REQUIRE(cudaStreamSynchronize(on.stream()) == cudaSuccess);
  way.all_are_here();
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
}

/// A rank's linear attention, forward and backward.
template <class Config, class C>
Results run_linear(const Inputs& in, const ContextLayout& layout, C& communicator, const Cuda& on, const Way& way) {
  const int rank = communicator.rank();
  const std::int64_t first = layout.first_token(rank, 0);
  const std::int64_t count = layout.piece(rank, 0);
  const std::int64_t first_encoder = layout.first_encoder_token(rank, 0);
  const std::int64_t encoder = layout.encoder_piece(rank, 0);
  const auto query = rows(in.query, 16, first, count);
  const auto key = rows(in.key, 16, first, count);
  const auto value = rows(in.value, 32, first, count);
  const auto key_encoder = rows(in.key_encoder, 16, first_encoder, encoder);
  const auto value_encoder = rows(in.value_encoder, 32, first_encoder, encoder);
  const auto output_gradient = rows(in.output_gradient, 32, first, count);
  DeviceCopy<float> output(static_cast<std::size_t>(count * heads * 32));
  DeviceCopy<float> denominators(static_cast<std::size_t>(count * heads));
  DeviceCopy<float> key_gradient(static_cast<std::size_t>(count * heads * 16));

  ContextPlan<Config> plan;
  JRT_REQUIRE_OK(ContextPlan<Config>::make(layout, rank, on, plan, heads));
  DeviceCopy<std::byte> indices(plan.index_bytes());
  JRT_REQUIRE_OK(plan.place(indices.data(), on));
  ContextPrefillArgs<Config> forward;
  forward.plan = &plan;
  forward.local.query = view(query.data(), count, 16);
  forward.local.key = view(key.data(), count, 16);
  forward.local.value = view(value.data(), count, 32);
  forward.local.key_encoder = view(key_encoder.data(), encoder, 16);
  forward.local.value_encoder = view(value_encoder.data(), encoder, 32);
  forward.local.output = view(output.data(), count, 32);
  forward.local.denominators = view(denominators.data(), count, 1);
  const std::size_t bytes = prefill_workspace_bytes(forward, on);
  DeviceCopy<std::byte> workspace(bytes);
  enqueue(
      communicator,
      [&] {
        return prefill(forward, communicator, {workspace.data(), bytes}, on);
      },
      on, way);
  ContextBackwardArgs<Config> gradients;
  gradients.plan = &plan;
  gradients.local.query = forward.local.query;
  gradients.local.key = forward.local.key;
  gradients.local.value = forward.local.value;
  gradients.local.key_encoder = forward.local.key_encoder;
  gradients.local.value_encoder = forward.local.value_encoder;
  gradients.local.output = forward.local.output;
  gradients.local.denominators = forward.local.denominators;
  gradients.local.output_gradient = view(output_gradient.data(), count, 32);
  gradients.local.key_gradient = view(key_gradient.data(), count, 16);
  const std::size_t more_bytes = backward_workspace_bytes(gradients, on);
  DeviceCopy<std::byte> more(more_bytes);
  enqueue(
      communicator,
      [&] {
        return backward(gradients, communicator, {more.data(), more_bytes}, on);
      },
      on, way);
  return {output.values(), key_gradient.values()};
}

/// A rank's window or convolution, whose values or gates are the queries.
template <class Config, class C>
Results run_halo(const Inputs& in, ContextLayout layout, C& communicator, const Cuda& on, const Way& way) {
  layout.encoder_tokens = nullptr;
  const int rank = communicator.rank();
  const std::int64_t first = layout.first_token(rank, 0);
  const std::int64_t count = layout.piece(rank, 0);
  const auto query = rows(in.query, 16, first, count);
  const auto key = rows(in.key, 16, first, count);
  DeviceCopy<float> output(static_cast<std::size_t>(count * heads * 16));
  const DeviceCopy<float> weight(random_tensor<float>({1, 1, 1, heads * 16 * 3}, 9).values);
  ContextPlan<Config> plan;
  JRT_REQUIRE_OK(ContextPlan<Config>::make(layout, rank, on, plan));
  DeviceCopy<std::byte> indices(plan.index_bytes());
  JRT_REQUIRE_OK(plan.place(indices.data(), on));
  ContextPrefillArgs<Config> args;
  args.plan = &plan;
  if constexpr (WindowConfig<Config>) {
    args.local.query = view(query.data(), count, 16);
    args.local.key = view(key.data(), count, 16);
    args.local.value = view(query.data(), count, 16);
    args.local.output = view(output.data(), count, 16);
  } else {
    args.local.input = view_bthd(key.data(), {.tokens = count, .dim = heads * 16});
    args.local.gate = view_bthd(query.data(), {.tokens = count, .dim = heads * 16});
    args.local.output = view_bthd(output.data(), {.tokens = count, .dim = heads * 16});
    args.local.weight = weight.data();
  }
  const std::size_t bytes = prefill_workspace_bytes(args, on);
  DeviceCopy<std::byte> workspace(bytes);
  enqueue(
      communicator,
      [&] {
        return prefill(args, communicator, {workspace.data(), bytes}, on);
      },
      on, way);
  return {output.values(), {}};
}

/// A rank's window of 16-bit numbers, for which Hopper has a kernel of its own, and the cache that it leaves.
using WideWindow = SlidingWindowAttention<BFloat16, 64, 128>;
struct WideInputs {
  std::int64_t tokens = 3072;
  std::vector<BFloat16> query = random_tensor<BFloat16>({1, tokens, heads, 64}, 11).values;
  std::vector<BFloat16> key = random_tensor<BFloat16>({1, tokens, heads, 64}, 12).values;
  std::vector<BFloat16> value = random_tensor<BFloat16>({1, tokens, heads, 64}, 13).values;
};
struct WideResults {
  std::vector<BFloat16> output;
  std::vector<BFloat16> state;
};

template <class C>
WideResults run_wide_window(const WideInputs& in, const ContextLayout& layout, C& communicator, const Cuda& on,
                            bool with_state, const Way& way) {
  using Format = StateFormatOf<WideWindow>;
  const int rank = communicator.rank();
  const std::int64_t count = layout.piece(rank, 0);
  const auto piece = [&](const std::vector<BFloat16>& all) {
    const auto* const begin = all.data() + layout.first_token(rank, 0) * heads * 64;
    return DeviceCopy<BFloat16>(std::vector<BFloat16>(begin, begin + count * heads * 64));
  };
  const auto query = piece(in.query);
  const auto key = piece(in.key);
  const auto value = piece(in.value);
  DeviceCopy<BFloat16> output(static_cast<std::size_t>(count * heads * 64));
  DeviceCopy<BFloat16> state(static_cast<std::size_t>(heads * Format::head_elements));
  ContextPlan<WideWindow> plan;
  JRT_REQUIRE_OK(ContextPlan<WideWindow>::make(layout, rank, on, plan));
  DeviceCopy<std::byte> indices(plan.index_bytes());
  JRT_REQUIRE_OK(plan.place(indices.data(), on));
  ContextPrefillArgs<WideWindow> args;
  args.plan = &plan;
  args.local.query = view(query.data(), count, 64);
  args.local.key = view(key.data(), count, 64);
  args.local.value = view(value.data(), count, 64);
  args.local.output = view(output.data(), count, 64);
  if (with_state) {
    args.local.final_state = {view_pool<Format>(state.data(), 1, heads)};
  }
  const std::size_t bytes = prefill_workspace_bytes(args, on);
  DeviceCopy<std::byte> workspace(bytes);
  enqueue(
      communicator,
      [&] {
        return prefill(args, communicator, {workspace.data(), bytes}, on);
      },
      on, way);
  return {output.values(), state.values()};
}

/// Every mixer: linear attention with fixed segments and with those of the device, a window, a convolution.
template <class C>
std::vector<Results> run_rank(const Inputs& in, const ContextLayout& layout, C& communicator, const Cuda& on,
                              const Way& way) {
  return {run_linear<Linear>(in, layout, communicator, on, way),
          run_linear<LinearOfDevice>(in, layout, communicator, on, way),
          run_halo<Window>(in, layout, communicator, on, way), run_halo<Convolution>(in, layout, communicator, on, way)};
}

/// Their names.
constexpr const char* operations[] = {"linear attention, fixed segments", "linear attention, the device's segments",
                                      "window", "convolution"};

/// `run(communicator, on, way)` in a thread for each rank, with its GPU.
template <class Run>
void on_gpus(int ranks, bool beside, bool captured, const Run& run) {
  std::vector<ncclComm_t> communicators(static_cast<std::size_t>(ranks));
  REQUIRE(ncclCommInitAll(communicators.data(), ranks, nullptr) == ncclSuccess);
  std::barrier<> all(ranks);
  const Way way{captured, [&] { all.arrive_and_wait(); }};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      cudaSetDevice(rank);
      cudaStream_t stream = nullptr;
      cudaStream_t other = nullptr;
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
      {
        SideStream side(other);
        NcclCommunicator communicator(communicators[static_cast<std::size_t>(rank)], beside ? &side : nullptr);
        run(communicator, Cuda{stream}, way);
      }
      cudaStreamDestroy(other);
      cudaStreamDestroy(stream);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (ncclComm_t communicator : communicators) {
    ncclCommDestroy(communicator);
  }
}

/// Outputs of all ranks, one after the other.
std::vector<Results> run_group(const Inputs& inputs, const ContextLayout& layout, bool beside, bool captured) {
  const int ranks = layout.ranks;
  std::vector<std::vector<Results>> of_ranks(static_cast<std::size_t>(ranks));
  on_gpus(ranks, beside, captured, [&](NcclCommunicator& communicator, const Cuda& on, const Way& way) {
    of_ranks[static_cast<std::size_t>(communicator.rank())] = run_rank(inputs, layout, communicator, on, way);
  });
  std::vector<Results> joined = of_ranks[0];
  for (int rank = 1; rank < ranks; ++rank) {
    for (std::size_t i = 0; i < joined.size(); ++i) {
      const Results& part = of_ranks[static_cast<std::size_t>(rank)][i];
      joined[i].output.insert(joined[i].output.end(), part.output.begin(), part.output.end());
      joined[i].key_gradient.insert(joined[i].key_gradient.end(), part.key_gradient.begin(), part.key_gradient.end());
    }
  }
  return joined;
}

TEST_CASE("several GPUs agree with one") {
  const Inputs inputs;
  const std::int64_t whole[] = {inputs.tokens};
  const std::int64_t whole_encoder[] = {inputs.prefix};
  Alone alone;
  if (devices() < 2) {
    std::printf("skipped: %d CUDA device, but this test needs 2\n", devices());
    return;
  }
  const auto expected = run_rank(inputs, ContextLayout{1, 1, whole, whole_encoder}, alone, Cuda{}, Way{});
  const std::int64_t two[] = {2560, 1536};
  const std::int64_t two_encoder[] = {1024, 1024};
  // The second rank has encoder tokens only.
  const std::int64_t two_uneven[] = {4096, 0};
  const std::int64_t four[] = {512, 1536, 0, 2048};
  const std::int64_t four_encoder[] = {512, 512, 1024, 0};
  const std::int64_t four_even[] = {1024, 1024, 1024, 1024};
  const std::int64_t four_even_encoder[] = {512, 512, 512, 512};
  const ContextLayout layouts[] = {{2, 1, two, two_encoder},
                                   {2, 1, two_uneven, two_encoder},
                                   {4, 1, four_even, four_even_encoder},
                                   {4, 1, four, four_encoder}};
  for (const ContextLayout& layout : layouts) {
    const int ranks = layout.ranks;
    if (devices() < ranks) {
      continue;
    }
    const std::int64_t tokens_of_second = layout.piece(1, 0);
    CAPTURE(tokens_of_second);
    std::vector<Results> first;
    for (const bool beside : {false, true}) {
      for (const bool captured : {false, true}) {
        CAPTURE(ranks);
        CAPTURE(beside);
        CAPTURE(captured);
        const auto actual = run_group(inputs, layout, beside, captured);
        first = first.empty() ? actual : first;
        for (std::size_t i = 0; i < expected.size(); ++i) {
          CAPTURE(operations[i]);
          // The bits of linear attention with fixed segments are the same, and those of a convolution's outputs.
          const bool same_bits = i == 0 || i == 3;
          CHECK(relative_error(actual[i].output, expected[i].output) <= (same_bits ? 0 : 2e-6));
          CHECK(relative_error(actual[i].key_gradient, expected[i].key_gradient) <= (i == 0 ? 0 : 5e-6));
          CHECK(actual[i].output == first[i].output);  // from call to call, whatever the stream
          CHECK(actual[i].key_gradient == first[i].key_gradient);
        }
      }
    }
  }
}

TEST_CASE("windows of 16-bit numbers on several GPUs, with and without the cache that is left") {
  const WideInputs inputs;
  const std::int64_t whole[] = {inputs.tokens};
  const std::int64_t two[] = {1600, 1472};
  const std::int64_t four[] = {1000, 72, 1900, 100};  // two are shorter than the window
  const auto numbers = [](const std::vector<BFloat16>& values) {
    std::vector<float> result;
    for (const BFloat16 x : values) {
      result.push_back(convert<float>(x));
    }
    return result;
  };
  for (const ContextLayout& layout : {ContextLayout{2, 1, two}, ContextLayout{4, 1, four}}) {
    const int ranks = layout.ranks;
    if (devices() < ranks) {
      continue;
    }
    CAPTURE(ranks);
    cudaSetDevice(0);
    Alone alone;
    for (const bool with_state : {true, false}) {
      CAPTURE(with_state);
      const WideResults expected = run_wide_window(inputs, {1, 1, whole}, alone, Cuda{}, with_state, Way{});
      std::vector<WideResults> actual(static_cast<std::size_t>(ranks));
      on_gpus(ranks, true, true, [&](NcclCommunicator& communicator, const Cuda& on, const Way& way) {
        actual[static_cast<std::size_t>(communicator.rank())] =
            run_wide_window(inputs, layout, communicator, on, with_state, way);
      });
      std::vector<BFloat16> output;
      for (const WideResults& rank : actual) {
        output.insert(output.end(), rank.output.begin(), rank.output.end());
      }
      CHECK(relative_error(numbers(output), numbers(expected.output)) <= 4e-3);
      CHECK(numbers(actual.back().state) == numbers(expected.state));
    }
  }
}

TEST_CASE("a rank that stays away ends in an error within the time limit") {
  if (devices() < 2) {
    return;
  }
  ncclComm_t communicators[2];
  REQUIRE(ncclCommInitAll(communicators, 2, nullptr) == ncclSuccess);
  std::barrier<> both(2);
  Status waited;
  Status afterwards;
  const auto run = [&](int rank) {
    cudaSetDevice(rank);
    cudaStream_t stream = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    {
      const DeviceCopy<float> memory(2);
      NcclCommunicator communicator(communicators[rank]);
      const Cuda on{stream};
      const auto gather = [&] { return communicator.all_gather(memory.data() + rank, memory.data(), sizeof(float), on); };
      // NCCL connects the ranks in the first call, in which the host waits: one in which all take part.
      both.arrive_and_wait();
      JRT_REQUIRE_OK(gather());
      JRT_REQUIRE_OK(communicator.await_ranks(std::chrono::seconds(30), on));
      both.arrive_and_wait();
      if (rank == 0) {
        JRT_REQUIRE_OK(gather());
        waited = communicator.await_ranks(std::chrono::milliseconds(500), on);
        afterwards = gather();
      }
      both.arrive_and_wait();
      communicator.abort();
      both.arrive_and_wait();  // memory goes when no rank waits for another
    }
    cudaStreamDestroy(stream);
  };
  std::thread other([&] { run(1); });
  run(0);
  other.join();
  cudaSetDevice(0);
  CHECK(waited.code() == StatusCode::device_error);
  CHECK_FALSE(afterwards.ok());
}

}  // namespace
}  // namespace jrt::test
