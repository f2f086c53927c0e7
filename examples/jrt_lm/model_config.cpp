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

#include "jrt_lm/config_section.hpp"
#include "support/mapped_file.hpp"
#include "support/strict_json.hpp"

namespace jrt_lm {

namespace {

using nlohmann::json;

constexpr std::int64_t max_layers = std::int64_t{1} << 12;

std::int64_t rounded_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// The class that a Hydra `_target_` names.
std::string class_of(const ConfigSection& section) {
  const std::string target = section.text("_target_");
  return target.substr(target.rfind('.') + 1);
}

/// What the authors' code writes over a window's own values comes from the model's section, or is a default; a window that
/// says otherwise is refused rather than interpreted.
template <class Value>
void check_agrees(const ConfigSection& mixer, const char* key, bool agrees, const Value& of_model) {
  if (!agrees) {
    mixer.fail(key, "is " + support::brief(mixer.at(key)) + ", but the model's section makes it " + json(of_model).dump());
  }
}

void read_convolution(const ConfigSection& mixer, ModelConfig& config) {
  config.channels = mixer.integer_or("expand_proj", 2, 1) * config.width / 2;
  if (config.channels < 1 || config.channels > ConfigSection::most) {
    mixer.fail("expand_proj", "is " + support::brief(mixer.at("expand_proj")) + ", which gives " +
                                  std::to_string(config.channels) + " channels, but there must be from 1 to " +
                                  std::to_string(ConfigSection::most));
  }
  config.convolution_projection_bias = mixer.flag("use_bias");
  config.shape.kernel_width = mixer.has("kernel_size") ? static_cast<int>(mixer.integer("kernel_size", 2, 8)) : 3;
  if (mixer.has("kernel_sizes")) {  // stands in published configurations, but is read by nobody
    const json& sizes = mixer.at("kernel_sizes");
    const json& width = sizes.is_array() && sizes.size() == 1 ? sizes[0] : sizes;
    if (!width.is_number_integer() || width < 2 || width > 8) {
      mixer.fail("kernel_sizes", "is " + sizes.dump().substr(0, 100) + ", but must be a list of one width from 2 to 8");
    }
    if (width != config.shape.kernel_width) {
      mixer.fail("kernel_sizes", "is " + sizes.dump() + ", but the authors' code reads 'kernel_size', which makes it " +
                                     std::to_string(config.shape.kernel_width));
    }
  }
}

/// `otherwise` is what the mixer's constructor takes where it is not told.
void check_heads(const ConfigSection& mixer, const ModelConfig& config, std::int64_t otherwise) {
  const std::int64_t heads = mixer.integer_or("num_heads", otherwise, 1);
  if (heads != config.heads) {
    mixer.fail("num_heads", (mixer.has("num_heads") ? "is " : "is missing, which means ") + std::to_string(heads) +
                                ", but the model has " + std::to_string(config.heads) + " heads");
  }
}

/// What Based's linear attention has beside that of JRT-RNN.
void check_causal_attention(const ConfigSection& root, const ConfigSection& mixer, const ModelConfig& config) {
  mixer.require("head_dim", config.shape.head_dim);
  mixer.require("use_decay_proj", false);
  if (root.flag("fixed_decay").value_or(false)) {
    root.fail("fixed_decay", "is true, but linear attention with a decay is not supported");
  }
  if (mixer.has("parallel_implementation") && mixer.text("parallel_implementation") == "tk") {
    mixer.fail("parallel_implementation",
               "is 'tk', which norms heads instead of dividing by the sum of the weights, but "
               "only the latter is supported");
  }
}

void read_linear(const ConfigSection& root, const ConfigSection& mixer, bool prefix, ModelConfig& config) {
  check_heads(mixer, config, prefix ? config.heads : 16);
  // Added to the sum of the weights, which is at least 1/2: up to this value nobody sees it.
  static_cast<void>(mixer.number_or("eps", 1e-12, 0, 1e-6));
  config.shape.feature_dim = static_cast<int>(mixer.integer_or("feature_dim", 16, 1));
  config.has_encoder = prefix;
  if (prefix) {
    config.encoder_tokens = (mixer.has("enc_length") ? mixer : root).integer("enc_length", 0);
  } else {
    check_causal_attention(root, mixer, config);
  }
  const auto check_scale = [&](const ConfigSection& section, const char* key) {
    if (section.integer_or(key, config.shape.feature_dim, 1) != config.shape.feature_dim) {
      section.fail(key, "is " + support::brief(section.at(key)) + ", but only feature_dim, " +
                            std::to_string(config.shape.feature_dim) + ", is supported");
    }
  };
  check_scale(mixer, "scale_dim");
  if (mixer.has("feature_map")) {
    const ConfigSection map = mixer.section("feature_map");
    if (class_of(map) != "TaylorExp") {
      map.fail("_target_", "is not TaylorExp, the only feature map that is supported");
    }
    check_scale(map, "scale_dim");
    check_scale(map, "input_dim");
  }
}

void read_rotary(const ConfigSection& root, const ConfigSection& mixer, ModelConfig& config) {
  const std::int64_t head_dim = config.shape.head_dim;
  const double fraction = root.number_or("rotary_emb_fraction", 0, 0, 1);
  const auto rotated = static_cast<std::int64_t>(fraction * static_cast<double>(head_dim));
  check_agrees(mixer, "rotary_emb_dim", mixer.integer_or("rotary_emb_dim", rotated, 0) == rotated, rotated);
  if (rotated != 0 && rotated != head_dim) {
    root.fail("rotary_emb_fraction", "turns " + std::to_string(rotated) + " dimensions of a head, but only none or all " +
                                         std::to_string(head_dim) + " are supported");
  }
  config.rotates = rotated != 0;
  config.rotary_base = root.positive_or("rotary_emb_base", 1e4);
  check_agrees(mixer, "rotary_emb_base", mixer.positive_or("rotary_emb_base", config.rotary_base) == config.rotary_base,
               config.rotary_base);
  for (const ConfigSection& section : {root, mixer}) {
    section.require("rotary_emb_interleaved", false);
    section.require("rotary_emb_scale_base", nullptr);
  }
}

void read_window_heads(const ConfigSection& root, const ConfigSection& mixer, ModelConfig& config) {
  check_heads(mixer, config, config.heads);
  const char* const key = root.has("num_head_kv") ? "num_head_kv" : "n_head_kv";
  config.window_kv_heads = root.integer_or(key, config.heads, 1);
  const std::int64_t of_mixer = mixer.integer_or("num_heads_kv", config.window_kv_heads, 1);
  if (config.heads % config.window_kv_heads != 0) {
    root.fail(key, "is " + std::to_string(config.window_kv_heads) + ", which does not divide n_head, " +
                       std::to_string(config.heads));
  }
  if (config.heads % of_mixer != 0) {
    mixer.fail("num_heads_kv",
               "is " + std::to_string(of_mixer) + ", which does not divide num_heads, " + std::to_string(config.heads));
  }
  check_agrees(mixer, "num_heads_kv", of_mixer == config.window_kv_heads, config.window_kv_heads);
}

void read_window(const ConfigSection& root, const ConfigSection& mixer, ModelConfig& config) {
  read_window_heads(root, mixer, config);
  config.shape.left_window = static_cast<int>(mixer.names("window_size") ? mixer.integer("window_size", 0) / 2 : 64);
  if (!root.flag("scale_attn_weights").value_or(true)) {
    config.window_scale = 1;
  }
  const double scale = mixer.positive_or("softmax_scale", config.window_scale);
  check_agrees(mixer, "softmax_scale", std::abs(scale - config.window_scale) <= 1e-6 * config.window_scale,
               config.window_scale);
  root.require("scale_attn_by_inverse_layer_idx", false);
  mixer.require("causal", true);
  mixer.require("cross_attn", false);
  read_rotary(root, mixer, config);
  // Where the model's section is keys_without_query, the tensors tell; what the mixer says does not count.
  config.window_input_bias = root.flag("qkv_proj_bias");
  config.window_output_bias = root.flag("out_proj_bias");
}

MixerKind kind_of(const ConfigSection& mixer) {
  const std::string name = class_of(mixer);
  // The second name is that of older checkpoints of the authors'.
  if (name == "BaseConv" || name == "BaseConvWithSiLU4") {
    return MixerKind::convolution;
  }
  if (name == "PrefixLinearAttention" || name == "LinearAttention") {
    return MixerKind::linear;
  }
  if (name == "SlidingAttention" || name == "SlidingsMHA") {
    return MixerKind::window;
  }
  mixer.fail("_target_",
             "is " + support::brief(mixer.at("_target_")) +
                 ", but known mixers are BaseConv, PrefixLinearAttention, LinearAttention and SlidingAttention");
}

/// A configuration has room for one mixer of each kind.
MixerKind read_mixer(const ConfigSection& root, const char* key, std::set<MixerKind>& kinds, ModelConfig& config) {
  const ConfigSection mixer = root.section(key);
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
void place_mixer(const ConfigSection& root, const char* key, const char* layers_key, ModelConfig& config,
                 std::set<MixerKind>& kinds, std::vector<bool>& placed) {
  if (!root.has(key)) {
    if (root.has(layers_key)) {
      root.fail(layers_key, std::string("is given, but there is no '") + key + "' for these layers");
    }
    return;
  }
  if (!root.has(layers_key)) {
    return;  // a mixer of no layer
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

/// Keys of the authors' constructors that make another model, with the one value that is run here; left out they have it.
/// docs/jrt-rnn.md lists all keys.
void require_known_model(const ConfigSection& root) {
  root.require_given("activation_function", "swiglu", "gelu_new");
  root.require_given("rms_norm", true, "LayerNorm");
  root.require("mlp_type", "base");
  root.require("prenorm", true);
  root.require("max_position_embeddings", 0);
  root.require("word_embed_proj_dim", nullptr);
  for (const char* const key :
       {"parallel_block", "norm_head", "lm_head_bias", "use_alibi", "attn_dwconv", "mup_scale_qk_dot_by_d"}) {
    root.require(key, false);
  }
  root.require("tie_word_embeddings", true);
  for (const char* const key :
       {"mup_embeddings_multiplier", "mup_output_multiplier", "mup_width_scale", "mup_attn_multiplier"}) {
    root.require(key, 1);
  }
}

/// Hugging Face's name for a key wins, as it does in its GPT2Config.
const char* key_or_alias(const ConfigSection& root, const char* key, const char* alias) {
  return root.has(alias) ? alias : key;
}

}  // namespace

const char* name_of(MixerKind kind) {
  switch (kind) {
    case MixerKind::convolution:
      return "convolution";
    case MixerKind::linear:
      return "linear attention";
    default:
      return "window attention";
  }
}

bool ModelConfig::has(MixerKind kind) const {
  return std::find(layers.begin(), layers.end(), kind) != layers.end();
}

ModelConfig ModelConfig::from_file(const std::string& path) {
  const support::MappedFile file(path);
  return from_json(std::string(file.text()), path);
}

ModelConfig ModelConfig::from_json(const std::string& text, const std::string& source) {
  const json parsed = support::parse_python_json(source + ": the configuration", text);
  const ConfigSection root(parsed, source, "");
  ModelConfig config;
  config.source = source;
  config.vocabulary = root.integer_or("vocab_size", 50257, 1);  // GPT-2's, and so published configurations do without
  config.vocabulary_rows = rounded_up(config.vocabulary, root.integer_or("pad_vocab_size_multiple", 1, 1));
  config.width = root.integer(key_or_alias(root, "n_embd", "hidden_size"), 1);
  const char* const heads_key = key_or_alias(root, "n_head", "num_attention_heads");
  config.heads = root.integer(heads_key, 1);
  if (config.width % config.heads != 0) {
    root.fail(heads_key,
              "is " + std::to_string(config.heads) + ", which does not divide n_embd, " + std::to_string(config.width));
  }
  config.shape.head_dim = static_cast<int>(config.width / config.heads);
  config.window_scale = 1 / std::sqrt(static_cast<double>(config.shape.head_dim));
  config.window_kv_heads = config.heads;
  root.require("head_dim", config.shape.head_dim);
  config.least_hidden = root.integer_or("n_inner", 8 * config.width / 3, 1);
  config.hidden = rounded_up(config.least_hidden, 256);
  config.channels = 2 * config.width;
  config.norm_epsilon = root.positive_or("layer_norm_epsilon", 1e-5);
  config.mlp_input_bias = root.flag("mlp_fc1_bias");
  config.mlp_output_bias = root.flag("mlp_fc2_bias");
  require_known_model(root);
  const auto layers =
      static_cast<std::size_t>(root.integer(key_or_alias(root, "n_layer", "num_hidden_layers"), 1, max_layers));
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
