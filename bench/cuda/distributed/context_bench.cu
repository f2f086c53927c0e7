// SPDX-License-Identifier: Apache-2.0
// Context parallelism over the GPUs of one host: the prefill of the mixers of JRT-RNN 360M (bfloat16: 5 layers of prefix
// linear attention, 16 heads, d = 16, dv = 64, an encoder region of half the tokens; 5 windows, L = 128, d = 64; 16
// convolutions, K = 3, 1024 channels), and of both attentions in one, of one sequence; each rank is a thread with its GPU.
//
//     NCCL_NVLS_ENABLE=0 CUDA_MODULE_LOADING=EAGER context_bench [--weak TOKENS_PER_GPU] [--strong TOKENS] [--gpus N]
//     [--json FILE] [--graph 0]
//
// Weak scaling: as many tokens a GPU on 1, 2, … GPUs; `of one` is the time over that of one GPU. Strong scaling: one
// sequence on 1, 2, … GPUs; `of one` is how many times faster. One GPU runs the library's ordinary prefill. A time is the
// slowest rank's median of `rounds`; in a round, `calls` calls are replayed from a captured graph between two events, after
// a small exchange that lets all ranks begin together. Beside the call itself (`time`):
//
//     in order    without a side stream: nothing is hidden
//     local       with a communicator that does nothing: the call's own work
//     exchange    the exchange alone
//     hidden      1 − (time − local) / exchange: the share of the exchange that costs nothing
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <jrt/distributed/cuda.cuh>
#include <jrt/distributed/nccl.cuh>
#include <optional>
#include <string>
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
using Hybrid = jrt::HybridAttention<Linear, jrt::WindowBeside<Linear, 128>>;
constexpr std::int64_t heads = 16;
constexpr std::int64_t channels = 1024;
constexpr int rounds = 11;
constexpr int calls = 5;

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
    fill_with(seed, stream);
  }
  void fill_with(unsigned seed, cudaStream_t stream) const {
    const std::int64_t count = view.tokens * view.heads * view.dim;
    fill<<<static_cast<unsigned>(count / 256 + 1), 256, 0, stream>>>(memory.as<E>(), count, seed);
  }
};

/// How everything is timed.
struct Clock {
  std::barrier<>& all;
  jrt::NcclCommunicator* communicator;  // null on one GPU
  const jrt::Cuda& on;
  bool graph;

