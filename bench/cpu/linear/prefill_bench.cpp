// SPDX-License-Identifier: Apache-2.0
// How fast is prefill on the CPU, as a fraction of what the cores can multiply and add?
#include <benchmark/benchmark.h>

#include <algorithm>
#include <jrt/cpu.hpp>
#include <jrt/prefill.hpp>
#include <jrt/thread_pool.hpp>
#include <string>
#include <thread>
#include <vector>

#include "cpu/ceilings.hpp"
#include "cpu/problem.hpp"
#include "cpu/timing.hpp"

namespace {

constexpr std::int64_t heads = 16;

template <class Config>
void report(benchmark::State& state, std::int64_t tokens, std::int64_t prefix, int threads, double seconds) {
  const double operations =
      static_cast<double>(heads) * (static_cast<double>(tokens) * bench::operations_per_token<Config>() +
                                    static_cast<double>(prefix) * bench::operations_per_prefix_token<Config>());
  state.counters["useful_GFLOPs"] = operations / seconds * 1e-9;
  state.counters["of_fma_peak"] = operations / seconds / bench::fma_peak(threads);
  state.counters["of_sgemm"] = operations / seconds / threads / bench::sgemm_rate();
  state.counters["us_per_token"] = seconds / static_cast<double>(tokens) * 1e6;
}

/// `name` labels the element type; arguments: tokens, prefix, threads.
template <class Config>
void prefill(benchmark::State& state, const std::string& name) {
  const std::int64_t tokens = state.range(0);
  const std::int64_t prefix = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  bench::Problem<Config> problem(1, tokens, prefix, heads);
  jrt::ThreadPool pool(threads);
  const jrt::Cpu on{pool};
  jrt::StatePool<jrt::StateFormatOf<Config>> states;
  if (!jrt::StatePool<jrt::StateFormatOf<Config>>::allocate(1, heads, states)) {
    state.SkipWithError("no memory for the state");
    return;
  }
  jrt::PrefillArgs<Config> args{.query = problem.query.view(),
                                .key = problem.key.view(),
                                .value = problem.value.view(),
                                .output = problem.output.view()};
  if constexpr (Config::Mask::reads_encoder) {
    args.key_encoder = problem.key_encoder.view();
    args.value_encoder = problem.value_encoder.view();
  }
  args.final_state = {states.view()};
  std::vector<std::byte> memory(jrt::prefill_workspace_bytes(args, on));
  bench::Shortest shortest;
  for (auto _ : state) {
    jrt::Status status;
    shortest.time([&] { status = jrt::prefill(args, {memory.data(), memory.size()}, on); });
    if (!status) {
      state.SkipWithError(status.c_str());
      return;
    }
  }
  report<Config>(state, tokens, prefix, threads, shortest.seconds());

  const double per_token = shortest.seconds() / static_cast<double>(tokens);
  const auto key = [&](const std::string& type, std::int64_t t, int n) {
    return type + "/" + std::to_string(t) + "/" + std::to_string(prefix == 0 ? 0 : 1) + "/" + std::to_string(n);
  };
  auto& times = bench::seconds_of();
  times[key(name, tokens, threads)] = per_token;
  const auto ratio = [&](const char* counter, const std::string& other, bool inverse) {
    if (times.contains(other)) {
      state.counters[counter] = inverse ? times[other] / per_token : per_token / times[other];
    }
  };
  if (threads > 1) {
    ratio("speedup_over_1_thread", key(name, tokens, 1), true);
  }
  if (tokens > 8192) {
    ratio("time_per_token_over_T8192", key(name, 8192, threads), false);
  }
  if (name != "float") {
    ratio("time_over_float", key("float", tokens, threads), false);
  }
}

/// One prefill with everything it needs, to be run again and again.
class Run {
 public:
  using Config = jrt::PrefixLinearAttention<float, 16, 64>;

  Run(std::int64_t tokens, int threads) : problem_(1, tokens, tokens / 2, heads), pool_(threads) {
    args_.query = problem_.query.view();
    args_.key = problem_.key.view();
    args_.value = problem_.value.view();
    args_.key_encoder = problem_.key_encoder.view();
    args_.value_encoder = problem_.value_encoder.view();
    args_.output = problem_.output.view();
    memory_.resize(jrt::prefill_workspace_bytes(args_, jrt::Cpu{pool_}));
  }

  bool once() {
    jrt::Status status;
    shortest_.time([&] { status = jrt::prefill(args_, {memory_.data(), memory_.size()}, jrt::Cpu{pool_}); });
    return status.ok();
  }
  [[nodiscard]] double seconds() const { return shortest_.seconds(); }

