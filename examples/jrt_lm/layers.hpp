// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <jrt/distributed/context_layout.hpp>
#include <jrt/numeric.hpp>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/device_model.hpp"
#include "jrt_lm/mixers.hpp"
#include "jrt_lm/model_weights.hpp"
#include "jrt_lm/pass.hpp"
#include "jrt_lm/prefill_plan.hpp"
#include "jrt_lm/ranks.hpp"

namespace jrt_lm {

/// A token's way through a model: its row of the embedding table becomes the residual stream x, in float (double for
/// double); each layer adds mixer(norm(x)) and mlp(norm(x)) to it; norm(x) times the embedding table is the logits.
template <class Device, class Element>
class Layers {
 public:
  using Sum = jrt::ComputeType<Element>;
  using Logits = LogitRows<Device, Element>;
  using Link = RankLink<typename Device::Execution>;

  explicit Layers(DeviceModel<Device, Element>& model) : model_(model), takes_prepared_(takes_prepared(model)) {}

  /// Prompts whose plan's numbers are in `a`.
  [[nodiscard]] static Pass pass_of(const PrefillPlan& plan, const Activations<Device, Element>& a) {
    const Array<std::int32_t>& numbers = a.numbers;
    Pass pass;
    pass.rows = plan.rows();
    pass.tokens = numbers.data() + plan.tokens_at();
    pass.positions = numbers.data() + plan.positions_at();
    pass.slots = numbers.data() + plan.slots_at();
    pass.continues = a.continues.data();
    pass.sequences.count = plan.prompts();
    pass.sequences.cu_seqlens = numbers.data() + plan.offsets_at();
    pass.sequences.cu_encoder_seqlens = numbers.data() + plan.encoder_offsets_at();
    pass.sequences.max_tokens = plan.longest();
    pass.plan = &plan;
    return pass;
  }

  void run_prompts(const Pass& pass, Activations<Device, Element>& a, Logits& logits,
                   const std::function<void(std::int64_t)>& after_layer) {
    run(pass, a, after_layer);
    finish(a, a.numbers.data() + pass.plan->logit_rows_at(), pass.plan->logit_rows(), logits);
  }

  /// Embeds the pass's tokens and takes them through the layers, in `a.residual`. `after_layer`, if there is one, is told
  /// how many layers are done.
  void run(const Pass& pass, Activations<Device, Element>& a, const std::function<void(std::int64_t)>& after_layer) {
    // Of layer i or the first behind it that the pass goes through.
    const auto next = [&](std::size_t i) {
      const auto* const kinds = model_.config.layers.data();
      while (pass.one_of_each && i < model_.weights.layers.size() && std::find(kinds, kinds + i, kinds[i]) != kinds + i) {
        ++i;
      }
      return i;
    };
    const auto mixer_norm = [&](std::size_t i) {
      return i < model_.weights.layers.size() ? model_.weights.layers[i].mixer_norm.data() : nullptr;
    };
    embed(pass, a, mixer_norm(0));
    for (std::size_t i = 0; i < model_.weights.layers.size(); i = next(i + 1)) {
      const Layer& layer = model_.weights.layers[i];
      switch (model_.config.layers[i]) {
        case MixerKind::convolution:
          convolve(i, pass, a);
          break;
        case MixerKind::linear:
          attend_linearly(i, pass, a);
          break;
        case MixerKind::window:
          attend_in_window(i, pass, a);
          break;
      }
      const std::int64_t hidden_columns = model_.device.multiply_normed_gated(
          layer.mlp_input, norm(layer.mlp_norm, a), a.residual.data(), pass.rows, a.normed.data(), a.projected.data());
      add(layer.mlp_output, a.projected.data(), hidden_columns, pass, a, mixer_norm(next(i + 1)));
      if (after_layer) {
        after_layer(static_cast<std::int64_t>(i) + 1);
      }
    }
  }

