// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/model_tensors.hpp"

#include <optional>
#include <set>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace jrt_lm {

std::int64_t TensorSpec::size() const {
  std::int64_t size = 1;
  for (const std::int64_t extent : shape) {
    size *= extent;
  }
  return size;
}

std::vector<TensorSpec> tensors_of(const ModelConfig& config) {
  std::vector<TensorSpec> tensors;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    tensors.push_back({name, std::move(shape)});
  };
  const auto add_projection = [&](const std::string& name, std::int64_t out, std::int64_t in, std::optional<bool> bias) {
    add(name + ".weight", {out, in});
    if (bias.value_or(false)) {
      add(name + ".bias", {out});
    }
  };
  const std::int64_t width = config.width;
  const std::int64_t values = config.heads * config.shape.head_dim;
  const std::int64_t features = config.heads * config.shape.feature_dim;
  add(Checkpoint::embeddings, {config.vocabulary_rows, width});
  for (std::size_t i = 0; i < config.layers.size(); ++i) {
    const std::string layer = "transformer.layers." + std::to_string(i) + ".";
    const std::string mixer = layer + "mixer.";
    add(layer + "norm1.weight", {width});
    switch (config.layers[i]) {
      case MixerKind::convolution:
        add_projection(mixer + "in_proj", 2 * config.channels, width, config.convolution_projection_bias);
        add(mixer + "conv.conv.weight", {config.channels, 1, config.shape.kernel_width});
        if (config.convolution_bias.value_or(false)) {
          add(mixer + "conv.conv.bias", {config.channels});
        }
        add_projection(mixer + "out_proj", width, config.channels, config.convolution_projection_bias);
        break;
      case MixerKind::linear:
        add_projection(mixer + "proj_q", features, width, false);
        add_projection(mixer + "proj_k", features, width, false);
        add_projection(mixer + "proj_v", values, width, false);
        if (config.has_encoder) {
          add_projection(mixer + "proj_k_enc", features, width, false);
          add_projection(mixer + "proj_v_enc", values, width, false);
        }
        add_projection(mixer + "out_proj", width, values, config.linear_output_bias);
        break;
      case MixerKind::window:
        add_projection(mixer + "Wqkv", (config.heads + 2 * config.window_kv_heads) * config.shape.head_dim, width,
                       config.window_input_bias);
        add_projection(mixer + "out_proj", width, values, config.window_output_bias);
        break;
    }
    add(layer + "norm2.weight", {width});
    add_projection(layer + "mlp.fc1", 2 * config.hidden, width, config.mlp_input_bias);
    add_projection(layer + "mlp.fc2", width, config.hidden, config.mlp_output_bias);
  }
  add("transformer.ln_f.weight", {width});
  return tensors;
}

std::int64_t parameter_count(const ModelConfig& config) {
  std::int64_t count = 0;
  for (const TensorSpec& tensor : tensors_of(config)) {
    count += tensor.size();
  }
  return count;
}

namespace {

/// Which bias a tensor's name means; null if it is none that may be there or not.
std::optional<bool>* bias_of(ModelConfig& config, const std::string& name) {
  constexpr std::string_view prefix = "transformer.layers.";
  std::size_t layer = config.layers.size();
  if (name.starts_with(prefix)) {
    layer = 0;
    for (std::size_t i = prefix.size(); i < name.size() && name[i] >= '0' && name[i] <= '9' && layer < config.layers.size();
         ++i) {
      layer = 10 * layer + static_cast<std::size_t>(name[i] - '0');
    }
  }
  if (layer >= config.layers.size()) {
    return nullptr;
  }
  const MixerKind kind = config.layers[layer];
  if (name.ends_with(".mlp.fc1.bias")) {
    return &config.mlp_input_bias;
  }
  if (name.ends_with(".mlp.fc2.bias")) {
    return &config.mlp_output_bias;
  }
  if (name.ends_with(".mixer.conv.conv.bias")) {
    return &config.convolution_bias;
  }
  if (name.ends_with(".mixer.in_proj.bias")) {
    return &config.convolution_projection_bias;
  }
  if (name.ends_with(".mixer.Wqkv.bias")) {
    return &config.window_input_bias;
  }
  if (name.ends_with(".mixer.out_proj.bias")) {
    return kind == MixerKind::convolution ? &config.convolution_projection_bias
           : kind == MixerKind::linear    ? &config.linear_output_bias
                                          : &config.window_output_bias;
  }
  return nullptr;
}

/// The authors round the MLP's width up to a multiple, of 256 by default: which it was, the tensors tell. A width that no
/// rounding gives is left to the comparison of shapes, as are layers that differ.
void settle_hidden_width(ModelConfig& config, const Checkpoint& checkpoint) {
  const std::string name = "transformer.layers.0.mlp.fc2.weight";
  if (config.least_hidden == 0 || !checkpoint.contains(name)) {
    return;
  }
  const std::vector<std::int64_t>& shape = checkpoint.tensor(name).shape;
  if (shape.size() == 2 && shape[1] >= config.least_hidden && shape[1] <= config.hidden) {
    config.hidden = shape[1];
  }
}

}  // namespace

void settle_tensors(ModelConfig& config, const Checkpoint& checkpoint) {
  settle_hidden_width(config, checkpoint);
  ModelConfig configured = config;
  for (const std::string& name : checkpoint.names()) {
    std::optional<bool>* const bias = bias_of(config, name);
    if (bias != nullptr && !bias_of(configured, name)->has_value()) {
      *bias = true;
    }
  }
  std::set<std::string> known;
  for (const TensorSpec& spec : tensors_of(config)) {
    const support::StoredTensor& tensor = checkpoint.tensor(spec.name, spec.shape);
    if (tensor.dtype != "F64" && tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") {
      throw std::runtime_error(tensor.origin + " has the dtype " + tensor.dtype +
                               ", but weights are F64, F32, F16 or BF16");
    }
    known.insert(spec.name);
  }
  for (const std::string& name : checkpoint.names()) {
    if (name == Checkpoint::head) {
      const support::StoredTensor& embedding = checkpoint.tensor(Checkpoint::embeddings);
      const support::StoredTensor& head = checkpoint.tensor(name, embedding.shape);
      if (!support::same_numbers(head, embedding)) {
        throw std::runtime_error(head.origin + " is not the embedding table, but only tied embeddings are supported");
      }
    } else if (!known.contains(name)) {
      throw std::runtime_error(checkpoint.tensor(name).origin + " is not part of the model that " + config.source +
                               " describes");
    }
  }
}

}  // namespace jrt_lm
