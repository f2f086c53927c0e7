// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// One call in terms that all operations share.
template <class Config>
struct ConvolutionCall {
  using E = typename Config::Element;
  using Weight = typename Config::Weight;
  using Format = StateFormatOf<Config>;

  TensorView<const E> input{};
  TensorView<const E> gate{};
  TensorView<E> output{};
  const Weight* weight = nullptr;
  const Weight* bias = nullptr;
  Sequences sequences{};
  StateSlots<Format> source{};
  const std::uint8_t* has_source = nullptr;
  StateSlots<Format> destination{};  // empty: the state is not written
  StagingView<Config> staging{};     // empty: nothing is staged
  std::int64_t already_staged = 0;
  const std::int32_t* left_out = nullptr;  // [sequences] first tokens of a prefill whose outputs others make
  const std::int32_t* accepted_tokens = nullptr;
  std::int64_t count = 0;           // of sequences
  std::int64_t channels = 0;        // of each
  std::int64_t segment_tokens = 1;  // walked by one thread of a prefill
  std::int64_t segments = 0;        // of all sequences
};

/// Elements of one access.
template <class Config>
inline constexpr int convolution_width = access_bytes / static_cast<int>(sizeof(typename Config::Element));

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
