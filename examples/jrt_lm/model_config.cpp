// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/model_config.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>

#include "support/strict_json.hpp"

namespace jrt_lm {

namespace {

using nlohmann::json;

constexpr std::int64_t most = std::int64_t{1} << 24;  // no extent of a model is larger, and products of two do not overflow

std::int64_t rounded_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// One object of the configuration, with its path for messages.
class Section {
 public:
  Section(const json& object, std::string source, std::string path)
      : object_(&object), source_(std::move(source)), path_(std::move(path)) {
    if (!object.is_object()) {
      throw std::runtime_error(source_ + ": '" + path_ + "' is " + object.type_name() + ", but must be an object");
    }
  }

  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw std::runtime_error(source_ + ": '" + (path_.empty() ? key : path_ + "." + key) + "' " + what);
  }

  [[nodiscard]] bool has(const char* key) const {
    const auto found = object_->find(key);
    return found != object_->end() && !found->is_null();
  }
  [[nodiscard]] const json& at(const char* key) const {
    if (!has(key)) {
      fail(key, "is missing");
    }
    return object_->at(key);
  }
  [[nodiscard]] Section section(const char* key) const {
    return {at(key), source_, path_.empty() ? key : path_ + "." + key};
  }

  [[nodiscard]] std::int64_t integer(const char* key, std::int64_t least) const {
    const json& value = at(key);
    if (!value.is_number_integer() || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most) {
      fail(key,
           "is " + value.dump() + ", but must be an integer from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value.get<std::int64_t>();
  }
  [[nodiscard]] std::int64_t integer_or(const char* key, std::int64_t otherwise, std::int64_t least) const {
    return has(key) ? integer(key, least) : otherwise;
  }
  [[nodiscard]] double positive_or(const char* key, double otherwise) const {
    if (!has(key)) {
      return otherwise;
    }
    const json& value = at(key);
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
      fail(key, "is " + value.dump() + ", but must be a positive number");
    }
    return value.get<double>();
  }
  [[nodiscard]] bool flag_or(const char* key, bool otherwise) const {
    if (!has(key)) {
      return otherwise;
    }
    if (!at(key).is_boolean()) {
      fail(key, "is " + at(key).dump() + ", but must be true or false");
    }
    return at(key).get<bool>();
  }
  [[nodiscard]] std::string text(const char* key) const {
    if (!at(key).is_string()) {
      fail(key, "is " + at(key).dump() + ", but must be a string");
    }
    return at(key).get<std::string>();
  }
  void require(const char* key, const json& wanted) const {
    if (has(key) && at(key) != wanted) {
      fail(key, "is " + at(key).dump() + ", but only " + wanted.dump() + " is supported");
    }
  }

 private:
  const json* object_;
  std::string source_;
  std::string path_;
};

/// The class that a Hydra `_target_` names.
std::string class_of(const Section& section) {
  const std::string target = section.text("_target_");
  return target.substr(target.rfind('.') + 1);
}

void read_convolution(const Section& mixer, ModelConfig& config) {
  config.channels = mixer.integer_or("expand_proj", 4, 1) * config.width / 2;
  config.convolution_projection_bias = mixer.flag_or("use_bias", false);
  config.shape.kernel_width = 3;
  if (mixer.has("kernel_sizes")) {
    const json& sizes = mixer.at("kernel_sizes");
    if (!sizes.is_array() || sizes.size() != 1 || !sizes[0].is_number_integer() || sizes[0] < 2 || sizes[0] > 8) {
      mixer.fail("kernel_sizes", "is " + sizes.dump() + ", but must be a list of one width from 2 to 8");
    }
    config.shape.kernel_width = sizes[0].get<int>();
  }
}

void read_linear(const Section& mixer, bool prefix, ModelConfig& config) {
  config.shape.feature_dim = static_cast<int>(mixer.integer_or("feature_dim", 16, 1));
  config.heads = mixer.integer_or("num_heads", config.heads, 1);
  config.has_encoder = prefix;
  config.encoder_tokens = prefix ? mixer.integer_or("enc_length", 0, 0) : 0;
  if (mixer.has("feature_map") && class_of(mixer.section("feature_map")) != "TaylorExp") {
    mixer.section("feature_map").fail("_target_", "is not TaylorExp, the only feature map that is supported");
  }
}

void read_window(const Section& mixer, ModelConfig& config) {
  const std::int64_t heads = mixer.integer_or("num_heads", config.heads, 1);
  if (heads != config.heads) {
    mixer.fail("num_heads",
               "is " + std::to_string(heads) + ", but the model has " + std::to_string(config.heads) + " heads");
  }
  config.window_kv_heads = mixer.integer_or("num_heads_kv", heads, 1);
  if (heads % config.window_kv_heads != 0) {
    mixer.fail("num_heads_kv", "is " + std::to_string(config.window_kv_heads) + ", which does not divide num_heads, " +
                                   std::to_string(heads));
  }
  config.shape.left_window = static_cast<int>(mixer.integer("window_size", 0) / 2);
  config.window_scale = mixer.positive_or("softmax_scale", config.window_scale);
  config.rotary_base = mixer.positive_or("rotary_emb_base", 1e4);
  const std::int64_t rotary_dim = mixer.integer_or("rotary_emb_dim", config.shape.head_dim, 0);
  if (rotary_dim != 0 && rotary_dim != config.shape.head_dim) {
    mixer.fail("rotary_emb_dim", "is " + std::to_string(rotary_dim) + ", but must be 0 or the head dimension, " +
                                     std::to_string(config.shape.head_dim));
  }
  config.rotates = rotary_dim != 0;
  mixer.require("rotary_emb_interleaved", false);
  mixer.require("rotary_emb_scale_base", nullptr);
  mixer.require("causal", true);
  config.window_input_bias = mixer.flag_or("qkv_proj_bias", false);
  config.window_output_bias = mixer.flag_or("out_proj_bias", false);
}

MixerKind read_mixer(const Section& mixer, ModelConfig& config) {
  const std::string name = class_of(mixer);
  if (name == "BaseConv") {
    read_convolution(mixer, config);
    return MixerKind::convolution;
  }
  if (name == "PrefixLinearAttention" || name == "LinearAttention") {
    read_linear(mixer, name == "PrefixLinearAttention", config);
    return MixerKind::linear;
  }
  if (name == "SlidingAttention") {
    read_window(mixer, config);
    return MixerKind::window;
  }
  mixer.fail("_target_",
             "is '" + mixer.text("_target_") +
                 "', but known mixers are BaseConv, PrefixLinearAttention, LinearAttention and SlidingAttention");
}

/// Layers that have another mixer than the first one.
void place_mixer(const Section& root, const char* key, const char* layers_key, ModelConfig& config,
                 std::vector<bool>& placed) {
  if (!root.has(key)) {
    return;
  }
  const MixerKind kind = read_mixer(root.section(key), config);
  const json& layers = root.at(layers_key);
  if (!layers.is_array()) {
    root.fail(layers_key, std::string("is ") + layers.type_name() + ", but must be a list of layers");
  }
  for (const json& entry : layers) {
    const auto count = static_cast<std::int64_t>(config.layers.size());
    if (!entry.is_number_integer() || entry.get<std::int64_t>() < 0 || entry.get<std::int64_t>() >= count) {
      root.fail(layers_key,
                "has the entry " + entry.dump() + ", but layers are numbered from 0 to " + std::to_string(count - 1));
    }
    const auto layer = entry.get<std::size_t>();
    if (placed[layer]) {
      root.fail(layers_key, "has the entry " + entry.dump() + ", a layer that was given a mixer before");
    }
    placed[layer] = true;
    config.layers[layer] = kind;
  }
}

}  // namespace

std::string description(const KernelShape& shape) {
  return "d = " + std::to_string(shape.feature_dim) + ", head dimension " + std::to_string(shape.head_dim) + ", window " +
         std::to_string(shape.left_window) + ", convolution " + std::to_string(shape.kernel_width);
}

ModelConfig ModelConfig::from_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error(path + ": cannot be opened");
  }
  return from_json(std::string{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()}, path);
}