  /// Logits of some rows of the residual stream (all if there is no list), behind those that are there.
  void finish(Activations<Device, Element>& a, const std::int32_t* rows, std::int64_t count, Logits& logits) {
    const Norm<Sum> final_norm{model_.weights.final_norm.data(), model_.config.norm_epsilon};
    const std::int64_t columns = model_.config.vocabulary_rows;
    Sum* const values = logits.values.data() + logits.rows * columns;
    if (rows == nullptr) {
      model_.device.multiply_normed(model_.weights.embedding, final_norm, a.residual.data(), count, a.normed.data(), values,
                                    columns);
    } else {
      model_.device.rms_norm(final_norm, a.residual.data(), rows, count, model_.config.width, a.normed.data());
      model_.device.multiply(model_.weights.embedding, a.normed.data(), model_.config.width, count, values, columns);
    }
    model_.device.argmax(values, count, columns, model_.config.vocabulary, logits.likeliest.data() + logits.rows);
    logits.rows += count;
  }

  /// From now on prompts are pieces of the layout's, whose mixers exchange with other ranks; null: whole again.
  void read_pieces(const jrt::ContextLayout* layout, Link* link) { ranked_ = {layout, link}; }

 private:
  template <class T>
  using Array = typename Device::template Array<T>;
  using Layer = typename ModelWeights<Device, Element>::Layer;

  [[nodiscard]] Norm<Sum> norm(const Array<Sum>& weight, const Activations<Device, Element>& a) const {
    Norm<Sum> norm{weight.data(), model_.config.norm_epsilon};
    if (a.prepared_for == norm.weight) {
      norm.squares = a.squares.data();
      norm.square_parts = a.square_parts;
    }
    return norm;
  }

  /// Whether all products behind norms can take what the products before them have prepared.
  [[nodiscard]] static bool takes_prepared([[maybe_unused]] const DeviceModel<Device, Element>& model) {
    if constexpr (Device::prepares_norms) {
      const auto takes = [](std::int64_t outputs) { return Device::takes_prepared(outputs); };
      return takes(model.config.channels) && takes(model.config.hidden) &&
             std::ranges::all_of(model.weights.layers, [&](const Layer& layer) {
               return takes(layer.input.out) && takes(layer.encoder_input.out) && takes(layer.mlp_input.out);
             });
    } else {
      return false;
    }
  }
  /// Whether `by`, which adds to the residual stream, can prepare it for the norm behind it.
  [[nodiscard]] bool can_prepare(const typename ModelWeights<Device, Element>::Outer& by, std::int64_t rows) const {
    return takes_prepared_ && model_.device.can_prepare(by, rows);
  }

  /// The pass's rows of the embedding table become the residual stream, which first goes through the norm with these
  /// weights.
  void embed(const Pass& pass, Activations<Device, Element>& a, const Sum* next) {
    const Element* const table = model_.weights.embedding.weight.data();
    const std::int64_t width = model_.config.width;
    a.prepared_for = nullptr;
    if constexpr (Device::prepares_norms) {
      if (next != nullptr && can_prepare(model_.weights.layers[0].output, pass.rows)) {
        model_.device.embed_prepared(pass.tokens, pass.rows, table, width, a.residual.data(), next, a.normed.data(),
                                     a.squares.data());
        a.square_parts = 1;
        a.prepared_for = next;
        return;
      }
    }
    model_.device.embed(pass.tokens, pass.rows, table, width, a.residual.data());
  }

  /// Adds x Wᵀ + b to the residual stream; `next` are the weights of the norm that it then goes through, or null.
  void add(const typename ModelWeights<Device, Element>::Outer& by, const Element* x, std::int64_t columns,
           const Pass& pass, Activations<Device, Element>& a, const Sum* next) {
    if constexpr (Device::prepares_norms) {
      a.prepared_for = nullptr;
      if (can_prepare(by, pass.rows)) {
        a.square_parts = model_.device.multiply_add_prepared(by, x, columns, pass.rows, a.residual.data(), next,
                                                             a.normed.data(), a.squares.data());
        a.prepared_for = next;
        return;
      }
    }
    model_.device.multiply_add(by, x, columns, pass.rows, a.residual.data(), model_.config.width);
  }

  /// The mixer's projection of the normalised residual stream.
  void project(const Layer& layer, const Pass& pass, Activations<Device, Element>& a) {
    model_.device.multiply_normed(layer.input, norm(layer.mixer_norm, a), a.residual.data(), pass.rows, a.normed.data(),
                                  a.projected.data(), layer.input.out);
  }

