// SPDX-License-Identifier: Apache-2.0
// Context parallelism over the GPUs of one host: the prefill of the mixers of JRT-RNN 360M (bfloat16: 5 layers of prefix
// linear attention, 16 heads, d = 16, dv = 64, an encoder region of half the tokens; 5 windows, L = 128, d = 64; 16
// convolutions, K = 3, 1024 channels), one sequence, each rank a thread with its GPU and stream.
//
//     NCCL_NVLS_ENABLE=0 context_bench [--weak TOKENS_PER_GPU] [--strong TOKENS] [--gpus N]
//
// Weak scaling: as many tokens a GPU on 1, 2, … GPUs; `of one` is the time over that of one GPU. Strong scaling: one
// sequence on 1, 2, … GPUs; `of one` is how many times faster. One GPU runs the library's ordinary prefill. The time is the
// slowest rank's, the mean of `rounds` calls between two events. `exchange` is what the same calls take less when the
// communicator does nothing: the part of the exchange that is not hidden.
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <jrt/distributed/cuda.cuh>
#include <jrt/distributed/nccl.cuh>
#include <thread>
#include <vector>

namespace jrt::bench {

/// A rank of a group of one, or of several that exchange nothing: what calls cost without the exchange.
struct NoExchange {
  int of_rank;
  int ranks;
  [[nodiscard]] int rank() const { return of_rank; }
  [[nodiscard]] int size() const { return ranks; }
  static jrt::Status all_gather(const void*, void*, std::size_t, const jrt::Cuda&) { return {}; }
  static jrt::Status exchange(std::span<const jrt::OutgoingBytes>, std::span<const jrt::IncomingBytes>, const jrt::Cuda&) {
    return {};
  }
  static void abort() {}
};

}  // namespace jrt::bench

namespace {

using jrt::bench::NoExchange;
using E = jrt::BFloat16;
using Linear = jrt::PrefixLinearAttention<E, 16, 64>;
using Window = jrt::SlidingWindowAttention<E, 64, 128>;
using Convolution = jrt::GatedConvolution<E, 3>;
constexpr std::int64_t heads = 16;
constexpr std::int64_t channels = 1024;
constexpr int rounds = 10;

void require(cudaError_t error) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
    std::exit(1);
  }
}
void require(ncclResult_t error) {
  if (error != ncclSuccess) {
    std::fprintf(stderr, "NCCL: %s\n", ncclGetErrorString(error));
    std::exit(1);
  }
}
void require(const jrt::Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.c_str());
    std::exit(1);
  }
}

class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) { require(cudaMalloc(&data_, std::max<std::size_t>(bytes, 16))); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(data_); }
  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] jrt::Workspace workspace() const { return {data_, bytes_}; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

__global__ void fill(E* numbers, std::int64_t count, unsigned seed) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) {
    unsigned x = static_cast<unsigned>(i) * 2654435761U + seed * 40503U;
    x ^= x >> 15;
    x *= 2246822519U;
    x ^= x >> 13;
    numbers[i] = jrt::convert<E>(static_cast<float>(x & 0xffffU) / 32768.0F - 1.0F);
  }
}

/// Tokens x heads x dim of random numbers.
struct Tensor {
  Memory memory;
  jrt::TensorView<E> view;

  Tensor(std::int64_t tokens, std::int64_t of_heads, std::int64_t dim, unsigned seed, cudaStream_t stream)
      : memory(static_cast<std::size_t>(tokens * of_heads * dim) * sizeof(E)),
        view(jrt::view_bthd(memory.as<E>(), {.tokens = tokens, .heads = of_heads, .dim = dim})) {
    const std::int64_t count = tokens * of_heads * dim;
    fill<<<static_cast<unsigned>(count / 256 + 1), 256, 0, stream>>>(memory.as<E>(), count, seed);
  }
};

/// Milliseconds of a call, on the device of this thread. All ranks begin together.
template <class Call>
double time_of(const Call& call, std::barrier<>& all, cudaStream_t stream) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  require(cudaEventCreate(&begin));
  require(cudaEventCreate(&end));
  for (int i = 0; i < 3; ++i) {
    require(call());
  }
  require(cudaStreamSynchronize(stream));
  all.arrive_and_wait();
  require(cudaEventRecord(begin, stream));
  for (int i = 0; i < rounds; ++i) {
    require(call());
  }
  require(cudaEventRecord(end, stream));
  require(cudaStreamSynchronize(stream));
  float milliseconds = 0;
  require(cudaEventElapsedTime(&milliseconds, begin, end));
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  all.arrive_and_wait();
  return milliseconds / rounds;
}

