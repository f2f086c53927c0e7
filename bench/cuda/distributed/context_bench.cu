// SPDX-License-Identifier: Apache-2.0
// Context parallelism over the GPUs of one host: the prefill of the mixers of JRT-RNN 360M (bfloat16: 5 layers of prefix
// linear attention, 16 heads, d = 16, dv = 64, an encoder region of half the tokens; 5 windows, L = 128, d = 64; 16
// convolutions, K = 3, 1024 channels), and of both attentions in one, of one sequence; each rank is a thread with its GPU.
//
//     NCCL_NVLS_ENABLE=0 CUDA_MODULE_LOADING=EAGER context_bench [--weak TOKENS_PER_GPU] [--strong TOKENS] [--gpus N]
//     [--json FILE] [--graph 0] [--register 0] [--priority 0]
//     context_bench [--rank 1] --alone N      calls of one rank of N without exchanges, for a profiler
//     context_bench [--rank 1] --waiting BLOCKS --alone N      on one GPU: times with kernels that wait for 10 us instead
//     of NCCL's
//
// Weak scaling: as many tokens a GPU on 1, 2, … GPUs; `of one` is the time over that of one GPU. Strong scaling: one
// sequence on 1, 2, … GPUs; `of one` is how many times faster. One GPU runs the library's ordinary prefill. A time is the
// slowest rank's median of `rounds`; in a round, `calls` calls are replayed from a captured graph between two events, after
// a small exchange that lets all ranks begin together. Workspaces are registered with NCCL unless --register 0. Beside the
// call itself (`time`):
//
//     in order    without a side stream: nothing is hidden
//     local       with a communicator that does nothing: the call's own work
//     exchange    the exchange alone
//     hidden      1 − (time − local) / exchange: the share of the exchange that costs nothing
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <jrt/distributed/cuda.cuh>
#include <jrt/distributed/nccl.cuh>
#include <string>
#include <thread>
#include <vector>

#include "cuda/distributed/context_clock.cuh"
#include "cuda/distributed/context_mixers.cuh"

namespace {

using namespace jrt::bench;

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

void print_scaling(bool weak, std::int64_t tokens, int gpus, bool graph, bool registers) {
  std::printf("\n%s scaling, %lld tokens%s\n", weak ? "weak" : "strong", static_cast<long long>(tokens),
              weak ? " a GPU" : "");
  std::printf("| mixer | GPUs | time, ms | %s | in order | local | exchange | hidden | sent, KB | received, KB |\n",
              weak ? "of one GPU's time" : "times faster than one GPU");
  std::printf("|---|---|---|---|---|---|---|---|---|---|\n");
  Mixers one;
  for (int count = 1; count <= gpus; count *= 2) {
    const Mixers times = time_group(weak ? tokens * count : tokens, count, graph, registers);
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

/// A rank on one GPU, without NCCL.
void print_alone(std::int64_t tokens, int rank, int ranks, int waiting) {
  const Mixers times = run_alone(tokens, rank, ranks, waiting);
  if (waiting == 0) {
    return;
  }
  const Mixers one = run_alone(tokens / ranks, 0, 1, waiting);
  std::printf("| mixer | one GPU, ms | rank | in order | local |\n|---|---|---|---|---|\n");
  const auto row = [&](const char* name, const Times& now, const Times& alone) {
    std::printf("| %s | %.4f | %.4f | %.4f | %.4f |\n", name, alone.call, now.call, now.in_order, now.local);
  };
  row("linear attention, prefix", times.linear, one.linear);
  row("window, L = 128", times.window, one.window);
  row("convolution, K = 3", times.convolution, one.convolution);
  row("hybrid, L = 128", times.hybrid, one.hybrid);
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
        const Clock clock{all, &communicator, on, false, rank};
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
  std::int64_t registers = 1;
  std::int64_t waiting = 0;
  std::int64_t rank = 1;
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
    } else if (std::strcmp(argv[i], "--register") == 0) {
      registers = value;
    } else if (std::strcmp(argv[i], "--priority") == 0) {
      node_priorities = value != 0;
    } else if (std::strcmp(argv[i], "--alone") == 0 && value > 1) {
      print_alone(weak * value, static_cast<int>(std::min(rank, value - 1)), static_cast<int>(value),
                  static_cast<int>(waiting));
      return 0;
    } else if (std::strcmp(argv[i], "--waiting") == 0) {
      waiting = value;
    } else if (std::strcmp(argv[i], "--rank") == 0 && value >= 0) {
      rank = value;
    } else if (std::strcmp(argv[i], "--json") == 0) {
      json_file = argv[i + 1];
    } else {
      std::fprintf(stderr,
                   "use: %s [--weak TOKENS_PER_GPU] [--strong TOKENS] [--gpus N] [--json FILE] [--graph 0] [--register 0]\n"
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
    print_scaling(true, weak, gpus, graph != 0, registers != 0);
  }
  if (strong > 0) {
    print_scaling(false, strong, gpus, graph != 0, registers != 0);
  }
  write_json();
}