  /// Some rows that have been normalised, or prepared for that.
  void project_normed(const typename ModelWeights<Device, Element>::Inner& by, Norm<Sum> its_norm,
                      const Activations<Device, Element>& a, const RowRange& rows, Element* y) {
    const Element* const normed = a.normed.data() + rows.first * model_.config.width;
    if constexpr (Device::prepares_norms) {
      if (its_norm.squares != nullptr) {
        its_norm.squares += rows.first * its_norm.square_parts;
        model_.device.multiply_prepared(by, its_norm, normed, rows.count, y);
        return;
      }
    }
    model_.device.multiply(by, normed, model_.config.width, rows.count, y, by.out);
  }

  [[nodiscard]] MixerCall call_of(std::size_t i, const Pass& pass, Activations<Device, Element>& a) const {
    MixerCall call;
    call.is_step = pass.is_step();
    call.staging = pass.staging.empty() ? LayerStaging{} : pass.staging[i];
    call.sequences = pass.sequences;
    call.continues = pass.continues;
    call.states = model_.states.slots_of(i, pass.slots);
    call.workspace = [this, &a](std::size_t bytes) { return a.workspace(model_.device, bytes); };
    return call;
  }

  /// Projects and runs one mixer of a step or of one prompt, if one kernel does both.
  template <class Tensors>
  [[nodiscard]] bool run_projected(const Mixer<typename Device::Execution, Tensors>& mixer, const Tensors& tensors,
                                   std::size_t i, const Pass& pass, Activations<Device, Element>& a) {
    const Layer& layer = model_.weights.layers[i];
    StepProjection<Element> projection;
    if (!pass.is_step()) {
      const Norm<Sum> its_norm = norm(layer.mixer_norm, a);
      if (its_norm.squares == nullptr || pass.plan->prompts() != 1 || ranked_.link != nullptr) {
        return false;
      }
      projection.normed = a.normed.data();
      projection.squares = its_norm.squares;
      projection.square_parts = its_norm.square_parts;
    }
    projection.residual = a.residual.data();
    projection.rows = pass.rows;
    projection.in = layer.input.in;
    projection.norm_weight = layer.mixer_norm.data();
    projection.norm_epsilon = model_.config.norm_epsilon;
    projection.weight = layer.input.weight.data();
    projection.bias = layer.input.bias.data();
    return mixer.run_projected(projection, tensors, call_of(i, pass, a), model_.device.execution());
  }

  /// Runs one mixer on the states of layer `i`.
  template <class Tensors>
  void run_mixer(const Mixer<typename Device::Execution, Tensors>& mixer, const Tensors& tensors, std::size_t i,
                 const Pass& pass, Activations<Device, Element>& a) {
    const MixerCall call = call_of(i, pass, a);
    if (ranked_.link == nullptr || pass.is_step()) {
      mixer.run(tensors, call, model_.device.execution());
    } else {
      mixer.run_piece(tensors, call, *ranked_.layout, *ranked_.link, model_.device.execution());
    }
  }

  void convolve(std::size_t i, const Pass& pass, Activations<Device, Element>& a) {
    const Layer& layer = model_.weights.layers[i];
    const std::int64_t channels = model_.config.channels;
    Element* const projected = a.projected.data();
    ConvolutionTensors<Element> tensors;
    tensors.input = pass.part(projected, 2 * channels, 0, 1, channels);
    tensors.gate = pass.part(projected, 2 * channels, channels, 1, channels);
    tensors.output = pass.part(a.mixed.data(), channels, 0, 1, channels);
    tensors.weight = layer.convolution_weight.data();
    tensors.bias = layer.convolution_bias.data();
    if (!run_projected(*model_.mixers.convolution, tensors, i, pass, a)) {
      project(layer, pass, a);
      run_mixer(*model_.mixers.convolution, tensors, i, pass, a);
    }
    add(layer.output, a.mixed.data(), channels, pass, a, layer.mlp_norm.data());
  }

