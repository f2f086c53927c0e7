// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>
#include <doctest/doctest.h>
#include <nccl.h>

#include <cstdint>
#include <cstdio>
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
using Window = SlidingWindowAttention<float, 16, 31>;

/// Rows [first, first + count) of host values on the device.
DeviceCopy<float> rows(const std::vector<float>& all, std::int64_t dim, std::int64_t first, std::int64_t count) {
  const auto* const begin = all.data() + first * heads * dim;
  return DeviceCopy<float>(std::vector<float>(begin, begin + count * heads * dim));
}
template <class T>
auto view(T* data, std::int64_t tokens, std::int64_t dim) {
  return view_bthd(data, {.tokens = tokens, .heads = heads, .dim = dim});
}

/// Outputs of a layout's tokens and, of linear attention, the gradients of keys. Without a communicator, on one GPU.
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

/// Linear attention of a rank, forward and backward, then a window (whose values are the queries).
template <class C>
std::vector<Results> run_rank(const Inputs& in, const ContextLayout& layout, C& communicator, const Cuda& on) {
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

  ContextPlan<Linear> plan;
  JRT_REQUIRE_OK(ContextPlan<Linear>::make(layout, rank, on, plan));
  DeviceCopy<std::byte> indices(plan.index_bytes());
  JRT_REQUIRE_OK(plan.place(indices.data(), on));
  ContextPrefillArgs<Linear> forward;
  forward.plan = &plan;
  forward.local.query = view(query.data(), count, 16);
  forward.local.key = view(key.data(), count, 16);
  forward.local.value = view(value.data(), count, 32);
  forward.local.key_encoder = view(key_encoder.data(), encoder, 16);
  forward.local.value_encoder = view(value_encoder.data(), encoder, 32);
  forward.local.output = view(output.data(), count, 32);
  forward.local.denominators = view(denominators.data(), count, 1);
  DeviceCopy<std::byte> workspace(prefill_workspace_bytes(forward, on));
  JRT_REQUIRE_OK(prefill(forward, communicator, {workspace.data(), prefill_workspace_bytes(forward, on)}, on));
  ContextBackwardArgs<Linear> gradients;
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
  DeviceCopy<std::byte> more(backward_workspace_bytes(gradients, on));
  JRT_REQUIRE_OK(backward(gradients, communicator, {more.data(), backward_workspace_bytes(gradients, on)}, on));

  ContextLayout no_encoder = layout;
  no_encoder.encoder_tokens = nullptr;
  ContextPlan<Window> window_plan;
  JRT_REQUIRE_OK(ContextPlan<Window>::make(no_encoder, rank, on, window_plan));
  DeviceCopy<std::byte> window_indices(window_plan.index_bytes());
  JRT_REQUIRE_OK(window_plan.place(window_indices.data(), on));
  DeviceCopy<float> window_output(static_cast<std::size_t>(count * heads * 16));
  ContextPrefillArgs<Window> window;
  window.plan = &window_plan;
  window.local.query = forward.local.query;
  window.local.key = forward.local.key;
  window.local.value = forward.local.query;
  window.local.output = view(window_output.data(), count, 16);
  DeviceCopy<std::byte> window_workspace(prefill_workspace_bytes(window, on));
  JRT_REQUIRE_OK(prefill(window, communicator, {window_workspace.data(), prefill_workspace_bytes(window, on)}, on));
  if constexpr (requires { communicator.await_ranks(std::chrono::seconds(60), on); }) {
    JRT_REQUIRE_OK(communicator.await_ranks(std::chrono::seconds(60), on));
  }
  REQUIRE(cudaStreamSynchronize(on.stream()) == cudaSuccess);
  return {{output.values(), key_gradient.values()}, {window_output.values(), {}}};
}

TEST_CASE("two GPUs agree with one") {
  if (devices() < 2) {
    std::printf("skipped: %d CUDA device, but this test needs 2\n", devices());
    return;
  }
  const Inputs inputs;
  const std::int64_t whole[] = {inputs.tokens};
  const std::int64_t whole_encoder[] = {inputs.prefix};
  Alone alone;
  const auto expected = run_rank(inputs, ContextLayout{1, 1, whole, whole_encoder}, alone, Cuda{});

  const std::int64_t pieces[] = {2560, 1536};
  const std::int64_t encoder[] = {1024, 1024};
  ncclComm_t communicators[2];
  REQUIRE(ncclCommInitAll(communicators, 2, nullptr) == ncclSuccess);
  std::vector<Results> actual[2];
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      cudaSetDevice(rank);
      cudaStream_t stream = nullptr;
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      NcclCommunicator communicator(communicators[rank]);
      actual[rank] = run_rank(inputs, ContextLayout{2, 1, pieces, encoder}, communicator, Cuda{stream});
      cudaStreamDestroy(stream);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (std::size_t i = 0; i < expected.size(); ++i) {
    for (const auto member : {&Results::output, &Results::key_gradient}) {
      auto joined = actual[0][i].*member;
      joined.insert(joined.end(), (actual[1][i].*member).begin(), (actual[1][i].*member).end());
      // The bits of linear attention are the same: segments are fixed. A window's first block has another place.
      CHECK(relative_error(joined, expected[i].*member) <= (i == 0 ? 0 : 2e-6));
    }
  }
  for (ncclComm_t communicator : communicators) {
    ncclCommDestroy(communicator);
  }
}

TEST_CASE("a rank that stays away ends in an error within the time limit") {
  if (devices() < 2) {
    return;
  }
  ncclComm_t communicators[2];
  REQUIRE(ncclCommInitAll(communicators, 2, nullptr) == ncclSuccess);
  DeviceCopy<float> memory(2);
  NcclCommunicator first(communicators[0]);
  NcclCommunicator second(communicators[1]);
  const Cuda on;
  JRT_REQUIRE_OK(first.all_gather(memory.data(), memory.data(), sizeof(float), on));
  const Status status = first.await_ranks(std::chrono::milliseconds(500), on);
  CHECK(status.code() == StatusCode::device_error);
  CHECK_FALSE(first.all_gather(memory.data(), memory.data(), sizeof(float), on).ok());
  second.abort();
}

}  // namespace
}  // namespace jrt::test
