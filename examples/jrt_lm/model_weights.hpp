// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/numeric.hpp>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "jrt_lm/model_config.hpp"
#include "jrt_lm/weights.hpp"

namespace jrt_lm {

/// y = x Wᵀ + b, W (out, in). The bias has the type of y.
template <class Device, class Element, class Output>
struct Projection {
  using Out = Output;
  std::int64_t out = 0;
  std::int64_t in = 0;
  typename Device::template Array<Element> weight{};
  typename Device::template Array<Output> bias{};  ///< empty: none
};

/// x weight / sqrt(mean of x² + epsilon), of each row x.
template <class Sum>
struct Norm {
  const Sum* weight = nullptr;
  double epsilon = 0;
  /// If the rows are prepared for it, their sums of squares: (rows, square_parts). Then x weight is where norm(x) would be.
  const Sum* squares = nullptr;
  std::int64_t square_parts = 0;
};

/// All numbers of a model on its device. Projections that read the same input are one: queries, keys and values lie behind
/// one another in a row, and the mixers read them there through strided views.
template <class Device, class Element>
class ModelWeights {
 public:
  using Sum = jrt::ComputeType<Element>;
  template <class T>
  using Array = typename Device::template Array<T>;
  using Inner = Projection<Device, Element, Element>;  ///< to what mixers and the MLP read
  using Outer = Projection<Device, Element, Sum>;      ///< to the residual stream or to logits

  struct Layer {
    Array<Sum> mixer_norm{};
    Array<Sum> mlp_norm{};
    Inner input{};          ///< of the mixer: input and gate; or queries, keys, values
    Inner encoder_input{};  ///< keys and values of the encoder region
    Outer output{};
    Array<Element> convolution_weight{};
    Array<Element> convolution_bias{};
    Inner mlp_input{};
    Outer mlp_output{};
  };

  Outer embedding{};  ///< (vocabulary rows, width), also the last projection
  Array<Sum> final_norm{};
  std::vector<Layer> layers{};

  ModelWeights(Device& device, const ModelConfig& config, const WeightSource& source)
      : layers(config.layers.size()), device_(&device), source_(&source) {
    for (TensorSpec& tensor : tensors_of(config)) {
      specs_[tensor.name] = std::move(tensor.shape);
    }
    embedding = projection<Sum>({"transformer.embeddings.word_embeddings"});
    final_norm = array<Sum>({"transformer.ln_f.weight"});
    for (std::size_t i = 0; i < layers.size(); ++i) {
      read_layer("transformer.layers." + std::to_string(i) + ".", config.layers[i], layers[i]);
    }
    specs_.clear();
    source_ = nullptr;
  }

  /// Of the matrices that a decode step reads.
  [[nodiscard]] std::int64_t step_bytes() const {
    std::int64_t numbers = embedding.weight.size();
    for (const Layer& layer : layers) {
      numbers += layer.input.weight.size() + layer.output.weight.size() + layer.mlp_input.weight.size() +
                 layer.mlp_output.weight.size();
    }
    return numbers * static_cast<std::int64_t>(sizeof(Element));
  }

 private:
  void read_layer(const std::string& name, MixerKind kind, Layer& layer) {
    layer.mixer_norm = array<Sum>({name + "norm1.weight"});
    layer.mlp_norm = array<Sum>({name + "norm2.weight"});
    layer.mlp_input = projection<Element>({name + "mlp.fc1"});
    layer.mlp_output = projection<Sum>({name + "mlp.fc2"});
    layer.output = projection<Sum>({name + "mixer.out_proj"});
    switch (kind) {
      case MixerKind::convolution:
        layer.input = projection<Element>({name + "mixer.in_proj"});
        layer.convolution_weight = array<Element>({name + "mixer.conv.conv.weight"});
        layer.convolution_bias = array<Element>({name + "mixer.conv.conv.bias"});
        break;
      case MixerKind::linear:
        layer.input = projection<Element>({name + "mixer.proj_q", name + "mixer.proj_k", name + "mixer.proj_v"});
        layer.encoder_input = projection<Element>({name + "mixer.proj_k_enc", name + "mixer.proj_v_enc"});
        break;
      case MixerKind::window:
        layer.input = projection<Element>({name + "mixer.Wqkv"});
        break;
    }
  }

  template <class Output>
  Projection<Device, Element, Output> projection(const std::vector<std::string>& parts) {
    Projection<Device, Element, Output> result;
    std::vector<std::string> weights;
    std::vector<std::string> biases;
    for (const std::string& part : parts) {
      weights.push_back(part + ".weight");
      biases.push_back(part + ".bias");
      if (const auto found = specs_.find(weights.back()); found != specs_.end()) {
        result.out += found->second.at(0);
        result.in = found->second.at(1);
      }
    }
    result.weight = array<Element>(weights);
    result.bias = array<Output>(biases);
    return result;
  }

  /// Tensors one behind the other; those that the model does not have are left out.
  template <class T>
  Array<T> array(const std::vector<std::string>& names) {
    std::vector<TensorSpec> tensors;
    std::int64_t total = 0;
    for (const std::string& name : names) {
      if (const auto found = specs_.find(name); found != specs_.end()) {
        tensors.push_back({name, found->second});
        total += tensors.back().size();
      }
    }
    if (tensors.empty()) {
      return {};
    }
    std::vector<T> values(static_cast<std::size_t>(total));
    T* to = values.data();
    for (const TensorSpec& tensor : tensors) {
      source_->read(tensor, to);
      to += tensor.size();
    }
    Array<T> result(*device_, total);
    result.upload(values);
    return result;
  }

  Device* device_;
  const WeightSource* source_;
  std::map<std::string, std::vector<std::int64_t>> specs_;
};

}  // namespace jrt_lm
