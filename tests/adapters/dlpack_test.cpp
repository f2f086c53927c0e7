// SPDX-License-Identifier: Apache-2.0
#include <dlpack/dlpack.h>
#include <jrt/adapters/dlpack.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <jrt/cpu/linear_attention.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

constexpr DLDevice host{kDLCPU, 0};
constexpr DLDataType float32{kDLFloat, 32, 1};

/// A tensor that a framework might pass, with shape and strides of its own.
struct Given {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // none: null
  DLTensor tensor{};

  Given(void* data, std::vector<std::int64_t> sizes, std::vector<std::int64_t> distances = {}, DLDataType type = float32,
        DLDevice device = host, std::uint64_t offset = 0)
      : shape(std::move(sizes)), strides(std::move(distances)) {
    tensor = {data,  device, static_cast<int>(shape.size()), type, shape.data(), strides.empty() ? nullptr : strides.data(),
              offset};
  }
};

TEST_CASE("tensors of any layout become views") {
  std::vector<float> memory(1000);
  TensorView<const float> view;
  dlpack::Reader read("prefill", host);

  const Given compact(memory.data(), {2, 3, 4, 5});
  read("query", &compact.tensor, view);
  CHECK(read.status().ok());
  CHECK(view.row(1, 2, 3) == memory.data() + ((1 * 3 + 2) * 4 + 3) * 5);
  CHECK(view.dim == 5);

  const Given strided(memory.data(), {2, 4, 3, 5}, {200, 30, 7, 1}, float32, host, 12);
  read("query", &strided.tensor, view);
  view = view.transposed();
  CHECK(read.status().ok());
  CHECK(view.tokens == 3);
  CHECK(view.row(1, 2, 3) == memory.data() + 3 + 200 + 3 * 30 + 2 * 7);

  const Given packed(memory.data(), {7, 4, 5}, {40, 10, 1});
  read("query", &packed.tensor, view);
  CHECK(read.status().ok());
  CHECK(view.batch == 1);
  CHECK(view.row(0, 6, 3) == memory.data() + 6 * 40 + 3 * 10);

  const Given empty(nullptr, {2, 0, 4, 5}, {9, 9, 9, 9});
  read("query", &empty.tensor, view);
  CHECK(read.status().ok());
  CHECK(view.tokens == 0);
  CHECK(view.token_stride == 20);

  view = {};
  read("query", nullptr, view);
  CHECK(view.data == nullptr);
}

TEST_CASE("16-bit types, arrays, pools and staging buffers") {
  using Config = Causal<BFloat16, 16, 24>;
  using Format = StateFormatOf<Config>;
  std::vector<float> memory(100000);
  dlpack::Reader read("decode_step", host);

  TensorView<const BFloat16> view;
  const Given sixteen(memory.data(), {1, 2, 3, 16}, {}, {kDLBfloat, 16, 1});
  read("query", &sixteen.tensor, view);
  CHECK(view.heads == 3);

  const std::int32_t* slots = nullptr;
  const Given indices(memory.data(), {6}, {}, {kDLInt, 32, 1});
  read("slots", &indices.tensor, 6, slots);
  CHECK(static_cast<const void*>(slots) == memory.data());
  const std::uint8_t* flags = nullptr;
  const Given bools(memory.data(), {6}, {}, {6, 8, 1});
  read("has_initial_state", &bools.tensor, 6, flags);
  CHECK(static_cast<const void*>(flags) == memory.data());
  const float* weight = nullptr;
  const Given matrix(memory.data(), {8, 3});
  read("weight", &matrix.tensor, 24, weight);
  CHECK(weight == memory.data());

  StatePoolView<Format> pool;
  const Given states(memory.data(), {5, 2, Format::head_elements}, {3 * Format::head_elements, Format::head_elements, 1});
  read("source", &states.tensor, pool);
  CHECK(pool.slots == 5);
  CHECK(pool.head(2, 1) == memory.data() + 7 * Format::head_elements);
  StagingView<Config> staging;
  const Given rows(memory.data(), {2, 4, 3, 40}, {}, {kDLBfloat, 16, 1});
  read("staging", &rows.tensor, staging);
  CHECK(staging.tokens == 4);
  CHECK(read.status().message() == "");
}