/// What one rank measures of one mixer.
struct Times {
  double call = 0;
  double without_exchange = 0;
  double bytes = 0;  // received in a call
};

template <class Config, class Args, class C>
Times time_mixer(const Args& local, const jrt::ContextLayout& layout, C& communicator, std::barrier<>& all,
                 const jrt::Cuda& on) {
  if (layout.ranks == 1) {
    Memory workspace(jrt::prefill_workspace_bytes(local, on));
    const double time = time_of([&] { return jrt::prefill(local, workspace.workspace(), on); }, all, on.stream());
    return {time, time, 0};
  }
  jrt::ContextPlan<Config> plan;
  require(jrt::ContextPlan<Config>::make(layout, communicator.rank(), on, plan));
  Memory indices(plan.index_bytes());
  require(plan.place(indices.template as<void>(), on));
  const jrt::ContextPrefillArgs<Config> args{local, &plan};
  Memory workspace(jrt::prefill_workspace_bytes(args, on));
  Times times;
  NoExchange nothing{communicator.rank(), communicator.size()};
  times.without_exchange =
      time_of([&] { return jrt::prefill(args, nothing, workspace.workspace(), on); }, all, on.stream());
  times.call = time_of([&] { return jrt::prefill(args, communicator, workspace.workspace(), on); }, all, on.stream());
  if constexpr (requires { plan.exchanged_bytes(heads); }) {
    times.bytes = static_cast<double>(plan.exchanged_bytes(heads)) * (layout.ranks - 1);
  } else {
    const std::int64_t row = std::is_same_v<Config, Window> ? 2 * heads * Window::head_dim : channels;
    times.bytes = static_cast<double>(plan.received_rows() * row) * sizeof(E);
  }
  return times;
}

struct Mixers {
  Times linear, window, convolution;
};

template <class C>
Mixers time_rank(std::int64_t tokens, C& communicator, std::barrier<>& all, const jrt::Cuda& on) {
  const int ranks = communicator.size();
  std::vector<std::int64_t> pieces(static_cast<std::size_t>(ranks));
  std::vector<std::int64_t> encoder(pieces);
  jrt::divide_tokens(tokens, ranks, 64, pieces.data());
  jrt::divide_tokens(tokens / 2, ranks, 64, encoder.data());
  const jrt::ContextLayout layout{ranks, 1, pieces.data(), encoder.data()};
  jrt::ContextLayout no_encoder = layout;
  no_encoder.encoder_tokens = nullptr;
  const std::int64_t count = layout.piece(communicator.rank(), 0);
  Mixers times;
  {
    const Tensor query(count, heads, 16, 1, on.stream());
    const Tensor key(count, heads, 16, 2, on.stream());
    const Tensor value(count, heads, 64, 3, on.stream());
    const Tensor key_encoder(layout.encoder_piece(communicator.rank(), 0), heads, 16, 4, on.stream());
    const Tensor value_encoder(layout.encoder_piece(communicator.rank(), 0), heads, 64, 5, on.stream());
    const Tensor output(count, heads, 64, 6, on.stream());
    jrt::PrefillArgs<Linear> args;
    args.query = query.view;
    args.key = key.view;
    args.value = value.view;
    args.key_encoder = key_encoder.view;
    args.value_encoder = value_encoder.view;
    args.output = output.view;
    times.linear = time_mixer<Linear>(args, layout, communicator, all, on);
  }
  {
    const Tensor query(count, heads, 64, 1, on.stream());
    const Tensor key(count, heads, 64, 2, on.stream());
    const Tensor value(count, heads, 64, 3, on.stream());
    const Tensor output(count, heads, 64, 6, on.stream());
    jrt::PrefillArgs<Window> args;
    args.query = query.view;
    args.key = key.view;
    args.value = value.view;
    args.output = output.view;
    times.window = time_mixer<Window>(args, no_encoder, communicator, all, on);
  }
  {
    const Tensor input(count, 1, channels, 1, on.stream());
    const Tensor gate(count, 1, channels, 2, on.stream());
    const Tensor output(count, 1, channels, 3, on.stream());
    const Tensor weight(1, 1, channels * 3, 4, on.stream());
    jrt::PrefillArgs<Convolution> args;
    args.input = input.view;
    args.gate = gate.view;
    args.output = output.view;
    args.weight = weight.view.data;
    times.convolution = time_mixer<Convolution>(args, no_encoder, communicator, all, on);
  }
  return times;
}