ModelConfig ModelConfig::from_json(const std::string& text, const std::string& source) {
  const json parsed = support::parse_strict_json(source + ": the configuration", text);
  const Section root(parsed, source, "");
  ModelConfig config;
  config.source = source;
  config.vocabulary = root.integer("vocab_size", 1);
  config.vocabulary_rows = rounded_up(config.vocabulary, root.integer_or("pad_vocab_size_multiple", 1, 1));
  config.width = root.integer("n_embd", 1);
  config.heads = root.integer("n_head", 1);
  if (config.width % config.heads != 0) {
    root.fail("n_head",
              "is " + std::to_string(config.heads) + ", which does not divide n_embd, " + std::to_string(config.width));
  }
  config.shape.head_dim = static_cast<int>(config.width / config.heads);
  config.window_scale = 1 / std::sqrt(static_cast<double>(config.shape.head_dim));
  config.window_kv_heads = config.heads;
  config.hidden = rounded_up(root.integer_or("n_inner", 2 * config.width, 1), 256);
  config.channels = 2 * config.width;
  config.norm_epsilon = root.positive_or("layer_norm_epsilon", 1e-5);
  config.mlp_input_bias = root.flag_or("mlp_fc1_bias", false);
  config.mlp_output_bias = root.flag_or("mlp_fc2_bias", false);
  root.require("activation_function", "swiglu");
  root.require("rms_norm", true);
  root.require("tie_word_embeddings", true);
  const std::int64_t layers = root.integer("n_layer", 1);
  config.layers.resize(static_cast<std::size_t>(layers));
  std::fill(config.layers.begin(), config.layers.end(), read_mixer(root.section("mixer"), config));
  std::vector<bool> placed(static_cast<std::size_t>(layers));
  place_mixer(root, "alt_mixer", "alt_mixer_layers", config, placed);
  place_mixer(root, "alt_mixer_2", "alt_mixer_2_layers", config, placed);
  return config;
}

