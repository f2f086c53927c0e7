// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/shared/window/keys.hpp"

/// The first steps of all window kernels' blocks: finding their sequence, its keys and its rows of outputs.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// One sequence and key/value head of a call, as a block sees it.
template <WindowConfig Config>
struct WindowSequence {
  SequenceSpan span;
  bool skipped = false;
  WindowKeys<Config> keys;
  std::int64_t tokens = 0;  // without left pads

  __device__ WindowSequence(const WindowCall<Config>& call, std::int64_t b, std::int64_t head)
      : span(call.span(b)), skipped(call.skipped(b)) {
    if (!skipped) {
      keys = call.keys(span, b, head);
      tokens = span.tokens - span.left_pad;
    }
  }

  /// Whether a row of the views is a token; otherwise its output is 0.
  [[nodiscard]] __device__ bool has_token(std::int64_t row) const {
    return !skipped && row >= span.left_pad && row < span.tokens;
  }
};

/// Rotates two values by an angle. With the same roundings in every kernel, so that a key has the same bits in each.
template <class T>
__device__ void rotate_pair(const Rotation<T>& rotation, T& first, T& second) {
  const T rotated = fma(first, rotation.cosine, -(second * rotation.sine));
  second = fma(first, rotation.sine, second * rotation.cosine);
  first = rotated;
}

/// Cosine and sine of a phase (RotaryHalves::phase) for 16-bit elements, on the special function unit: its error, 2^-21, is
/// less than theirs.
__device__ inline Rotation<float> fast_rotation(std::uint64_t phase) {
  const float angle = static_cast<float>(static_cast<std::int32_t>(phase >> 32)) * (3.14159265F * 0x1p-31F);
  return {__cosf(angle), __sinf(angle)};
}

/// Cosine and sine for vectors of `Element`.
template <class Element, class Rotary>
__device__ auto rotation_for(const Rotary& rotary, std::int64_t position, int i) {
  using T = ComputeType<Element>;
  if constexpr (sizeof(Element) == 2 && is_rotary_halves<Rotary>) {
    return fast_rotation(rotary.phase(position, i));
  } else {
    return rotary.template rotation<T>(position, i);
  }
}

/// Element c of a key or query at a position, rotated.
template <class Rotary, class Element>
__device__ auto rotated_value(const Rotary& rotary, const Element* x, std::int64_t position, int c) {
  using T = ComputeType<Element>;
  const T number = convert<T>(x[c]);
  if constexpr (Rotary::rotates) {
    const bool is_first = c < Rotary::half_dim;
    T first = is_first ? number : convert<T>(x[c - Rotary::half_dim]);
    T second = is_first ? convert<T>(x[c + Rotary::half_dim]) : number;
    rotate_pair(rotation_for<Element>(rotary, position, is_first ? c : c - Rotary::half_dim), first, second);
    return is_first ? first : second;
  } else {
    return number;
  }
}

/// Number `c` of a token's key, as a cache holds it, and value, one behind the other. Keys of earlier calls are rotated
/// already; if there are no others, `rotary` may be NoRotary.
template <WindowConfig Config, class Rotary>
__device__ auto cached_number(const WindowKeys<Config>& keys, std::int64_t token, int c, const Rotary& rotary) {
  using Element = typename Config::Element;
  if (c >= Config::head_dim) {
    return keys.value(token)[c - Config::head_dim];
  }
  return WindowKeys<Config>::is_rotated(token)
             ? keys.key(token)[c]
             : convert<Element>(rotated_value(rotary, keys.key(token), keys.position(token), c));
}

/// Writes what a cache holds of the tokens in the range, each where `key_of(token)` and `value_of(token)` say; called by
/// all threads of a block. A thread reads several numbers before it writes the first, so that it waits for memory once.
template <WindowConfig Config, class Rotary, class KeyOf, class ValueOf>
__device__ void write_tokens(const WindowKeys<Config>& keys, const TokenRange& tokens, const Rotary& rotary,
                             const KeyOf& key_of, const ValueOf& value_of) {
  using Element = typename Config::Element;
  constexpr int row = Config::head_dim + Config::value_dim;
  constexpr int in_flight = window_numbers_in_flight;
  const std::int64_t threads = blockDim.x;
  const std::int64_t count = (tokens.end - tokens.begin) * row;
  for (std::int64_t first = threadIdx.x; first < count; first += threads * in_flight) {
    Element numbers[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (const std::int64_t at = first + i * threads; at < count) {
        numbers[i] = cached_number(keys, tokens.begin + at / row, static_cast<int>(at % row), rotary);
      }
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (const std::int64_t at = first + i * threads; at < count) {
        const std::int64_t token = tokens.begin + at / row;
        const auto c = static_cast<int>(at % row);
        (c < Config::head_dim ? key_of(token) + c : value_of(token) + (c - Config::head_dim))[0] = numbers[i];
      }
    }
  }
}

