// SPDX-License-Identifier: Apache-2.0
// What context-parallel calls ask of the kernels: prefills that leave alone the outputs of the first tokens of each
// sequence, and sums of two runs of keys in one launch. Against the ordinary calls.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "support/device_copy.cuh"
#include "support/tensor.hpp"

namespace jrt::test {
namespace {

bool has_device() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) {
    return true;
  }
  MESSAGE("skipped: no CUDA device");
  return false;
}

template <class T>
bool same_bits(const T* a, const T* b, std::int64_t count) {
  return std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(T)) == 0;
}

constexpr std::int64_t tokens = 1500;
constexpr std::int64_t heads = 3;
// Sequences of which some are shorter than what is left out, empty, or without anything left out.
const std::vector<std::int32_t> offsets = {0, 700, 700, 720, 1000, 1500};
const std::vector<std::int32_t> left_out = {128, 0, 20, 0, 77};

/// Outputs of `call(output, sequences, left out)` are those of `call(output, sequences, null)` but for rows left alone.
/// `tolerance`: 0 for the same bits, which tiles that begin elsewhere do not give.
template <class Element, class Call>
void check_rows(std::int64_t row, double tolerance, const Call& call) {
  for (const bool packed : {false, true}) {
    CAPTURE(packed);
    const DeviceCopy<std::int32_t> of_sequences(offsets);
    const DeviceCopy<std::int32_t> leave(packed ? left_out : std::vector<std::int32_t>{128});
    Sequences sequences;
    if (packed) {
      sequences = {.count = 5, .cu_seqlens = of_sequences.data()};
    }
    const std::vector<Element> before = random_tensor<Element>({1, tokens, 1, row}, 7).values;
    const DeviceCopy<Element> all(before);
    const DeviceCopy<Element> some(before);
    const Status of_all = call(all.data(), sequences, nullptr);
    const Status of_some = call(some.data(), sequences, leave.data());
    CHECK_MESSAGE(of_all.ok(), of_all.c_str());
    CHECK_MESSAGE(of_some.ok(), of_some.c_str());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    const auto expected = all.values();
    const auto actual = some.values();
    for (std::int64_t b = 0; b < (packed ? 5 : 1); ++b) {
      const auto at = static_cast<std::size_t>(b);
      const std::int64_t first = packed ? offsets[at] : 0;
      const std::int64_t end = packed ? offsets[at + 1] : tokens;
      const std::int64_t edge = first + (packed ? left_out[at] : 128);
      CHECK(same_bits(actual.data() + first * row, before.data() + first * row, (edge - first) * row));
      const auto others = [&](const std::vector<Element>& values) {
        return std::vector<Element>(values.begin() + edge * row, values.begin() + end * row);
      };
      CHECK(relative_error(others(actual), others(expected)) <= (packed ? tolerance : 0));
    }
  }
}

template <class Config>
void check_window(CudaKernels kernels) {
  using Element = typename Config::Element;
  const std::int64_t dim = Config::head_dim;
  const Cuda on(nullptr, kernels);
  const auto numbers = [&](int seed) {
    return random_tensor<Element>({1, tokens, heads, dim}, static_cast<unsigned>(seed)).values;
  };
  const DeviceCopy<Element> query(numbers(1));
  const DeviceCopy<Element> key(numbers(2));
  const DeviceCopy<Element> value(numbers(3));
  check_rows<Element>(heads * dim, jrt::test::tolerance<Element>(),
                      [&](Element* output, const Sequences& sequences, const std::int32_t* leave) {
                        PrefillArgs<Config> args;
                        const TensorShape extents{.tokens = tokens, .heads = heads, .dim = dim};
                        args.query = view_bthd<const Element>(query.data(), extents);
                        args.key = view_bthd<const Element>(key.data(), extents);
                        args.value = view_bthd<const Element>(value.data(), extents);
                        args.output = view_bthd(output, extents);
                        args.sequences = sequences;
                        return detail::MixerBackend<Config, Cuda>::run_without_first(args, leave, on);
                      });
}

TEST_CASE("windows leave alone the outputs of first tokens, on all kernels") {
  if (has_device()) {
    check_window<SlidingWindowAttention<BFloat16, 64, 128>>(CudaKernels::automatic);
    check_window<SlidingWindowAttention<BFloat16, 64, 128>>(CudaKernels::portable);
    check_window<SlidingWindowAttention<float, 16, 128>>(CudaKernels::automatic);
  }
}