void ModelConfig::adapt_to(const std::vector<std::string>& tensor_names) {
  for (const std::string& name : tensor_names) {
    convolution_bias = convolution_bias || name.ends_with(".mixer.conv.conv.bias");
  }
}

ModelConfig ModelConfig::published(const std::string& name) {
  ModelConfig config;
  config.source = name;
  if (name == "360m") {
    config.width = 1024;
    config.layers.resize(26);
  } else if (name == "1.3b") {
    config.width = 1792;
    config.layers.resize(36);
  } else {
    throw std::runtime_error("the model '" + name + "' is not known, but 360m and 1.3b are");
  }
  config.vocabulary = 50257;
  config.vocabulary_rows = 50264;
  config.heads = 16;
  config.window_kv_heads = 16;
  config.shape = {16, static_cast<int>(config.width / config.heads), 128, 3};
  config.hidden = rounded_up(2 * config.width, 256);
  config.channels = 2 * config.width;
  config.encoder_tokens = 1024;
  config.has_encoder = true;
  config.window_scale = 1 / std::sqrt(static_cast<double>(config.shape.head_dim));
  config.convolution_projection_bias = true;
  for (const std::size_t linear : {1, 6, 11, 16, 21, 27, 33}) {
    if (linear < config.layers.size()) {
      config.layers[linear] = MixerKind::linear;
      config.layers[linear + 1] = MixerKind::window;
    }
  }
  return config;
}

std::vector<TensorSpec> tensors_of(const ModelConfig& config) {
  std::vector<TensorSpec> tensors;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    tensors.push_back({name, std::move(shape)});
  };
  const auto add_projection = [&](const std::string& name, std::int64_t out, std::int64_t in, bool bias) {
    add(name + ".weight", {out, in});
    if (bias) {
      add(name + ".bias", {out});
    }
  };
  const std::int64_t width = config.width;
  const std::int64_t values = config.heads * config.shape.head_dim;
  const std::int64_t features = config.heads * config.shape.feature_dim;
  add("transformer.embeddings.word_embeddings.weight", {config.vocabulary_rows, width});
  for (std::size_t i = 0; i < config.layers.size(); ++i) {
    const std::string layer = "transformer.layers." + std::to_string(i) + ".";
    const std::string mixer = layer + "mixer.";
    add(layer + "norm1.weight", {width});
    switch (config.layers[i]) {
      case MixerKind::convolution:
        add_projection(mixer + "in_proj", 2 * config.channels, width, config.convolution_projection_bias);
        add(mixer + "conv.conv.weight", {config.channels, 1, config.shape.kernel_width});
        if (config.convolution_bias) {
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
    std::int64_t size = 1;
    for (const std::int64_t extent : tensor.shape) {
      size *= extent;
    }
    count += size;
  }
  return count;
}

}  // namespace jrt_lm
