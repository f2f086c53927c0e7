// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "jrt_lm/model_config.hpp"
#include "jrt_lm/step_schedule.hpp"

namespace jrt_lm {

/// What a step is about beside its stages. Pointers are the device's.
struct StepInputs {
  const Stage* stages = nullptr;
  std::int32_t stage_count = 0;
  const std::int32_t* first_tiles = nullptr;  ///< of all stages, block after block
  std::int32_t rows = 0;
  bool several = false;
  std::int32_t step_tokens = 1;                  ///< rows of a sequence, one behind another
  std::int32_t first_result = 0;                 ///< the first row of which there are logits
  const std::int32_t* encoder_tokens = nullptr;  ///< of a prompt, all of it one sequence: M; null: 0
  const std::int32_t* tokens = nullptr;
  const std::int32_t* positions = nullptr;
  const std::int32_t* slots = nullptr;  ///< of each sequence
  std::int64_t slot_count = 0;
  std::int64_t slot_stride = 0;  ///< bytes
  std::int32_t heads = 0;
  std::int32_t window_kv_heads = 0;
  std::int32_t channels = 0;
  std::int32_t width = 0;
  std::int32_t vocabulary = 0;
  float norm_epsilon = 0;
  double window_scale = 0;
  std::byte* exchange = nullptr;  ///< twice so many bytes, all bits of which are set before the first step
  std::int64_t exchange_bytes = 0;
  std::int64_t candidates = 0;  ///< place in it of `candidate_bytes` for the likeliest tokens that each block has found
  std::uint32_t* arrivals = nullptr;  ///< two numbers, 0 before the first step: steps so far, and the kernel's own
};

/// A decode step as one kernel, which stays on the device from the embeddings to the likeliest tokens. Compiled for one
/// shape of mixers and bfloat16 (step_kernel.cuh); all other sizes are a model's own.
class StepKernel {
 public:
  StepKernel() = default;
  StepKernel(const StepKernel&) = delete;
  StepKernel& operator=(const StepKernel&) = delete;
  virtual ~StepKernel() = default;

  /// Blocks of the kernel on the current device, all at the same time; 0 where that cannot be, or where sizes are none of
  /// the kernel's, so that steps are made of separate kernels. The one place that decides about it. `several`: as
  /// StepInputs has it.
  [[nodiscard]] virtual int blocks(const ModelConfig& config, std::int64_t rows, std::size_t stages,
                                   bool several) const = 0;
  /// Enqueues a step in a stream of CUDA; may be captured.
  virtual void launch(const StepInputs& inputs, int blocks, void* stream) const = 0;
};

/// Likeliest tokens that a block finds for each row.
inline constexpr int step_candidates = 4;
[[nodiscard]] constexpr std::int64_t candidate_bytes(std::int64_t rows, int blocks) {
  return (rows * blocks * step_candidates * 8 + 127) / 128 * 128;
}

/// Whether a model's sizes are such that products are whole tiles, of at most `pieces` pieces where x is the residual
/// stream and twice as many where not.
[[nodiscard]] inline bool has_step_sizes(const ModelConfig& config, std::int64_t rows, int pieces) {
  const auto is_input = [](std::int64_t in, int most) {
    return in % chunk_columns == 0 && in <= std::int64_t{most} * piece_columns;
  };
  const auto is_output = [](std::int64_t out) { return out % tile_outputs == 0; };
  const std::int64_t values = config.heads * config.shape.head_dim;
  const bool rotates = config.has(MixerKind::window) && config.rotates;
  return rows <= step_rows && is_input(config.width, pieces) && is_input(config.hidden, 2 * pieces) &&
         (!config.has(MixerKind::convolution) || is_input(config.channels, 2 * pieces)) && is_input(values, 2 * pieces) &&
         is_output(config.heads * config.shape.feature_dim) && is_output(config.window_kv_heads * config.shape.head_dim) &&
         is_output(config.vocabulary_rows) && (!rotates || config.shape.head_dim % (2 * tile_outputs) == 0);
}

/// A kernel for the mixers' configurations. A file that the build writes instantiates it: step_kernel.cuh has its body.
template <class Convolution, class Linear, class Window>
std::unique_ptr<const StepKernel> make_step_kernel(double rotary_base);

/// A list of shapes that step kernels were compiled for.
template <class... Shapes>
struct StepKernels {};

/// The kernel of a model's shape, or null.
template <class... Shapes>
std::unique_ptr<const StepKernel> chosen_step_kernel([[maybe_unused]] const ModelConfig& config,
                                                     StepKernels<Shapes...> /*list*/) {
  std::unique_ptr<const StepKernel> kernel;
  static_cast<void>(((Shapes::shape == config.shape && (kernel = Shapes::make(config.rotary_base)) != nullptr) || ...));
  return kernel;
}

/// One of them.
template <class Convolution, class Linear, class Window>
struct StepKernelOf {
  static constexpr KernelShape shape{Linear::FeatureMap::input_dim, Window::head_dim, Window::left_window,
                                     Convolution::kernel_width};
  static std::unique_ptr<const StepKernel> make(double rotary_base) {
    return make_step_kernel<Convolution, Linear, Window>(rotary_base);
  }
};

}  // namespace jrt_lm