/// The slowest rank's times of each mixer.
Mixers time_group(std::int64_t tokens, int gpus) {
  std::vector<Mixers> ranks(static_cast<std::size_t>(gpus));
  std::barrier<> all(gpus);
  std::vector<ncclComm_t> communicators(static_cast<std::size_t>(gpus));
  if (gpus > 1) {
    require(ncclCommInitAll(communicators.data(), gpus, nullptr));
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < gpus; ++rank) {
    threads.emplace_back([&, rank] {
      require(cudaSetDevice(rank));
      cudaStream_t stream = nullptr;
      require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      const jrt::Cuda on{stream};
      auto& times = ranks[static_cast<std::size_t>(rank)];
      if (gpus == 1) {
        NoExchange alone{0, 1};
        times = time_rank(tokens, alone, all, on);
      } else {
        jrt::NcclCommunicator communicator(communicators[static_cast<std::size_t>(rank)]);
        times = time_rank(tokens, communicator, all, on);
      }
      require(cudaStreamDestroy(stream));
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (ncclComm_t communicator : communicators) {
    if (gpus > 1) {
      ncclCommDestroy(communicator);
    }
  }
  Mixers slowest = ranks[0];
  for (const Mixers& rank : ranks) {
    for (const auto member : {&Mixers::linear, &Mixers::window, &Mixers::convolution}) {
      (slowest.*member).call = std::max((slowest.*member).call, (rank.*member).call);
      (slowest.*member).without_exchange = std::max((slowest.*member).without_exchange, (rank.*member).without_exchange);
      (slowest.*member).bytes = std::max((slowest.*member).bytes, (rank.*member).bytes);
    }
  }
  return slowest;
}

void print_scaling(bool weak, std::int64_t tokens, int gpus) {
  std::printf("\n%s scaling, %lld tokens%s\n", weak ? "weak" : "strong", static_cast<long long>(tokens),
              weak ? " a GPU" : "");
  std::printf("| mixer | GPUs | time, ms | %s | exchange, ms | received, KB |\n|---|---|---|---|---|---|\n",
              weak ? "of one GPU's time" : "times faster than one GPU");
  Mixers one;
  for (int count = 1; count <= gpus; count *= 2) {
    const Mixers times = time_group(weak ? tokens * count : tokens, count);
    one = count == 1 ? times : one;
    const auto layers = [](const Mixers& m, double Times::*member) {
      return 5 * m.linear.*member + 5 * m.window.*member + 16 * m.convolution.*member;
    };
    const auto row = [&](const char* name, double time, double of_one, double without, double bytes) {
      std::printf("| %s | %d | %.3f | %.3f | %.3f | %.0f |\n", name, count, time, weak ? time / of_one : of_one / time,
                  time - without, bytes / 1000);
    };
    row("linear attention, prefix", times.linear.call, one.linear.call, times.linear.without_exchange, times.linear.bytes);
    row("window, L = 128", times.window.call, one.window.call, times.window.without_exchange, times.window.bytes);
    row("convolution, K = 3", times.convolution.call, one.convolution.call, times.convolution.without_exchange,
        times.convolution.bytes);
    row("all mixers of 360M", layers(times, &Times::call), layers(one, &Times::call),
        layers(times, &Times::without_exchange), layers(times, &Times::bytes));
  }
}

}  // namespace

int main(int argc, char** argv) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
    std::puts("skipped: no CUDA device");
    return 0;
  }
  std::int64_t weak = 32768;
  std::int64_t strong = 1048576;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::int64_t value = std::atoll(argv[i + 1]);
    if (std::strcmp(argv[i], "--weak") == 0 && value > 0) {
      weak = value;
    } else if (std::strcmp(argv[i], "--strong") == 0 && value > 0) {
      strong = value;
    } else if (std::strcmp(argv[i], "--gpus") == 0 && value > 0) {
      gpus = std::min(gpus, static_cast<int>(value));
    } else {
      std::fprintf(stderr, "use: %s [--weak TOKENS_PER_GPU] [--strong TOKENS] [--gpus N]\n", argv[0]);
      return 1;
    }
  }
  cudaDeviceProp properties{};
  require(cudaGetDeviceProperties(&properties, 0));
  std::printf("%d x %s\n", gpus, properties.name);
  print_scaling(true, weak, gpus);
  print_scaling(false, strong, gpus);
}
