// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "jrt_lm/step_kernel.hpp"

/// Where the time of a step goes, by kind of stage: for builds with JRT_LM_STEP_TIMING alone, in others it is nothing. One
/// thread of each block notes the clock; the table is of the last step, printed when the kernel's owner goes away.
namespace jrt_lm {

inline constexpr bool step_timing =
#if defined(JRT_LM_STEP_TIMING)
    true;
#else
    false;
#endif

enum class StepMoment { awaits, passes, waited_before, waits_for_weights, ends, count };
inline constexpr int timed_blocks = step_timing ? 160 : 1;
inline constexpr int timed_stages = step_timing ? 256 : 1;
struct StepTimes {
  long long clock[timed_blocks][timed_stages][static_cast<int>(StepMoment::count)];
};
#if defined(JRT_LM_STEP_TIMING)
static __device__ StepTimes step_times;
#endif

/// Of one thread.
class StepClock {
 public:
  __device__ void note([[maybe_unused]] int stage, [[maybe_unused]] StepMoment moment) const {
#if defined(JRT_LM_STEP_TIMING)
    if (threadIdx.x == 0 && blockIdx.x < timed_blocks && stage < timed_stages) {
      step_times.clock[blockIdx.x][stage][static_cast<int>(moment)] = clock64();
    }
#endif
  }
  /// In case that nothing is done in a stage.
  __device__ void begin([[maybe_unused]] int stage) {
#if defined(JRT_LM_STEP_TIMING)
    note(stage, StepMoment::awaits);
    note(stage, StepMoment::passes);
    note_waiting(stage, StepMoment::waited_before);
    note_waiting(stage, StepMoment::waits_for_weights);
#endif
  }
  __device__ void start_waiting() {
#if defined(JRT_LM_STEP_TIMING)
    start_ = clock64();
#endif
  }
  __device__ void stop_waiting() {
#if defined(JRT_LM_STEP_TIMING)
    waited_ += clock64() - start_;
#endif
  }
  /// How long weights have been waited for since the last call.
  __device__ void note_waiting([[maybe_unused]] int stage, [[maybe_unused]] StepMoment moment) {
#if defined(JRT_LM_STEP_TIMING)
    if (threadIdx.x == 0 && blockIdx.x < timed_blocks && stage < timed_stages) {
      step_times.clock[blockIdx.x][stage][static_cast<int>(moment)] = waited_;
    }
    waited_ = 0;
#endif
  }

#if defined(JRT_LM_STEP_TIMING)
 private:
  long long start_ = 0;
  long long waited_ = 0;
#endif
};

/// Prints the table of the last step when it goes away. `Owner` tells kernels of several translation units apart.
template <class Owner>
class StepTimesPrinter {
#if defined(JRT_LM_STEP_TIMING)
 public:
  void remember(const StepInputs& inputs, int blocks, cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &status) == cudaSuccess && status == cudaStreamCaptureStatusNone) {
      blocks_ = std::min(blocks, timed_blocks);
      stages_.resize(static_cast<std::size_t>(std::min<std::int32_t>(inputs.stage_count, timed_stages)));
      static_cast<void>(cudaMemcpy(stages_.data(), inputs.stages, stages_.size() * sizeof(Stage), cudaMemcpyDeviceToHost));
    }
  }
  ~StepTimesPrinter() {
    if (!stages_.empty()) {
      print();
    }
  }

 private:
  /// Microseconds of each kind of stage, the mean over blocks and layers, at the highest clock rate: from the end of the
  /// stage before to waiting for x, without waiting for weights; waiting for x, and what the last block waits; waiting for
  /// weights; the rest to the end of the stage, and that of the slowest block.
  void print() const {
    const std::vector<Stage>& stages = stages_;
    const int blocks = blocks_;
    static StepTimes times;
    int device = 0;
    int kilohertz = 0;
    if (cudaDeviceSynchronize() != cudaSuccess || cudaMemcpyFromSymbol(&times, step_times, sizeof(times)) != cudaSuccess ||
        cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device) != cudaSuccess) {
      return;
    }
    const double microsecond = kilohertz * 1e-3;
    constexpr const char* names[] = {"embed", "stores", "convolves", "rotates", "gates",
                                     "adds",  "linear", "window",    "logits",  "likeliest"};
    constexpr int kinds = 10;
    struct Sum {
      int stages = 0;
      double before = 0, x = 0, least_x = 0, weights = 0, rest = 0, most_rest = 0, all = 0;
    };
    Sum sums[kinds];
    double total = 0;
    for (std::size_t s = 1; s < stages.size(); ++s) {
      const int kind = static_cast<int>(stages[s].kind);
      Sum& sum = sums[kind];
      ++sum.stages;
      double least = 1e30;
      double most = 0;
      double all = 0;
      for (int b = 0; b < blocks; ++b) {
        const auto at = [&](std::size_t stage, StepMoment m) {
          return static_cast<double>(times.clock[b][stage][static_cast<int>(m)]) / microsecond;
        };
        const double previous = at(s - 1, StepMoment::ends);
        const double waiting = at(s, StepMoment::passes) - at(s, StepMoment::awaits);
        const double weights_before = at(s, StepMoment::waited_before);
        const double weights = at(s, StepMoment::waits_for_weights);
        sum.before += (at(s, StepMoment::awaits) - previous - weights_before) / blocks;
        sum.x += waiting / blocks;
        sum.weights += (weights_before + weights) / blocks;
        sum.rest += (at(s, StepMoment::ends) - at(s, StepMoment::passes) - weights) / blocks;
        sum.all += (at(s, StepMoment::ends) - previous) / blocks;
        all += (at(s, StepMoment::ends) - previous) / blocks;
        least = std::min(least, waiting);
        most = std::max(most, at(s, StepMoment::ends) - at(s, StepMoment::passes) - weights);
      }
      sum.least_x += least;
      sum.most_rest += most;
      total += all;
    }
    std::fprintf(stderr, "%-10s %6s %8s %8s %8s %8s %8s %8s %8s  (us a stage, at %.0f MHz)\n", "stage", "number", "before",
                 "x", "least", "weights", "rest", "most", "all", microsecond);
    for (int kind = 0; kind < kinds; ++kind) {
      const Sum& sum = sums[kind];
      if (sum.stages > 0) {
        const double n = sum.stages;
        std::fprintf(stderr, "%-10s %6d %8.2f %8.2f %8.2f %8.2f %8.2f %8.2f %8.2f\n", names[kind], sum.stages,
                     sum.before / n, sum.x / n, sum.least_x / n, sum.weights / n, sum.rest / n, sum.most_rest / n,
                     sum.all / n);
      }
    }
    std::fprintf(stderr, "together %.1f us\n", total);
  }

  std::vector<Stage> stages_;
  int blocks_ = 0;
#else
 public:
  void remember(const StepInputs& /*inputs*/, int /*blocks*/, cudaStream_t /*stream*/) const {}
#endif
};

}  // namespace jrt_lm
