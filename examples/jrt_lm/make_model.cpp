// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>
#include <string>

#include "jrt_lm/instance.hpp"

namespace jrt_lm {

const char* name_of(DeviceKind device) {
  return device == DeviceKind::cpu ? "cpu" : "cuda";
}

const char* name_of(NumberType type) {
  switch (type) {
    case NumberType::float64:
      return "float64";
    case NumberType::float32:
      return "float32";
    case NumberType::float16:
      return "float16";
    default:
      return "bfloat16";
  }
}

namespace {

/// Whether kernels of this shape serve the model. Dimensions of mixers that it does not have do not matter.
bool serves(const KernelShape& shape, const ModelConfig& config) {
  const KernelShape& wanted = config.shape;
  const bool linear = config.has(MixerKind::linear);
  const bool window = config.has(MixerKind::window);
  return (!linear || shape.feature_dim == wanted.feature_dim) &&
         (!(linear || window) || shape.head_dim == wanted.head_dim) &&
         (!window || shape.left_window == wanted.left_window) &&
         (!config.has(MixerKind::convolution) || shape.kernel_width == wanted.kernel_width);
}

}  // namespace

std::unique_ptr<LanguageModel> make_model(const ModelConfig& config, const WeightSource& weights,
                                          const ModelOptions& options) {
  std::string compiled;
  for (const Instance& instance : instances()) {
    if (instance.device == options.device && instance.type == options.type && serves(instance.shape, config)) {
      return instance.make(config, weights, options);
    }
    compiled +=
        std::string("; ") + name_of(instance.device) + " " + name_of(instance.type) + " " + description(instance.shape);
  }
  throw std::runtime_error(
      config.source + ": needs " + name_of(options.device) + " " + name_of(options.type) + " " + description(config.shape) +
      ", but this program was compiled for" + compiled.substr(1) +
      " (JRT_LM_SHAPES, JRT_LM_CPU_TYPES and JRT_LM_CUDA_TYPES in examples/jrt_lm/CMakeLists.txt add to it)");
}

}  // namespace jrt_lm