  void attend_linearly(std::size_t i, const Pass& pass, Activations<Device, Element>& a) {
    const Layer& layer = model_.weights.layers[i];
    const std::int64_t heads = model_.config.heads;
    const std::int64_t d = model_.config.shape.feature_dim;
    const std::int64_t dv = model_.config.shape.head_dim;
    const std::int64_t columns = layer.input.out;           // queries, keys, values of all heads
    const std::int64_t encoder_columns = heads * (d + dv);  // keys, values
    Element* const projected = a.projected.data();
    Element* const encoder = a.encoder.data();
    if (pass.is_step()) {
      project(layer, pass, a);
    } else {
      // Tokens of the encoder region are projected twice: the normalised rows are kept.
      const Norm<Sum> its_norm = norm(layer.mixer_norm, a);
      if (its_norm.squares == nullptr) {
        model_.device.rms_norm(its_norm, a.residual.data(), nullptr, pass.rows, model_.config.width, a.normed.data());
      }
      project_normed(layer.input, its_norm, a, {.first = 0, .count = pass.rows}, projected);
      for (const RowRange& rows : pass.plan->encoder_ranges()) {
        project_normed(layer.encoder_input, its_norm, a, rows, encoder + rows.to * encoder_columns);
      }
      for (const RowRange& rows : pass.plan->zero_keys()) {
        model_.device.zero_columns(projected + rows.first * columns + heads * d, columns, heads * d, rows.count);
      }
      for (const RowRange& rows : pass.plan->zero_encoder_keys()) {
        model_.device.zero_columns(encoder + rows.first * encoder_columns, encoder_columns, heads * d, rows.count);
      }
    }
    LinearTensors<Element> tensors;
    tensors.query = pass.part(projected, columns, 0, heads, d);
    tensors.key = pass.part(projected, columns, heads * d, heads, d);
    tensors.value = pass.part(projected, columns, 2 * heads * d, heads, dv);
    tensors.output = pass.part(a.mixed.data(), heads * dv, 0, heads, dv);
    if (!pass.is_step() && pass.plan->encoder_rows() > 0) {
      const std::int64_t rows = pass.plan->encoder_rows();
      tensors.key_encoder = {encoder, 1, rows, heads, d, rows * encoder_columns, encoder_columns, d};
      tensors.value_encoder = {encoder + heads * d, 1, rows, heads, dv, rows * encoder_columns, encoder_columns, dv};
    }
    run_mixer(*model_.mixers.linear, tensors, i, pass, a);
    add(layer.output, a.mixed.data(), heads * dv, pass, a, layer.mlp_norm.data());
  }

  void attend_in_window(std::size_t i, const Pass& pass, Activations<Device, Element>& a) {
    const Layer& layer = model_.weights.layers[i];
    const std::int64_t heads = model_.config.heads;
    const std::int64_t kv_heads = model_.config.window_kv_heads;
    const std::int64_t d = model_.config.shape.head_dim;
    const std::int64_t columns = layer.input.out;  // queries, keys, values of all heads
    Element* const projected = a.projected.data();
    if (model_.config.rotates) {  // here and not in the window's Rotary policy: once, for any kernel
      model_.mixers.rotation->project(model_.device, layer.input, norm(layer.mixer_norm, a), a.residual.data(), pass.rows,
                                      a.normed.data(), projected, pass.positions, heads + kv_heads);
    } else {
      project(layer, pass, a);
    }
    WindowTensors<Element> tensors;
    tensors.query = pass.part(projected, columns, 0, heads, d);
    tensors.key = pass.part(projected, columns, heads * d, kv_heads, d);
    tensors.value = pass.part(projected, columns, (heads + kv_heads) * d, kv_heads, d);
    tensors.output = pass.part(a.mixed.data(), heads * d, 0, heads, d);
    tensors.scale = model_.config.window_scale;
    run_mixer(*model_.mixers.window, tensors, i, pass, a);
    add(layer.output, a.mixed.data(), heads * d, pass, a, layer.mlp_norm.data());
  }

  struct Ranked {
    const jrt::ContextLayout* layout = nullptr;
    Link* link = nullptr;
  };

  DeviceModel<Device, Element>& model_;
  bool takes_prepared_;
  Ranked ranked_{};
};

}  // namespace jrt_lm