TEST_CASE("windows that go on from a cache") {
  if (has_device()) {
    using Config = SlidingWindowAttention<BFloat16, 64, 128>;
    using Format = StateFormatOf<Config>;
    constexpr std::int64_t dim = 64;
    const auto numbers = [&](unsigned seed) { return random_tensor<BFloat16>({1, tokens, heads, dim}, seed).values; };
    const DeviceCopy<BFloat16> query(numbers(1));
    const DeviceCopy<BFloat16> key(numbers(2));
    const DeviceCopy<BFloat16> value(numbers(3));
    const DeviceCopy<BFloat16> whole(numbers(4));
    const DeviceCopy<BFloat16> parts(numbers(5));
    const DeviceCopy<BFloat16> cache(std::vector<BFloat16>(static_cast<std::size_t>(heads * Format::head_elements)));
    const auto run = [&](std::int64_t first, std::int64_t count, BFloat16* output, bool reads, bool writes) {
      PrefillArgs<Config> args;
      const auto part = [&](auto* data) {
        return view_bthd(data, {.tokens = tokens, .heads = heads, .dim = dim}).slice_tokens(first, count);
      };
      args.query = part(static_cast<const BFloat16*>(query.data()));
      args.key = part(static_cast<const BFloat16*>(key.data()));
      args.value = part(static_cast<const BFloat16*>(value.data()));
      args.output = part(output);
      const StateSlots<Format> states{view_pool<Format>(cache.data(), 1, heads)};
      args.initial_state = reads ? states : StateSlots<Format>{};
      args.final_state = writes ? states : StateSlots<Format>{};
      const Status status = prefill(args, {}, Cuda());
      CHECK_MESSAGE(status.ok(), status.c_str());
    };
    run(0, tokens, whole.data(), false, false);
    run(0, 701, parts.data(), false, true);
    run(701, tokens - 701, parts.data(), true, false);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(relative_error(parts.values(), whole.values()) <= tolerance<BFloat16>());
  }
}

TEST_CASE("so do convolutions") {
  if (has_device()) {
    using Config = GatedConvolution<BFloat16, 3>;
    constexpr std::int64_t channels = 72;
    const auto numbers = [](std::int64_t rows, int seed) {
      return random_tensor<BFloat16>({1, rows, 1, channels}, static_cast<unsigned>(seed)).values;
    };
    const DeviceCopy<BFloat16> input(numbers(tokens, 1));
    const DeviceCopy<BFloat16> weight(numbers(3, 2));
    check_rows<BFloat16>(channels, 0, [&](BFloat16* output, const Sequences& sequences, const std::int32_t* leave) {
      PrefillArgs<Config> args;
      const TensorShape extents{.tokens = tokens, .dim = channels};
      args.input = view_bthd<const BFloat16>(input.data(), extents);
      args.output = view_bthd(output, extents);
      args.weight = weight.data();
      args.sequences = sequences;
      return detail::MixerBackend<Config, Cuda>::run_without_first(args, leave, Cuda());
    });
  }
}

/// An operator whose sequences are not split.
template <class Config>
struct Whole : Config {
  using Split = LengthSplit<(1 << 20)>;
};

template <class Config>
void check_sums() {
  using Segments = Whole<Config>;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using Scalar = typename Format::Scalar;
  constexpr std::int64_t dim = Config::FeatureMap::input_dim;
  constexpr std::int64_t value_dim = Config::value_dim;
  const DeviceCopy<std::int32_t> of_sequences(offsets);
  const DeviceCopy<std::int32_t> slots({4, 2, -1, 0, 1});
  const auto pool_of = [&](Scalar* data, std::int64_t count) { return view_pool<Format>(data, count, heads); };
  const std::vector<Scalar> before = random_tensor<Scalar>({1, 10, heads, Format::head_elements}, 9).values;
  for (const bool from_states : {false, true}) {
    CAPTURE(from_states);
    const DeviceCopy<Scalar> apart(before);
    const DeviceCopy<Scalar> at_once(before);
    const DeviceCopy<Element> key(random_tensor<Element>({1, tokens, heads, dim}, 2).values);
    const DeviceCopy<Element> value(random_tensor<Element>({1, tokens, heads, value_dim}, 3).values);
    const auto args_of = [&](Scalar* states, bool packed) {
      AccumulateArgs<Segments> args;
      const std::int64_t count = packed ? tokens : 333;
      args.key = view_bthd<const Element>(key.data(), {.tokens = count, .heads = heads, .dim = dim});
      args.value = view_bthd<const Element>(value.data(), {.tokens = count, .heads = heads, .dim = value_dim});
      if (packed) {
        args.sequences = {.count = 5, .cu_seqlens = of_sequences.data()};
        args.final_state = {pool_of(states, 5), slots.data()};
      } else {
        args.final_state = {pool_of(states + 5 * heads * Format::head_elements, 5), nullptr};
      }
      args.initial_state = from_states ? args.final_state : StateSlots<Format>{};
      return args;
    };
    const Cuda on;
    const auto bytes = 2 * (accumulate_workspace_bytes(args_of(nullptr, true), on) + 64);
    const DeviceCopy<std::byte> workspace(bytes);
    for (const bool packed : {true, false}) {
      const Status status = accumulate(args_of(apart.data(), packed), {workspace.data(), bytes}, on);
      CHECK_MESSAGE(status.ok(), status.c_str());
    }
    const Status status = detail::MixerBackend<Segments, Cuda>::run(
        args_of(at_once.data(), true), args_of(at_once.data(), false), {workspace.data(), bytes}, on);
    CHECK_MESSAGE(status.ok(), status.c_str());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    const auto expected = apart.values();
    const auto actual = at_once.values();
    CHECK(same_bits(actual.data(), expected.data(), static_cast<std::int64_t>(actual.size())));
    CHECK_FALSE(same_bits(actual.data(), before.data(), static_cast<std::int64_t>(actual.size())));
  }
}

TEST_CASE("sums of two runs of keys at once") {
  if (has_device()) {
    check_sums<PrefixLinearAttention<BFloat16, 16, 64>>();
    check_sums<PrefixLinearAttention<Half, 16, 128>>();  // slices of v, which share a normaliser
    check_sums<PrefixLinearAttention<float, 16, 32>>();
  }
}

}  // namespace
}  // namespace jrt::test