  /// Milliseconds of a call, on the device of this thread.
  [[nodiscard]] double operator()(const std::function<jrt::Status()>& call) const {
    cudaStream_t const stream = on.stream();
    // Memory is allocated while no rank waits for another on its GPU: the driver may want both to be idle.
    all.arrive_and_wait();
    for (int i = 0; i < 3; ++i) {
      require(call());
    }
    require(cudaStreamSynchronize(stream));
    all.arrive_and_wait();
    const auto all_calls = [&] {
      for (int i = 0; i < calls; ++i) {
        require(call());
      }
    };
    cudaGraphExec_t replay = nullptr;
    if (graph) {
      cudaGraph_t captured = nullptr;
      require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      all_calls();
      require(cudaStreamEndCapture(stream, &captured));
      require(cudaGraphInstantiate(&replay, captured, 0));
      require(cudaGraphDestroy(captured));
    }
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    require(cudaEventCreate(&begin));
    require(cudaEventCreate(&end));
    const Memory small(64 * 16);
    std::vector<double> times;
    for (int round = 0; round < rounds + 2; ++round) {
      all.arrive_and_wait();
      if (communicator != nullptr) {
        require(communicator->all_gather(small.as<char>() + 16 * communicator->rank(), small.as<char>(), 16, on));
      }
      require(cudaEventRecord(begin, stream));
      if (graph) {
        require(cudaGraphLaunch(replay, stream));
      } else {
        all_calls();
      }
      require(cudaEventRecord(end, stream));
      require(cudaStreamSynchronize(stream));
      float milliseconds = 0;
      require(cudaEventElapsedTime(&milliseconds, begin, end));
      if (round >= 2) {
        times.push_back(milliseconds / calls);
      }
    }
    all.arrive_and_wait();
    if (replay != nullptr) {
      require(cudaGraphExecDestroy(replay));
    }
    require(cudaEventDestroy(begin));
    require(cudaEventDestroy(end));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

/// What one rank measures of one mixer, in milliseconds.
struct Times {
  double call = 0;
  double in_order = 0;
  double local = 0;
  double exchange = 0;
  double sent = 0;  // bytes in a call
  double received = 0;
};

using Time = double Times::*;
constexpr Time all_times[] = {&Times::call,     &Times::in_order, &Times::local,
                              &Times::exchange, &Times::sent,     &Times::received};

/// `meanwhile` is work of the caller's that the exchange does not need.
template <class Config, class Args>
Times time_mixer(
    const Args& local, const jrt::ContextLayout& layout, const Clock& time_of,
    const std::function<jrt::Status()>& meanwhile = [] { return jrt::Status(); }) {
  const jrt::Cuda& on = time_of.on;
  if (layout.ranks == 1) {
    Memory workspace(jrt::prefill_workspace_bytes(local, on));
    const double time = time_of([&] {
      const jrt::Status status = meanwhile();
      return status.ok() ? jrt::prefill(local, workspace.workspace(), on) : status;
    });
    return {time, time, time, 0, 0, 0};
  }
  jrt::NcclCommunicator& communicator = *time_of.communicator;
  jrt::NcclCommunicator in_order(communicator.get());
  NoExchange nothing{communicator.rank(), communicator.size()};
  jrt::ContextPlan<Config> plan;
  require(jrt::ContextPlan<Config>::make(layout, communicator.rank(), on, plan));
  Memory indices(plan.index_bytes());
  require(plan.place(indices.template as<void>(), on));
  const jrt::ContextPrefillArgs<Config> args{local, &plan};
  Memory workspace(jrt::prefill_workspace_bytes(args, on));
  Times times;
  times.local = time_of([&] { return jrt::prefill(args, meanwhile, nothing, workspace.workspace(), on); });
  times.in_order = time_of([&] { return jrt::prefill(args, meanwhile, in_order, workspace.workspace(), on); });
  times.call = time_of([&] { return jrt::prefill(args, meanwhile, communicator, workspace.workspace(), on); });

  const int rank = communicator.rank();
  std::int64_t gathered = 0;
  std::int64_t halo = 0;
  if constexpr (std::is_same_v<Config, Hybrid>) {
    gathered = plan.exchanged_bytes(heads);
    halo = (Hybrid::Window::left_window + 1) * heads * (16 + 64) * static_cast<std::int64_t>(sizeof(E));
  } else if constexpr (std::is_same_v<Config, Linear>) {
    gathered = plan.exchanged_bytes(heads);
  } else {
    const std::int64_t row = std::is_same_v<Config, Window> ? 2 * heads * Window::head_dim : channels;
    halo = jrt::ContextPlan<Config>::halo_rows * row * static_cast<std::int64_t>(sizeof(E));
  }
  times.sent = static_cast<double>(gathered + (rank + 1 < layout.ranks ? halo : 0));
  times.received = static_cast<double>(gathered * (layout.ranks - 1) + (rank > 0 ? halo : 0));
  const Memory sums(static_cast<std::size_t>(gathered * layout.ranks));
  const Memory rows(static_cast<std::size_t>(2 * halo));
  times.exchange = time_of([&] {
    jrt::Status status;
    if (halo > 0) {
      const auto bytes = static_cast<std::size_t>(halo);
      const jrt::OutgoingBytes outgoing{rank + 1, rows.as<char>(), bytes};
      const jrt::IncomingBytes incoming{rank - 1, rows.as<char>() + halo, bytes};
      status = in_order.exchange({&outgoing, rank + 1 < layout.ranks ? 1U : 0U}, {&incoming, rank > 0 ? 1U : 0U}, on);
    }
    return status.ok() && gathered > 0 ? in_order.all_gather(sums.as<char>() + rank * gathered, sums.as<char>(),
                                                             static_cast<std::size_t>(gathered), on)
                                       : status;
  });
  return times;
}

struct Mixers {
  Times linear, linear_meanwhile, window, convolution, hybrid;
};

Mixers time_rank(std::int64_t tokens, int rank, int ranks, const Clock& clock) {
  const jrt::Cuda& on = clock.on;
  std::vector<std::int64_t> pieces(static_cast<std::size_t>(ranks));
  std::vector<std::int64_t> encoder(pieces);
  jrt::divide_tokens(tokens, ranks, 64, pieces.data());
  jrt::divide_tokens(tokens / 2, ranks, 64, encoder.data());
  const jrt::ContextLayout layout{ranks, 1, pieces.data(), encoder.data()};
  jrt::ContextLayout no_encoder = layout;
  no_encoder.encoder_tokens = nullptr;
  const std::int64_t count = layout.piece(rank, 0);
  Mixers times;
  {
    const Tensor query(count, heads, 16, 1, on.stream());
    const Tensor key(count, heads, 16, 2, on.stream());
    const Tensor value(count, heads, 64, 3, on.stream());
    const Tensor key_encoder(layout.encoder_piece(rank, 0), heads, 16, 4, on.stream());
    const Tensor value_encoder(layout.encoder_piece(rank, 0), heads, 64, 5, on.stream());
    const Tensor output(count, heads, 64, 6, on.stream());
    jrt::PrefillArgs<Linear> args;
    args.query = query.view;
    args.key = key.view;
    args.value = value.view;
    args.key_encoder = key_encoder.view;
    args.value_encoder = value_encoder.view;
    args.output = output.view;
    times.linear = time_mixer<Linear>(args, layout, clock);
    times.linear_meanwhile = time_mixer<Linear>(args, layout, clock, [&] {
      query.fill_with(1, on.stream());
      return jrt::Status();
    });
    jrt::PrefillArgs<Hybrid> both;
    both.query = query.view;
    both.key = key.view;
    both.value = value.view;
    both.key_encoder = key_encoder.view;
    both.value_encoder = value_encoder.view;
    both.output = output.view;
    times.hybrid = time_mixer<Hybrid>(both, layout, clock);
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
    times.window = time_mixer<Window>(args, no_encoder, clock);
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
    times.convolution = time_mixer<Convolution>(args, no_encoder, clock);
  }
  return times;
}

/// The slowest rank's times of each mixer.
Mixers time_group(std::int64_t tokens, int gpus, bool graph) {
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
      cudaStream_t beside = nullptr;
      int lowest = 0;
      int highest = 0;
      require(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
      require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      require(cudaStreamCreateWithPriority(&beside, cudaStreamNonBlocking, highest));
      {
        const jrt::Cuda on{stream};
        jrt::SideStream side(beside);
        std::optional<jrt::NcclCommunicator> communicator;
        if (gpus > 1) {
          communicator.emplace(communicators[static_cast<std::size_t>(rank)], &side);
        }
        const Clock clock{all, communicator ? &*communicator : nullptr, on, graph};
        ranks[static_cast<std::size_t>(rank)] = time_rank(tokens, rank, gpus, clock);
      }
      require(cudaStreamDestroy(beside));
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
    for (const auto mixer :
         {&Mixers::linear, &Mixers::linear_meanwhile, &Mixers::window, &Mixers::convolution, &Mixers::hybrid}) {
      for (const auto time : all_times) {
        (slowest.*mixer).*time = std::max((slowest.*mixer).*time, (rank.*mixer).*time);
      }
    }
  }
  return slowest;
}

std::string json;
std::string json_head;
const char* json_file = nullptr;

/// All rows so far.
void write_json() {
  if (json_file == nullptr) {
    return;
  }
  std::FILE* const out = std::fopen(json_file, "w");
  if (out == nullptr) {
    std::fprintf(stderr, "%s cannot be written\n", json_file);
    std::exit(1);
  }
  std::fprintf(out, "{%s, \"rows\": [%s\n]}\n", json_head.c_str(), json.c_str());
  std::fclose(out);
}

void print_scaling(bool weak, std::int64_t tokens, int gpus, bool graph) {
  std::printf("\n%s scaling, %lld tokens%s\n", weak ? "weak" : "strong", static_cast<long long>(tokens),
              weak ? " a GPU" : "");
  std::printf("| mixer | GPUs | time, ms | %s | in order | local | exchange | hidden | sent, KB | received, KB |\n",
              weak ? "of one GPU's time" : "times faster than one GPU");
  std::printf("|---|---|---|---|---|---|---|---|---|---|\n");
  Mixers one;
  for (int count = 1; count <= gpus; count *= 2) {
    const Mixers times = time_group(weak ? tokens * count : tokens, count, graph);
    one = count == 1 ? times : one;
    const auto layers = [](const Mixers& m) {
      Times sum;
      for (const auto time : all_times) {
        sum.*time = 5 * m.linear.*time + 5 * m.window.*time + 16 * m.convolution.*time;
      }
      return sum;
    };
    const auto row = [&](const char* name, const Times& now, const Times& alone) {
      const double scaling = weak ? now.call / alone.call : alone.call / now.call;
      const double hidden = now.exchange > 0 ? std::clamp(1 - (now.call - now.local) / now.exchange, 0.0, 1.0) : 1.0;
      std::printf("| %s | %d | %.4f | %.3f | %.4f | %.4f | %.4f | %.2f | %.1f | %.1f |\n", name, count, now.call, scaling,
                  now.in_order, now.local, now.exchange, hidden, now.sent / 1000, now.received / 1000);
      std::fflush(stdout);
      char text[512];
      std::snprintf(text, sizeof text,
                    "%s\n  {\"scaling\": \"%s\", \"tokens\": %lld, \"mixer\": \"%s\", \"gpus\": %d, \"ms\": %.5f, "
                    "\"of_one\": %.4f, \"in_order_ms\": %.5f, \"local_ms\": %.5f, \"exchange_ms\": %.5f, "
                    "\"hidden\": %.3f, \"sent_bytes\": %.0f, \"received_bytes\": %.0f}",
                    json.empty() ? "" : ",", weak ? "weak" : "strong", static_cast<long long>(tokens), name, count,
                    now.call, scaling, now.in_order, now.local, now.exchange, hidden, now.sent, now.received);
      json += text;
    };
    row("linear attention, prefix", times.linear, one.linear);
    row("linear attention, queries made meanwhile", times.linear_meanwhile, one.linear_meanwhile);
    row("window, L = 128", times.window, one.window);
    row("convolution, K = 3", times.convolution, one.convolution);
    row("all mixers of 360M", layers(times), layers(one));
    row("hybrid, L = 128", times.hybrid, one.hybrid);
    write_json();
  }
}

/// All-gathers of growing size, from which docs/distributed.md takes latency and bandwidth.
void print_links(int gpus) {
  if (gpus < 2) {
    return;
  }
  std::printf("\nall-gather over %d GPUs\n| sent by each, KB | time, us | received, GB/s |\n|---|---|---|\n", gpus);
  std::vector<ncclComm_t> communicators(static_cast<std::size_t>(gpus));
  require(ncclCommInitAll(communicators.data(), gpus, nullptr));
  const std::vector<std::size_t> sizes = {16, 4096, 65536, 524288, 1048576, 4194304, 16777216, 67108864};
  std::vector<std::vector<double>> times(static_cast<std::size_t>(gpus));
  std::barrier<> all(gpus);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < gpus; ++rank) {
    threads.emplace_back([&, rank] {
      require(cudaSetDevice(rank));
      cudaStream_t stream = nullptr;
      require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      {
        const jrt::Cuda on{stream};
        jrt::NcclCommunicator communicator(communicators[static_cast<std::size_t>(rank)]);
        const Clock clock{all, &communicator, on, false};
        const Memory memory(sizes.back() * static_cast<std::size_t>(gpus));
        for (const std::size_t bytes : sizes) {
          times[static_cast<std::size_t>(rank)].push_back(clock([&] {
            return communicator.all_gather(memory.as<char>() + static_cast<std::size_t>(rank) * bytes, memory.as<char>(),
                                           bytes, on);
          }));
        }
      }
      require(cudaStreamDestroy(stream));
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    double slowest = 0;
    for (const auto& rank : times) {
      slowest = std::max(slowest, rank[i]);
    }
    const auto received = static_cast<double>(sizes[i]) * (gpus - 1);
    std::printf("| %.1f | %.1f | %.1f |\n", static_cast<double>(sizes[i]) / 1000, slowest * 1000, received / slowest / 1e6);
    char text[160];
    std::snprintf(text, sizeof text, "%s\n  {\"link\": \"all_gather\", \"gpus\": %d, \"sent_bytes\": %zu, \"ms\": %.5f}",
                  json.empty() ? "" : ",", gpus, sizes[i], slowest);
    json += text;
  }
  for (ncclComm_t communicator : communicators) {
    ncclCommDestroy(communicator);
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
  std::int64_t graph = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::int64_t value = std::atoll(argv[i + 1]);
    if (std::strcmp(argv[i], "--weak") == 0 && value >= 0) {
      weak = value;
    } else if (std::strcmp(argv[i], "--strong") == 0 && value >= 0) {
      strong = value;
    } else if (std::strcmp(argv[i], "--gpus") == 0 && value > 0) {
      gpus = std::min(gpus, static_cast<int>(value));
    } else if (std::strcmp(argv[i], "--graph") == 0) {
      graph = value;
    } else if (std::strcmp(argv[i], "--json") == 0) {
      json_file = argv[i + 1];
    } else {
      std::fprintf(stderr,
                   "use: %s [--weak TOKENS_PER_GPU] [--strong TOKENS] [--gpus N] [--json FILE] [--graph 0]\n"
                   "0 tokens leave a part out\n",
                   argv[0]);
      return 1;
    }
  }
  cudaDeviceProp properties{};
  require(cudaGetDeviceProperties(&properties, 0));
  int version = 0;
  require(ncclGetVersion(&version));
  std::printf("%d x %s, NCCL %d, %s\n", gpus, properties.name, version, graph != 0 ? "captured graphs" : "plain calls");
  json_head = std::string("\"device\": \"") + properties.name + "\", \"nccl\": " + std::to_string(version) +
              ", \"graph\": " + (graph != 0 ? "true" : "false");
  print_links(gpus);
  if (weak > 0) {
    print_scaling(true, weak, gpus, graph != 0);
  }
  if (strong > 0) {
    print_scaling(false, strong, gpus, graph != 0);
  }
  write_json();
}
