// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/step_call.cuh"
#include "jrt/detail/shared/hybrid/evicted_keys.hpp"
#include "jrt/detail/shared/hybrid/parts.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class Config>
requires(consumes_evicted_keys<Config>) struct EvictedStepInput<Config> : EvictedStep<Config> {
};

template <class Config>
requires(consumes_evicted_keys<Config>) struct StepEvicted<Config> {
  WindowKeys<typename Config::Ring> source;
  std::int64_t tokens_without_key = 0;  // leading tokens at which no key is evicted

  /// With `keys` tokens, all of them staged if they are to be committed.
  __device__ void find(const StepCall<Config>& call, std::int64_t b, std::int64_t head, std::int64_t keys) {
    source = call.evicted.keys(b, head, call.accepted_tokens != nullptr ? keys : call.already_staged, call.key, call.value);
    tokens_without_key = EvictedStep<Config>::tokens_without_key(source);
  }
  [[nodiscard]] __device__ std::int64_t token(std::int64_t t) const { return EvictedStep<Config>::evicted(source, t); }
};

/// The linear part of a mixer's step. Its staging buffer is the window's.
template <class Config>
StepCall<Config> step_of(const LinearPartStep<Config>& step) {
  StepCall<Config> call;
  call.query = step.query;
  call.key = step.key;
  call.value = step.value;
  call.output = step.output;
  call.denominators = step.denominators;
  call.source = step.source;
  call.destination = step.destination;
  call.already_staged = step.already_staged;
  call.accepted_tokens = step.accepted_tokens;
  call.map = step.feature_map;
  call.sequences = step.sequences;
  call.heads = step.heads;
  call.keys = step.keys;
  call.group = step.group;
  call.evicted = {step.evicted};
  return call;
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
