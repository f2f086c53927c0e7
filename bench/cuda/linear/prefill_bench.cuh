// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <vector>

#include "cuda/linear/prefill_problem.cuh"

/// Checks and times prefills: normalised unless the name says otherwise, final state written, a prefix of half the tokens.
/// Names are
///
///     prefill/<operator>/<element type>/[d<d>/]dv<dv>/B:<sequences>/N:<tokens>[/<what is special>...]
///
/// with d = 16 unless given. Counters `state_bytes` and `workspace_bytes` are those of all sequences of the call together.
namespace jrt::bench {

constexpr int samples_per_check = 24;

/// Output rows spread over sequences, heads and tokens, the last token among them. Not the first ones, whose outputs are
/// so much larger than all others that an error elsewhere would not show.
template <class Config>
double output_error(const PrefillProblem<Config>& problem) {
  constexpr int dv = Config::value_dim;
  const PrefillArgs<Config>& args = problem.args();
  std::vector<Sample> samples;
  for (int i = 0; i < samples_per_check; ++i) {
    const auto& sequences = problem.sequences();
    Sample sample;
    sample.sequence = sequences[static_cast<std::size_t>(i * 7 + 6) % sequences.size()];
    sample.token = (sample.sequence.tokens - 1) * (i + 1) / samples_per_check;
    sample.head = (i * 5 + 12) % args.query.heads;
    sample.key_head = sample.head / problem.query_group();
    samples.push_back(sample);
  }
  const std::vector<double> sums = weighted_sums(problem.inputs(), samples);
  RelativeError error;
  const double* expected = sums.data();
  for (const Sample& sample : samples) {
    const SequenceExtent& sequence = sample.sequence;
    const auto output = numbers_at(args.output.row(sequence.row, sequence.first + sample.token, sample.head), dv);
    const double factor = Config::Normaliser::factor(expected[dv]);
    for (int c = 0; c < dv; ++c) {
      error.add(output[static_cast<std::size_t>(c)], expected[c] * factor);
    }
    expected += dv + 1;
  }
  return error.value();
}

/// Rows of S spread over sequences, heads and features. z stays out: the number of tokens in it would hide errors of the
/// rest, and outputs depend on it.
template <class Config>
double state_error(const PrefillProblem<Config>& problem) {
  using Format = StateFormatOf<Config>;
  using Map = typename Config::FeatureMap;
  constexpr int dv = Config::value_dim;
  const auto& sequences = problem.sequences();
  std::vector<Sample> samples;
  std::vector<std::int64_t> slots;
  for (int i = 0; i < samples_per_check; ++i) {
    const std::size_t slot = static_cast<std::size_t>(i * 5 + 4) % sequences.size();
    Sample sample;
    sample.sequence = sequences[slot];
    sample.head = (i * 7 + 6) % problem.args().key.heads;
    sample.key_head = sample.head;
    sample.row_index = (Format::rows - 1) * i / (samples_per_check - 1);
    sample.row = Map::RowPacking::template row<Map::input_dim>(sample.row_index);
    samples.push_back(sample);
    slots.push_back(static_cast<std::int64_t>(slot));
  }
  const std::vector<double> sums = weighted_sums(problem.inputs(), samples);
  RelativeError error;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const auto* const head = problem.args().final_state.pool.head(slots[i], samples[i].head);
    const auto row = numbers_at(head + std::int64_t{samples[i].row_index} * dv, dv);
    for (std::size_t c = 0; c < dv; ++c) {
      error.add(row[c], sums[i * (dv + 1) + c]);
    }
  }
  return error.value();
}

template <class Config>
void check_and_time(benchmark::State& state, const PrefillCase& problem_case) {
  PrefillProblem<Config> problem(problem_case);
  Status status = problem.prepare();
  if (status.ok()) {
    status = problem.enqueue();
  }
  if (!status.ok()) {
    fail(state, status.c_str());
    return;
  }
  const auto check_then_time = [&](const auto& run) {
    constexpr double bound =
        detail::ProductsOf<Config>::type::splits_numbers ? 1e-5 : error_bound<typename Config::Element>;
    problem.poison();
    run();
    require(cudaStreamSynchronize(timed_stream().stream()), "prefill");
    if (accept(state, "error", output_error(problem), bound) && accept(state, "state_error", state_error(problem), bound)) {
      time_calls(state, problem.work(), run);
      state.counters["state_bytes"] = static_cast<double>(problem.state_bytes());
      state.counters["workspace_bytes"] = static_cast<double>(problem.workspace_bytes());
    }
  };
  const auto call = [&] { require(problem.enqueue()); };
  if (problem_case.graph) {
    const CapturedGraph graph(call);
    check_then_time([&] { graph.replay(); });
  } else {
    check_then_time(call);
  }
}

/// Registers benchmarks of one operator.
template <class Config>
void add_prefill(const std::string& name, const std::vector<PrefillCase>& cases) {
  for (const PrefillCase& problem_case : cases) {
    const bool is_long = problem_case.batch * problem_case.tokens > 100'000;
    benchmark::RegisterBenchmark(("prefill/" + name + problem_case.name()).c_str(),
                                 [problem_case](benchmark::State& state) { check_and_time<Config>(state, problem_case); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond)
        ->Iterations(is_long ? 21 : 51);
  }
}

}  // namespace jrt::bench
