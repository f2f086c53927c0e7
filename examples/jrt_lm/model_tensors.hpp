// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "jrt_lm/checkpoint.hpp"
#include "jrt_lm/model_config.hpp"

namespace jrt_lm {

/// A tensor of a checkpoint, under the authors' name.
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;

  [[nodiscard]] std::int64_t size() const;
};

/// All tensors that a model needs.
std::vector<TensorSpec> tensors_of(const ModelConfig& config);

/// How many numbers a model has.
std::int64_t parameter_count(const ModelConfig& config);

/// Makes sure that a checkpoint has the model's tensors and no others (but for the copy of the embeddings that some have as
/// `lm_head.weight`), with floating-point numbers in the right shapes, and settles which biases there are and how wide
/// the MLP is. Nothing of the tensors themselves is read. Errors are std::runtime_error: one line naming the file, the
/// tensor and both values.
void settle_tensors(ModelConfig& config, const Checkpoint& checkpoint);

}  // namespace jrt_lm