/// What reading this tensor as a view of floats says.
std::string refusal(const Given& given, DLDevice device = host) {
  dlpack::Reader read("prefill", device);
  TensorView<const float> view;
  read("query", &given.tensor, view);
  CHECK(view.data == nullptr);
  CHECK(read.status().code() == StatusCode::invalid_argument);
  // The first error stays, and what comes after it is not read.
  float number = 0;
  const Given good(&number, {1, 1, 1, 1});
  read("key", &good.tensor, view);
  CHECK(view.data == nullptr);
  return std::string(read.status().message());
}

TEST_CASE("what is no view is refused by name") {
  std::vector<float> memory(1000);
  float* const data = memory.data();
  const DLDevice gpu{kDLCUDA, 1};
  CHECK(refusal({data, {1, 2, 3, 4}, {}, {kDLFloat, 16, 1}}) ==
        "prefill: argument 'query' has type float16, but must have float32.");
  CHECK(refusal({data, {1, 2, 3, 4}, {}, {kDLBfloat, 16, 1}}) ==
        "prefill: argument 'query' has type bfloat16, but must have float32.");
  CHECK(refusal({data, {1, 2, 3, 4}, {}, {kDLFloat, 32, 4}}) ==
        "prefill: argument 'query' has type float32 of 4 lanes, but must have float32.");
  CHECK(refusal({data, {1, 2, 3, 4}, {}, {17, 4, 1}}) ==
        "prefill: argument 'query' has type type code 17, bits 4, but must have float32.");
  CHECK(refusal({data, {1, 2, 3, 4}, {}, float32, gpu}) ==
        "prefill: argument 'query' is on cuda:1, but the call runs on cpu.");
  CHECK(refusal({data, {1, 2, 3, 4}}, gpu) == "prefill: argument 'query' is on cpu, but the call runs on cuda:1.");
  CHECK(refusal({data, {1, 2, 3, 4}, {}, float32, {kDLCUDA, 0}}, gpu) ==
        "prefill: argument 'query' is on cuda:0, but the call runs on cuda:1.");
  CHECK(refusal({data, {1, 2, 3, 4}, {}, float32, {kDLMetal, 0}}) ==
        "prefill: argument 'query' is on device type 8:0, but the call runs on cpu.");
  CHECK(refusal({data, {6, 4}}) ==
        "prefill: argument 'query' has 2 dimensions, but must have 3 or 4 (batch, tokens, heads, dim).");
  CHECK(refusal({data, {1, 1, 2, 3, 4}}) ==
        "prefill: argument 'query' has 5 dimensions, but must have 3 or 4 (batch, tokens, heads, dim).");
  CHECK(refusal({data, {1, 2, 3, 4}, {48, 24, 8, 2}}) ==
        "prefill: argument 'query' has stride 2 in its last dimension, but must have 1.");
  CHECK(refusal({data, {1, -2, 3, 4}}) ==
        "prefill: argument 'query' has a dimension of -2, with which its elements cannot be counted.");
  CHECK(refusal({data, {1LL << 40, 1LL << 40, 3, 4}}) ==
        "prefill: argument 'query' has a dimension of 1099511627776, with which its elements cannot be counted.");
}

TEST_CASE("memory that host and GPU share is on both") {
  float number = 0;
  for (const DLDeviceType type : {kDLCUDAHost, kDLCUDAManaged}) {
    for (const DLDevice device : {host, DLDevice{kDLCUDA, 1}}) {
      dlpack::Reader read("prefill", device);
      TensorView<float> view;
      const Given given(&number, {1, 1, 1, 1}, {}, float32, {type, 0});
      read("output", &given.tensor, view);
      CHECK(view.data == &number);
    }
  }
}

