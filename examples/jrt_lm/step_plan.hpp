// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/model_config.hpp"
#include "jrt_lm/model_weights.hpp"
#include "jrt_lm/step_schedule.hpp"

namespace jrt_lm {

/// Where a layer's mixer has its states, and where it stages a step's tokens; null: the states take them.
struct StagePlace {
  void* state = nullptr;
  void* staged = nullptr;
};

/// The stages of a decode step: what Layers does layer by layer, with norms, convolution, rotation, gates and
/// additions as parts of the projections before them.
template <class Device, class Element>
class StepPlan {
 public:
  using Weights = ModelWeights<Device, Element>;

  /// `place_of(i)` is the StagePlace of layer i. `has_encoder`: the rows are those of a prompt with an encoder region.
  template <class PlaceOf>
  StepPlan(const ModelConfig& config, const Weights& weights, const PlaceOf& place_of, std::int64_t rows,
           const LogitRows<Device, Element>& logits, bool has_encoder = false)
      : config_(&config), rows_(rows), has_encoder_(has_encoder) {
    Stage embed;
    embed.kind = StageKind::embed;
    embed.weight = weights.embedding.weight.data();
    add_residual(embed, weights.layers.empty() ? weights.final_norm.data() : weights.layers[0].mixer_norm.data());
    for (std::size_t i = 0; i < weights.layers.size(); ++i) {
      const auto& layer = weights.layers[i];
      const bool last = i + 1 == weights.layers.size();
      add_mixer(i, layer, place_of(i));
      add_sum(layer.output, layer.mlp_norm.data());
      add_normed(StageKind::gates, layer.mlp_input, config.hidden);
      add_sum(layer.mlp_output, last ? weights.final_norm.data() : weights.layers[i + 1].mixer_norm.data());
    }
    Stage& products = add_normed(StageKind::logits, weights.embedding, config.vocabulary_rows);
    products.result = logits.values.data();
    Stage likeliest;
    likeliest.kind = StageKind::likeliest;
    likeliest.result = logits.likeliest.data();
    stages_.push_back(likeliest);
  }

  [[nodiscard]] std::vector<Stage>& stages() { return stages_; }
  /// Of the memory for exchange, without the likeliest tokens of the blocks.
  [[nodiscard]] std::int64_t exchange_bytes() const { return bytes_; }

 private:
  void add_mixer(std::size_t i, const typename Weights::Layer& layer, const StagePlace& place) {
    if (config_->layers[i] == MixerKind::convolution) {
      Stage& stage = add_normed(StageKind::convolves, layer.input, config_->channels);
      stage.filter = layer.convolution_weight.data();
      stage.filter_bias = layer.convolution_bias.data();
      stage.state = place.state;
      stage.staged = place.staged;
      return;
    }
    const bool is_window = config_->layers[i] == MixerKind::window;
    const bool rotates = is_window && config_->rotates;
    const Stage residual = stages_.back();
    const Stage projection = add_normed(rotates ? StageKind::rotates : StageKind::stores, layer.input, layer.input.out);
    stages_.back().half = config_->shape.head_dim / 2;
    Stage stage;
    stage.kind = is_window ? StageKind::window : StageKind::linear;
    stage.x = projection.y;
    stage.x_columns = projection.y_columns;
    if (has_encoder_ && !is_window) {
      const Stage encoder = add_normed(StageKind::stores, layer.encoder_input, layer.encoder_input.out, residual);
      stage.encoder = encoder.y;
      stage.encoder_columns = encoder.y_columns;
    }
    stage.outputs = static_cast<std::int32_t>(config_->heads * config_->shape.head_dim);
    stage.state = place.state;
    stage.staged = place.staged;
    place_output(stage);
    stages_.push_back(stage);
  }

  template <class Projection>
  Stage& add_normed(StageKind kind, const Projection& by, std::int64_t outputs) {
    return add_normed(kind, by, outputs, Stage(stages_.back()));
  }
  template <class Projection>
  Stage& add_normed(StageKind kind, const Projection& by, std::int64_t outputs, const Stage& before) {
    Stage stage;
    stage.kind = kind;
    stage.in = static_cast<std::int32_t>(by.in);
    stage.outputs = static_cast<std::int32_t>(outputs);
    stage.weight = by.weight.data();
    stage.bias = by.bias.data();
    stage.x = before.y;
    stage.x_columns = before.y_columns;
    stage.x_squares = before.y_squares;
    if (kind == StageKind::logits) {
      stage.y_columns = stage.outputs;
    } else {
      place_output(stage);
    }
    stages_.push_back(stage);
    return stages_.back();
  }

  /// Adds to the residual stream, which is then multiplied by `norm`.
  template <class Projection>
  void add_sum(const Projection& by, const float* norm) {
    const Stage& before = stages_.back();
    Stage stage;
    stage.kind = StageKind::adds;
    stage.in = static_cast<std::int32_t>(by.in);
    stage.weight = by.weight.data();
    stage.bias = by.bias.data();
    stage.x = before.y;
    stage.x_columns = before.y_columns;
    add_residual(stage, norm);
  }
  void add_residual(Stage& stage, const float* norm) {
    stage.outputs = static_cast<std::int32_t>(config_->width);
    stage.norm = norm;
    place_output(stage);
    stage.y_squares = taken(rows_ * (config_->width / tile_outputs) * 4);
    stages_.push_back(stage);
  }

  void place_output(Stage& stage) {
    stage.y_columns = stage.outputs;
    stage.y = taken(rows_ * stage.y_columns * static_cast<std::int64_t>(sizeof(Element)));
  }
  std::int32_t taken(std::int64_t bytes) {
    const std::int64_t begin = bytes_;
    bytes_ += (bytes + 127) / 128 * 128;
    return static_cast<std::int32_t>(begin);
  }

  const ModelConfig* config_;
  std::int64_t rows_;
  bool has_encoder_;
  std::int64_t bytes_ = 0;
  std::vector<Stage> stages_;
};

}  // namespace jrt_lm
