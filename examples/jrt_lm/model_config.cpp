// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/model_config.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "support/mapped_file.hpp"
#include "support/strict_json.hpp"

namespace jrt_lm {

namespace {

using nlohmann::json;

constexpr std::int64_t most = std::int64_t{1} << 24;  // no extent of a model is larger, and no count of numbers overflows
constexpr std::int64_t most_layers = std::int64_t{1} << 12;

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

  [[nodiscard]] std::int64_t integer(const char* key, std::int64_t least, std::int64_t bound = most) const {
    const json& value = at(key);
    if (!value.is_number_integer() || value < least || value > bound) {
      fail(key, "is " + support::brief(value) + ", but must be an integer from " + std::to_string(least) + " to " +
                    std::to_string(bound));
    }
    return value.get<std::int64_t>();
  }
  [[nodiscard]] std::int64_t integer_or(const char* key, std::int64_t otherwise, std::int64_t least) const {
    return has(key) ? integer(key, least) : otherwise;
  }
  [[nodiscard]] double fraction(const char* key) const {
    const json& value = at(key);
    if (!value.is_number() || !(value >= 0.0) || !(value <= 1.0)) {
      fail(key, "is " + support::brief(value) + ", but must be a number from 0 to 1");
    }
    return value.get<double>();
  }
  [[nodiscard]] double positive_or(const char* key, double otherwise) const {
    if (!has(key)) {
      return otherwise;
    }
    const json& value = at(key);
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
      fail(key, "is " + support::brief(value) + ", but must be a positive number");
    }
    return value.get<double>();
  }
  [[nodiscard]] std::optional<bool> flag(const char* key) const {
    if (!has(key)) {
      return std::nullopt;
    }
    if (!at(key).is_boolean()) {
      fail(key, "is " + support::brief(at(key)) + ", but must be true or false");
    }
    return at(key).get<bool>();
  }
  [[nodiscard]] std::string text(const char* key) const {
    if (!at(key).is_string()) {
      fail(key, "is " + support::brief(at(key)) + ", but must be a string");
    }
    return at(key).get<std::string>();
  }
  /// The key has this value, which it also has where it is left out.
  void require(const char* key, const json& wanted) const {
    if (has(key) && at(key) != wanted) {
      fail(key, "is " + support::brief(at(key)) + ", but only " + support::brief(wanted) + " is supported");
    }
  }
  /// The key has this value; left out, it would have another.
  void require_given(const char* key, const json& wanted, const char* otherwise) const {
    if (!has(key)) {
      fail(key,
           std::string("is missing, which means ") + otherwise + ", but only " + support::brief(wanted) + " is supported");
    }
    require(key, wanted);
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

/// What the authors' code writes over a window's own values comes from the model's section, or is a default; a window that
/// says otherwise is refused rather than interpreted.
template <class Value>
void check_agrees(const Section& mixer, const char* key, bool agrees, const Value& of_model) {
  if (!agrees) {
    mixer.fail(key, "is " + support::brief(mixer.at(key)) + ", but the model's section makes it " + json(of_model).dump());
  }
}

void read_convolution(const Section& mixer, ModelConfig& config) {
  config.channels = mixer.integer_or("expand_proj", 4, 1) * config.width / 2;
  if (config.channels < 1 || config.channels > most) {
    mixer.fail("expand_proj", "is " + support::brief(mixer.at("expand_proj")) + ", which gives " +
                                  std::to_string(config.channels) + " channels, but there must be from 1 to " +
                                  std::to_string(most));
  }
  config.convolution_projection_bias = mixer.flag("use_bias");
  config.shape.kernel_width = 3;
  if (mixer.has("kernel_sizes")) {
    const json& sizes = mixer.at("kernel_sizes");
    if (!sizes.is_array() || sizes.size() != 1 || !sizes[0].is_number_integer() || sizes[0] < 2 || sizes[0] > 8) {
      mixer.fail("kernel_sizes", "is " + sizes.dump().substr(0, 100) + ", but must be a list of one width from 2 to 8");
    }
    config.shape.kernel_width = sizes[0].get<int>();
  }
}

void check_heads(const Section& mixer, const ModelConfig& config) {
  const std::int64_t heads = mixer.integer_or("num_heads", config.heads, 1);
  if (heads != config.heads) {
    mixer.fail("num_heads",
               "is " + std::to_string(heads) + ", but the model has " + std::to_string(config.heads) + " heads");
  }
}

void read_linear(const Section& root, const Section& mixer, bool prefix, ModelConfig& config) {
  check_heads(mixer, config);
  config.shape.feature_dim = static_cast<int>(mixer.integer_or("feature_dim", 16, 1));
  config.has_encoder = prefix;
  if (prefix) {
    config.encoder_tokens = (mixer.has("enc_length") ? mixer : root).integer("enc_length", 0);
  }
  const auto check_scale = [&](const Section& section) {
    if (section.integer_or("scale_dim", config.shape.feature_dim, 1) != config.shape.feature_dim) {
      section.fail("scale_dim", "is " + support::brief(section.at("scale_dim")) + ", but only feature_dim, " +
                                    std::to_string(config.shape.feature_dim) + ", is supported");
    }
  };
  check_scale(mixer);
  if (mixer.has("feature_map")) {
    const Section map = mixer.section("feature_map");
    if (class_of(map) != "TaylorExp") {
      map.fail("_target_", "is not TaylorExp, the only feature map that is supported");
    }
    check_scale(map);
  }
}

void read_rotary(const Section& root, const Section& mixer, ModelConfig& config) {
  const std::int64_t head_dim = config.shape.head_dim;
  const double fraction = root.has("rotary_emb_fraction") ? root.fraction("rotary_emb_fraction") : 0;
  const auto turned = static_cast<std::int64_t>(fraction * static_cast<double>(head_dim));
  check_agrees(mixer, "rotary_emb_dim", mixer.integer_or("rotary_emb_dim", turned, 0) == turned, turned);
  if (turned != 0 && turned != head_dim) {
    root.fail("rotary_emb_fraction", "turns " + std::to_string(turned) + " dimensions of a head, but only none or all " +
                                         std::to_string(head_dim) + " are supported");
  }
  config.rotates = turned != 0;
  config.rotary_base = root.positive_or("rotary_emb_base", 1e4);
  check_agrees(mixer, "rotary_emb_base", mixer.positive_or("rotary_emb_base", config.rotary_base) == config.rotary_base,
               config.rotary_base);
  for (const Section& section : {root, mixer}) {
    section.require("rotary_emb_interleaved", false);
    section.require("rotary_emb_scale_base", nullptr);
  }
}

void read_window(const Section& root, const Section& mixer, ModelConfig& config) {
  check_heads(mixer, config);
  config.window_kv_heads = mixer.integer_or("num_heads_kv", root.integer_or("n_head_kv", config.heads, 1), 1);
  if (config.heads % config.window_kv_heads != 0) {
    mixer.fail("num_heads_kv", "is " + std::to_string(config.window_kv_heads) + ", which does not divide num_heads, " +
                                   std::to_string(config.heads));
  }
  config.shape.left_window = static_cast<int>(mixer.integer("window_size", 0) / 2);
  if (!root.flag("scale_attn_weights").value_or(true)) {
    config.window_scale = 1;
  }
  const double scale = mixer.positive_or("softmax_scale", config.window_scale);
  check_agrees(mixer, "softmax_scale", std::abs(scale - config.window_scale) <= 1e-6 * config.window_scale,
               config.window_scale);
  root.require("scale_attn_by_inverse_layer_idx", false);
  mixer.require("causal", true);
  read_rotary(root, mixer, config);
  // Where the model's section is silent, the tensors tell; what the mixer says does not count.
  config.window_input_bias = root.flag("qkv_proj_bias");
  config.window_output_bias = root.flag("out_proj_bias");
}

MixerKind kind_of(const Section& mixer) {
  const std::string name = class_of(mixer);
  if (name == "BaseConv") {
    return MixerKind::convolution;
  }
  if (name == "PrefixLinearAttention" || name == "LinearAttention") {
    return MixerKind::linear;
  }
  if (name == "SlidingAttention") {
    return MixerKind::window;
  }
  mixer.fail("_target_",
             "is " + support::brief(mixer.at("_target_")) +
                 ", but known mixers are BaseConv, PrefixLinearAttention, LinearAttention and SlidingAttention");
}

/// A configuration has room for one mixer of each kind.
MixerKind read_mixer(const Section& root, const char* key, std::set<MixerKind>& kinds, ModelConfig& config) {
  const Section mixer = root.section(key);
  const MixerKind kind = kind_of(mixer);
  if (!kinds.insert(kind).second) {
    root.fail(key, "is a second " + class_of(mixer) + " or of its kind, but a model may have one of each kind");
  }
  switch (kind) {
    case MixerKind::convolution:
      read_convolution(mixer, config);
      break;
    case MixerKind::linear:
      read_linear(root, mixer, class_of(mixer) == "PrefixLinearAttention", config);
      break;
    case MixerKind::window:
      read_window(root, mixer, config);
      break;
  }
  return kind;
}

/// Layers that have another mixer than the first one.
void place_mixer(const Section& root, const char* key, const char* layers_key, ModelConfig& config,
                 std::set<MixerKind>& kinds, std::vector<bool>& placed) {
  if (!root.has(key)) {
    if (root.has(layers_key)) {
      root.fail(layers_key, std::string("is given, but there is no '") + key + "' for these layers");
    }
    return;
  }
  const MixerKind kind = read_mixer(root, key, kinds, config);
  const json& layers = root.at(layers_key);
  if (!layers.is_array()) {
    root.fail(layers_key, std::string("is ") + layers.type_name() + ", but must be a list of layers");
  }
  for (const json& entry : layers) {
    const auto count = static_cast<std::int64_t>(config.layers.size());
    if (!entry.is_number_integer() || entry < 0 || entry >= count) {
      root.fail(layers_key, "has the entry " + support::brief(entry) + ", but layers are numbered from 0 to " +
                                std::to_string(count - 1));
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

bool ModelConfig::has(MixerKind kind) const {
  return std::find(layers.begin(), layers.end(), kind) != layers.end();
}

ModelConfig ModelConfig::from_file(const std::string& path) {
  const support::MappedFile file(path);
  return from_json(std::string(file.text()), path);
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
  root.require("head_dim", config.shape.head_dim);
  config.hidden = rounded_up(root.integer_or("n_inner", 8 * config.width / 3, 1), 256);
  config.channels = 2 * config.width;
  config.norm_epsilon = root.positive_or("layer_norm_epsilon", 1e-5);
  config.mlp_input_bias = root.flag("mlp_fc1_bias");
  config.mlp_output_bias = root.flag("mlp_fc2_bias");
  root.require_given("activation_function", "swiglu", "gelu_new");
  root.require_given("rms_norm", true, "LayerNorm");
  root.require("tie_word_embeddings", true);
  root.require("parallel_block", false);
  const auto layers = static_cast<std::size_t>(root.integer("n_layer", 1, most_layers));
  std::set<MixerKind> kinds;
  config.layers.assign(layers, read_mixer(root, "mixer", kinds, config));
  std::vector<bool> placed(layers);
  place_mixer(root, "alt_mixer", "alt_mixer_layers", config, kinds, placed);
  place_mixer(root, "alt_mixer_2", "alt_mixer_2_layers", config, kinds, placed);
  for (const std::size_t layer : {7, 17}) {
    if (config.shape.left_window == 4096 / 2 && layer < layers && config.layers[layer] == MixerKind::window) {
      throw std::runtime_error(
          source + ": layer " + std::to_string(layer) +
          " has a window_size of 4096, for which the authors' code puts 256 there, but all windows of a "
          "model must have one size");
    }
  }
  return config;
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

}  // namespace jrt_lm