TEST_CASE("what is no array, pool or staging buffer is refused by name") {
  using Config = Causal<float, 16, 24>;
  using Format = StateFormatOf<Config>;
  std::vector<float> memory(1000);
  const auto refuses = [&](const Given& given, auto& argument, auto... count) {
    dlpack::Reader read("commit", host);
    read("x", &given.tensor, count..., argument);
    return std::string(read.status().message());
  };
  const std::int32_t* slots = nullptr;
  const DLDataType int32{kDLInt, 32, 1};
  CHECK(refuses({memory.data(), {5}, {}, int32}, slots, 6) == "commit: argument 'x' has elements = 5, but must have 6.");
  CHECK(refuses({memory.data(), {6}, {}, {kDLInt, 64, 1}}, slots, 6) ==
        "commit: argument 'x' has type int64, but must have int32.");
  CHECK(refuses({memory.data(), {6}, {2}, int32}, slots, 6) ==
        "commit: argument 'x' has stride 2 in dimension 0, but must be contiguous, with 1.");
  StatePoolView<Format> pool;
  CHECK(refuses({memory.data(), {2, 2, 100}}, pool) ==
        "commit: argument 'x' has head_elements = 100, but must have " + std::to_string(Format::head_elements) + ".");
  CHECK(refuses({memory.data(), {2, 2, Format::head_elements}, {9999, 5000, 1}}, pool) ==
        "commit: argument 'x' has stride between heads = 5000, but must have " + std::to_string(Format::head_elements) +
            ".");
  CHECK(refuses({memory.data(), {2, Format::head_elements}}, pool) ==
        "commit: argument 'x' has 2 dimensions, but must have 3 (slots, heads, head_elements).");
  StagingView<Config> staging;
  CHECK(refuses({memory.data(), {2, 2, 2, 39}}, staging) == "commit: argument 'x' has row = 39, but must have 40.");
  CHECK(slots == nullptr);
  CHECK(pool.empty());
  CHECK(staging.data == nullptr);
}

TEST_CASE("views and pools go out, and come back the same") {
  using Format = StateFormatOf<Causal<BFloat16, 16, 24>>;
  std::vector<BFloat16> memory(1000);
  const auto view = view_bhtd(memory.data(), {.batch = 2, .tokens = 3, .heads = 4, .dim = 5}).slice_heads(1, 2);
  dlpack::Exported out(view, host);
  CHECK(out.tensor()->ndim == 4);
  TensorView<BFloat16> back;
  dlpack::Reader read("prefill", host);
  read("output", out.tensor(), back);
  CHECK(back.row(1, 2, 1) == view.row(1, 2, 1));
  CHECK(back.heads == 2);

  std::vector<float> states(static_cast<std::size_t>(12 * Format::head_elements));
  const StatePoolView<Format> pool = view_pool<Format>(states.data(), 4, 3).slice_heads(0, 3);
  dlpack::Exported out_pool(pool, host);
  StatePoolView<Format> pool_back;
  read("final_state", out_pool.tensor(), pool_back);
  CHECK(read.status().ok());
  CHECK(pool_back.head(3, 2) == pool.head(3, 2));
}

TEST_CASE("a call on tensors gives what the same call on views gives") {
  using Config = Causal<float, 16, 24>;
  Problem<Config> problem({.batch = 2, .tokens = 20});
  Tensor<float> output = zero_tensor<float>(problem.output_shape());
  const auto given = [](Tensor<float>& tensor) {
    const TensorShape& s = tensor.shape;
    return Given(tensor.values.data(), {s.batch, s.tokens, s.heads, s.dim});
  };
  const Given q = given(problem.query), k = given(problem.key), v = given(problem.value), y = given(output);
  PrefillArgs<Config> args;
  dlpack::Reader read("prefill", host);
  read("query", &q.tensor, args.query), read("key", &k.tensor, args.key), read("value", &v.tensor, args.value);
  read("output", &y.tensor, args.output);
  JRT_REQUIRE_OK(read.status());
  JRT_REQUIRE_OK(prefill(args, Cpu{}));
  CHECK(output == run_prefill<Simple>(problem).output);
}

}  // namespace
}  // namespace jrt::test
