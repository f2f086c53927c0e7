// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/detail/shared/linear/step_operator.hpp"
#include "jrt/mixer/linear_attention.hpp"

/// The parameters of a decode step's kernel.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// How the threads of a block share a head's state.
template <class Format, class T>
struct StepLayout {
  static constexpr int widest = access_bytes / static_cast<int>(sizeof(typename Format::Scalar));

  /// Columns per thread: as many as one access holds and divide the row.
  static constexpr int columns = [] {
    int width = widest;
    while (Format::columns % width != 0) {
      width /= 2;
    }
    return width;
  }();
  static constexpr int lanes = Format::columns / columns;  // threads that share a row

  /// Values of the state that a thread keeps in registers.
  static constexpr int max_numbers =
      decode_tuning.float_values * static_cast<int>(sizeof(float)) / static_cast<int>(sizeof(T));

  static constexpr int rows_with(int threads) { return ceil_div(Format::rows, larger(1, threads / lanes)); }
  static constexpr int threads = [] {
    int wanted = decode_tuning.min_threads;
    while (wanted < decode_tuning.max_threads && (rows_with(wanted) * columns > max_numbers || wanted < lanes)) {
      wanted *= 2;
    }
    return wanted;
  }();
  static_assert(lanes <= threads, "jrt CUDA backend: value_dim is too large for a decode step; up to 512 always works.");
  static constexpr int groups = threads / lanes;  // rows processed at a time
  /// Whether a warp's groups are reduced with shuffles before they go to shared memory. Wider types leave no registers for
  /// it.
  static constexpr bool sums_in_warps = sizeof(typename Format::Scalar) == 2 && lanes <= 32 && 32 % lanes == 0;
  static constexpr int partial_sums = sums_in_warps ? threads / 32 : groups;

  /// Memory-bound: the more loads in flight the better, so few registers are used.
  static constexpr int blocks_per_multiprocessor(bool as_stored) {
    return sizeof(T) == 4
               ? larger(1, (as_stored ? decode_tuning.threads_as_stored : decode_tuning.threads_as_summed) / threads)
               : 1;
  }

  /// Rows per thread that are in registers together; larger states take several passes.
  static constexpr int rows = smaller(rows_with(threads), larger(1, max_numbers / columns));
  static constexpr int passes = ceil_div(Format::rows, groups* rows);

  /// Whether there is a kernel for one token that keeps values as stored.
  static constexpr bool keeps_stored = sizeof(typename Format::Scalar) == 2 && passes == 1;
};

/// What a step needs to find evicted keys, if its keys are those; cuda/hybrid/step.cuh specialises this, and `StepEvicted`.
template <class Config>
struct EvictedStepInput {};

/// One step in terms that decode_step, staged_step and commit share.
template <class Config>
struct StepCall {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using T = ConfigCompute<Config>;
  using Layout = StepLayout<Format, T>;

  TensorView<const Element> query{};
  TensorView<const Element> key{};
  TensorView<const Element> value{};
  TensorView<Element> output{};
  TensorView<T> denominators{};
  StateSlots<Format> source{};
  StateSlots<Format> destination{};  // empty: the state is not written
  StagingView<Config> staging{};     // empty: keys and values come from the views
  std::int64_t already_staged = 0;
  const std::int32_t* accepted_tokens = nullptr;  // the number of keys, if it differs between sequences
  const std::int32_t* first_positions = nullptr;
  typename Config::FeatureMap map{};
  std::int64_t sequences = 0;
  std::int64_t heads = 0;
  std::int64_t keys = 0;   // tokens whose keys go into the state
  std::int64_t group = 0;  // query heads that read one state; 0 without queries
  T* sums = nullptr;       // [sequences * heads][queries][columns + 1], with more than one pass
  EvictedStepInput<Config> evicted{};

  [[nodiscard]] __host__ __device__ std::int64_t queries() const { return (keys - already_staged) * group; }
  [[nodiscard]] __host__ __device__ std::int64_t sum_elements() const {
    return Layout::passes > 1 ? sequences * heads * queries() * (Format::columns + 1) : 0;
  }
};

template <class Config>
StagingView<StepOnly<Config>> step_staging(const StagingView<Config>& view) {
  return {view.data, view.sequences, view.tokens, view.heads, view.heads_apart};
}

/// The fields shared by a step and a staged step.
template <class Config, class Args>
StepCall<StepOnly<Config>> step_of_tokens(const Args& args) {
  StepCall<StepOnly<Config>> call;
  call.query = args.query;
  call.key = args.key;
  call.value = args.value;
  call.output = args.output;
  call.first_positions = args.first_positions;
  call.map = args.feature_map;
  call.sequences = args.query.batch;
  call.heads = args.key.heads;
  call.keys = args.key.tokens;
  call.group = query_group(args);
  return call;
}

template <class Config>
StepCall<StepOnly<Config>> step_of(const DecodeArgs<Config>& args) {
  auto call = step_of_tokens<Config>(args);
  call.denominators = args.denominators;
  call.source = args.source;
  call.destination = destination_of(args);
  return call;
}

template <class Config>
StepCall<StepOnly<Config>> step_of(const StagedStepArgs<Config>& args) {
  auto call = step_of_tokens<Config>(args);
  call.source = args.state;
  call.staging = step_staging(args.staging);
  call.already_staged = args.already_staged;
  call.keys += args.already_staged;
  return call;
}

template <class Config>
StepCall<StepOnly<Config>> step_of(const CommitArgs<Config>& args) {
  StepCall<StepOnly<Config>> call;
  call.source = args.source;
  call.destination = destination_of(args);
  call.staging = step_staging(args.staging);
  call.accepted_tokens = args.accepted_tokens;
  call.first_positions = args.first_positions;
  call.map = args.feature_map;
  call.sequences = args.staging.sequences;
  call.heads = args.staging.heads;
  call.keys = args.staging.tokens;
  return call;
}

/// The evicted keys of a step, of one block's head.
template <class Config>
struct StepEvicted {
  __device__ void find(const StepCall<Config>& /*call*/, std::int64_t /*b*/, std::int64_t /*head*/, std::int64_t /*keys*/) {
  }
};
}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