/// Copies `keys.ring` to `cache`, unless they are the same, and adds the tokens of the range; called by all threads of a
/// block. All reads of the ring must be done.
template <WindowConfig Config, class Rotary>
__device__ void write_cache(const WindowKeys<Config>& keys, const TokenRange& tokens, const Rotary& rotary,
                            typename Config::Element* cache) {
  using Format = StateFormatOf<Config>;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  if (keys.ring != cache) {
    constexpr int each = access_bytes / static_cast<int>(sizeof(typename Config::Element));
    for (std::int64_t i = std::int64_t{thread} * each; i < Format::ring_elements; i += std::int64_t{threads} * each) {
      Vector<typename Config::Element, each> numbers{};
      if (keys.ring != nullptr) {
        numbers = load_vector<each>(keys.ring + i);
      }
      store_vector(cache + i, numbers);
    }
    __syncthreads();
  }
  // The ring's rows differ: it has as many as are written.
  const TokenRange newest{larger(tokens.begin, tokens.end - Format::rows), tokens.end};
  const auto row = [&](std::int64_t token) { return ring_row(keys.position(token), Config::left_window); };
  write_tokens(
      keys, newest, rotary, [&](std::int64_t token) { return cache + row(token) * Config::head_dim; },
      [&](std::int64_t token) { return cache + Format::value_offset + row(token) * Config::value_dim; });
  __syncthreads();  // all threads have read the count, where cache and ring are one
  if (thread == 0) {
    set_cached_count<Format>(cache, keys.position(tokens.end));
  }
}

/// Writes tokens of a call to its staging buffer, behind those that are there; called by all threads of a block.
template <WindowConfig Config>
__device__ void stage_tokens(const WindowCall<Config>& call, const WindowSequence<Config>& sequence, std::int64_t b,
                             std::int64_t head, const TokenRange& tokens) {
  const auto row = [&](std::int64_t token) { return call.staging.row(b, call.already_staged + token, head); };
  write_tokens(sequence.keys, tokens, call.rotary, row, [&](std::int64_t token) { return row(token) + Config::head_dim; });
}

/// Stores the call's tokens in the caches, or after the staged ones; one block per head.
template <WindowConfig Config>
__global__ void __launch_bounds__(window_update_threads)
    update_window_cache(const __grid_constant__ WindowCall<Config> call) {
  const std::int64_t b = blockIdx.x / call.key.heads;
  const std::int64_t head = blockIdx.x % call.key.heads;
  const WindowSequence<Config> sequence(call, b, head);
  if (sequence.skipped) {
    return;
  }
  if (!call.stages()) {
    write_cache(sequence.keys, {0, sequence.tokens}, call.rotary, call.final.pool.head(call.final.slot(b), head));
    return;
  }
  stage_tokens(call, sequence, b, head, {0, sequence.tokens});
}

/// Stores the first staged rows of one head, whose keys are rotated already, in its cache; one block per head.
template <WindowConfig Config>
__global__ void __launch_bounds__(window_cache_threads) commit_window(const __grid_constant__ CommitArgs<Config> args) {
  const std::int64_t b = blockIdx.x / args.staging.heads;
  const std::int64_t head = blockIdx.x % args.staging.heads;
  const auto& destination = args.destination.empty() ? args.source : args.destination;
  if (sequence_skipped(args.source, nullptr, destination, b)) {
    return;
  }
  const std::int64_t accepted = clamped(args.accepted_tokens[b], 0, args.staging.tokens);
  WindowKeys<Config> keys;
  keys.set_ring(args.source.pool.head(args.source.slot(b), head));
  keys.set_staging(args.staging, b, head, accepted);
  write_cache(keys, {-accepted, 0}, NoRotary{}, destination.pool.head(destination.slot(b), head));
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
