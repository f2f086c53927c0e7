// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/model_config.hpp"
#include "jrt_lm/model_weights.hpp"
#include "jrt_lm/step_schedule.hpp"

namespace jrt_lm {

/// The stages of a decode step: what Transformer does layer by layer, with convolution, rotation, gates and additions as
/// parts of their projections.
template <class Device, class Element>
class StepPlan {
 public:
  using Weights = ModelWeights<Device, Element>;

  /// `state_of(i)` is where slot 0 of layer i's states is.
  template <class StateOf>
  StepPlan(const ModelConfig& config, const Weights& weights, const StateOf& state_of,
           const Activations<Device, Element>& activations, const LogitRows<Device, Element>& logits)
      : config_(&config), activations_(&activations) {
    const auto width = static_cast<std::int32_t>(config.width);
    Stage embed;
    embed.kind = StageKind::embed;
    embed.in = width;
    embed.weight = weights.embedding.weight.data();
    embed.y = activations.residual.data();
    embed.y_columns = width;
    stages_.push_back(embed);
    for (std::size_t i = 0; i < weights.layers.size(); ++i) {
      const auto& layer = weights.layers[i];
      const std::int64_t mixed = add_mixer(i, layer, state_of(i));
      add_sum(layer.output, activations.mixed.data(), mixed);
      add_normed(StageKind::gates, layer.mlp_input, layer.mlp_norm.data(), config.hidden, activations.projected.data());
      add_sum(layer.mlp_output, activations.projected.data(), config.hidden);
    }
    add_normed(StageKind::logits, weights.embedding, weights.final_norm.data(), config.vocabulary_rows,
               logits.values.data());
    Stage likeliest;
    likeliest.kind = StageKind::likeliest;
    likeliest.y = logits.likeliest.data();
    stages_.push_back(likeliest);
  }

  [[nodiscard]] std::vector<Stage>& stages() { return stages_; }

 private:
  /// Columns of the mixer's output.
  std::int64_t add_mixer(std::size_t i, const typename Weights::Layer& layer, void* state) {
    const float* const norm = layer.mixer_norm.data();
    Element* const mixed = activations_->mixed.data();
    if (config_->layers[i] == MixerKind::convolution) {
      Stage& stage = add_normed(StageKind::convolves, layer.input, norm, config_->channels, mixed);
      stage.filter = layer.convolution_weight.data();
      stage.filter_bias = layer.convolution_bias.data();
      stage.state = state;
      return config_->channels;
    }
    const bool is_window = config_->layers[i] == MixerKind::window;
    const bool rotates = is_window && config_->rotates;
    Stage& projection = add_normed(rotates ? StageKind::rotates : StageKind::stores, layer.input, norm, layer.input.out,
                                   activations_->projected.data());
    projection.half = config_->shape.head_dim / 2;
    Stage stage;
    stage.kind = is_window ? StageKind::window : StageKind::linear;
    stage.x = activations_->projected.data();
    stage.x_columns = static_cast<std::int32_t>(layer.input.out);
    stage.y = mixed;
    stage.y_columns = static_cast<std::int32_t>(config_->heads * config_->shape.head_dim);
    stage.state = state;
    stages_.push_back(stage);
    return stage.y_columns;
  }

  template <class Projection, class Out>
  Stage& add_normed(StageKind kind, const Projection& by, const float* norm, std::int64_t outputs, Out* y) {
    Stage stage;
    stage.kind = kind;
    stage.in = stage.x_columns = static_cast<std::int32_t>(by.in);
    stage.outputs = stage.y_columns = static_cast<std::int32_t>(outputs);
    stage.weight = by.weight.data();
    stage.bias = by.bias.data();
    stage.norm = norm;
    stage.x = activations_->residual.data();
    stage.y = y;
    stages_.push_back(stage);
    return stages_.back();
  }

  /// Adds to the residual stream.
  template <class Projection>
  void add_sum(const Projection& by, const Element* x, std::int64_t x_columns) {
    Stage stage;
    stage.kind = StageKind::adds;
    stage.in = static_cast<std::int32_t>(by.in);
    stage.outputs = stage.y_columns = static_cast<std::int32_t>(by.out);
    stage.weight = by.weight.data();
    stage.bias = by.bias.data();
    stage.x = x;
    stage.x_columns = static_cast<std::int32_t>(x_columns);
    stage.y = activations_->residual.data();
    stages_.push_back(stage);
  }

  const ModelConfig* config_;
  const Activations<Device, Element>* activations_;
  std::vector<Stage> stages_;
};

}  // namespace jrt_lm