 private:
  bench::Problem<Config> problem_;
  jrt::ThreadPool pool_;
  jrt::PrefillArgs<Config> args_;
  std::vector<std::byte> memory_;
  bench::Shortest shortest_;
};

/// The two ratios that matter, from runs that alternate, so that a disturbance of the machine meets both sides.
void ratios(benchmark::State& state) {
  Run one(8192, 1);
  Run two(8192, 2);
  Run longer(65536, 1);
  for (auto _ : state) {
    bool good = longer.once();
    for (int i = 0; i < 8; ++i) {
      good = good && one.once() && two.once();
    }
    if (!good) {
      state.SkipWithError("prefill failed");
      return;
    }
  }
  state.counters["speedup_of_2_threads"] = one.seconds() / two.seconds();
  state.counters["time_per_token_T65536_over_T8192"] = longer.seconds() / 8 / one.seconds();
}
BENCHMARK(ratios)->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(12);

/// Some threads over one, in runs that alternate; and the same of multiply-adds on registers alone, which tell what the
/// processors have: clocks fall where many work, and two threads of a core share its units.
void scaling(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  if (static_cast<unsigned>(threads) > std::thread::hardware_concurrency()) {
    state.SkipWithError("more threads than processors");
    return;
  }
  Run one(8192, 1);
  Run many(8192, threads);
  for (auto _ : state) {
    bool good = one.once();
    for (int i = 0; i < 4; ++i) {
      good = good && many.once();
    }
    if (!good) {
      state.SkipWithError("prefill failed");
      return;
    }
  }
  state.counters["speedup"] = one.seconds() / many.seconds();
  state.counters["speedup_of_fma"] = bench::fma_peak(threads) / bench::fma_peak(1);
}
BENCHMARK(scaling)
    ->ArgName("threads")
    ->Arg(2)
    ->Arg(4)
    ->Arg(8)
    ->Arg(16)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(20);

/// The baseline: the recurrence token by token in plain loops, as a first implementation would have it.
void naive_recurrence(benchmark::State& state) {
  using Config = jrt::PrefixLinearAttention<float, 16, 64>;
  const std::int64_t tokens = state.range(0);
  const std::int64_t prefix = state.range(1);
  constexpr int rows = Config::FeatureMap::feature_dim;
  constexpr int columns = Config::value_dim;
  bench::Problem<Config> problem(1, tokens, prefix, heads);
  const Config::FeatureMap map{};
  std::vector<float> sums(static_cast<std::size_t>(rows) * columns);
  std::vector<float> normaliser(rows);
  bench::Shortest shortest;
  const auto absorb = [&](const float* key, const float* value) {
    float features[rows];
    map.expand_key(key, features);
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; ++c) {
        sums[static_cast<std::size_t>(r * columns + c)] += features[r] * value[c];
      }
      normaliser[static_cast<std::size_t>(r)] += features[r];
    }
  };
  for (auto _ : state) {
    shortest.time([&] {
      for (std::int64_t h = 0; h < heads; ++h) {
        std::fill(sums.begin(), sums.end(), 0.0F);
        std::fill(normaliser.begin(), normaliser.end(), 0.0F);
        for (std::int64_t t = 0; t < prefix; ++t) {
          absorb(problem.key_encoder.view().row(0, t, h), problem.value_encoder.view().row(0, t, h));
        }
        for (std::int64_t t = 0; t < tokens; ++t) {
          absorb(problem.key.view().row(0, t, h), problem.value.view().row(0, t, h));
          float features[rows];
          map.expand_query(problem.query.view().row(0, t, h), features);
          float numerator[columns] = {};
          float denominator = 0;
          for (int r = 0; r < rows; ++r) {
            for (int c = 0; c < columns; ++c) {
              numerator[c] += features[r] * sums[static_cast<std::size_t>(r * columns + c)];
            }
            denominator += features[r] * normaliser[static_cast<std::size_t>(r)];
          }
          float* const output = problem.output.view().row(0, t, h);
          for (int c = 0; c < columns; ++c) {
            output[c] = numerator[c] / denominator;
          }
        }
      }
    });
    benchmark::ClobberMemory();
  }
  report<Config>(state, tokens, prefix, 1, shortest.seconds());
}

template <class Element>
using Prefix = jrt::PrefixLinearAttention<Element, 16, 64>;
template <class Element>
using Causal = jrt::BasedLinearAttention<Element, 16, 64>;
using Wide = jrt::PrefixLinearAttention<float, 16, 112>;

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"T", "M", "threads"})->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(2.5);
}

constexpr auto prefill_prefix = prefill<Prefix<float>>;
constexpr auto prefill_prefix_half = prefill<Prefix<jrt::Half>>;
constexpr auto prefill_prefix_bfloat16 = prefill<Prefix<jrt::BFloat16>>;
constexpr auto prefill_causal = prefill<Causal<float>>;
constexpr auto prefill_prefix_wide = prefill<Wide>;

BENCHMARK_CAPTURE(prefill_prefix, float, "float")
    ->Apply(shapes)
    ->Args({8192, 4096, 1})
    ->Args({8192, 4096, 2})
    ->Args({65536, 32768, 1})
    ->Args({65536, 32768, 2});
BENCHMARK_CAPTURE(prefill_prefix_half, half, "half")->Apply(shapes)->Args({8192, 4096, 1});
BENCHMARK_CAPTURE(prefill_prefix_bfloat16, bfloat16, "bfloat16")->Apply(shapes)->Args({8192, 4096, 1});
BENCHMARK_CAPTURE(prefill_causal, float, "float")->Apply(shapes)->Args({8192, 0, 1})->Args({8192, 0, 2});
BENCHMARK_CAPTURE(prefill_prefix_wide, float_dv112, "float dv112")->Apply(shapes)->Args({8192, 4096, 1});
BENCHMARK(naive_recurrence)->ArgNames({"T", "M"})->Args({8192, 4096})->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
