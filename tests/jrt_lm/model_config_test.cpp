// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/model_config.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "jrt_lm/model_problem.hpp"
#include "jrt_lm/model_tensors.hpp"

namespace jrt_lm::test {
namespace {

using nlohmann::json;

json tiny() {
  return json::parse(
      R"({"vocab_size": 97, "n_embd": 64, "n_layer": 6, "n_head": 4, "n_inner": 128, "pad_vocab_size_multiple": 8, "rms_norm": true, "rotary_emb_fraction": 1,
    "activation_function": "swiglu",
    "mixer": {"_target_": "based.models.mixers.convolution.BaseConv", "use_bias": true, "expand_proj": 4, "kernel_sizes": [3]},
    "alt_mixer": {"_target_": "a.PrefixLinearAttention", "feature_dim": 16, "num_heads": 4, "enc_length": 16},
    "alt_mixer_2": {"_target_": "a.SlidingAttention", "window_size": 8, "num_heads": 4, "rotary_emb_dim": 16},
    "alt_mixer_layers": [1, 4], "alt_mixer_2_layers": [2, 5]})");
}

ModelConfig read(const json& config) {
  return ModelConfig::from_json(config.dump(), "c.json");
}

/// The message for a configuration with one change, made with a JSON pointer.
std::string error_of(const std::string& pointer, const json& value) {
  json config = tiny();
  config[json::json_pointer(pointer)] = value;
  try {
    static_cast<void>(read(config));
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("the authors' configuration") {
  const ModelConfig config = ModelConfig::from_file(data_folder() + "/jrt_tiny/config.json");
  CHECK(config.vocabulary == 97);
  CHECK(config.vocabulary_rows == 104);
  CHECK(config.width == 64);
  CHECK(config.hidden == 256);
  CHECK(config.channels == 128);
  CHECK(config.heads == 4);
  CHECK(config.shape == KernelShape{16, 16, 4, 3});
  CHECK(config.encoder_tokens == 16);
  CHECK(config.window_scale == 0.25);
  CHECK(config.rotates);
  using enum MixerKind;
  CHECK(config.layers == std::vector{convolution, linear, window, convolution, linear, window});
  CHECK_FALSE(config.mlp_input_bias.value());
  CHECK(config.convolution_projection_bias.value());
  CHECK_FALSE(config.convolution_bias.has_value());
  CHECK(tensors_of(config).size() == 2 + 2 * (4 + 5) + 2 * (4 + 6) + 2 * (4 + 2));
}

TEST_CASE("any layout, causal models, and what may be left out") {
  json config = tiny();
  config["alt_mixer"]["_target_"] = "based.models.mixers.linear_attention.LinearAttention";
  config["alt_mixer_layers"] = {5, 0, 3};
  config["alt_mixer_2_layers"] = json::array();
  config["alt_mixer_2"].erase("rotary_emb_dim");
  config.erase("rotary_emb_fraction");
  config.erase("n_inner");
  config.erase("pad_vocab_size_multiple");
  const ModelConfig read_config = read(config);
  using enum MixerKind;
  CHECK(read_config.layers == std::vector{linear, convolution, convolution, linear, convolution, linear});
  CHECK_FALSE(read_config.has_encoder);
  CHECK(read_config.encoder_tokens == 0);
  CHECK_FALSE(read_config.rotates);
  CHECK(read_config.hidden == 256);
  CHECK(read_config.vocabulary_rows == 97);
}

TEST_CASE("what the model's section says of windows counts, and may not contradict the mixer's") {
  json config = tiny();
  config["alt_mixer_2"].erase("rotary_emb_dim");
  config.erase("rotary_emb_fraction");
  CHECK_FALSE(read(config).rotates);  // the authors' default
  config["rotary_emb_fraction"] = 1.0;
  config["rotary_emb_base"] = 500;
  config["scale_attn_weights"] = false;
  config["qkv_proj_bias"] = true;
  const ModelConfig read_config = read(config);
  CHECK(read_config.rotates);
  CHECK(read_config.rotary_base == 500);
  CHECK(read_config.window_scale == 1);
  CHECK(read_config.window_input_bias.value());
  CHECK(error_of("/rotary_emb_fraction", 0) ==
        "c.json: 'alt_mixer_2.rotary_emb_dim' is 16, but the model's section makes it 0");
  CHECK(error_of("/rotary_emb_fraction", 0.5) ==
        "c.json: 'alt_mixer_2.rotary_emb_dim' is 16, but the model's section makes it 8");
  CHECK(error_of("/rotary_emb_fraction", 2) == "c.json: 'rotary_emb_fraction' is 2, but must be a number from 0 to 1");
  CHECK(error_of("/rotary_emb_fraction", nullptr) ==
        "c.json: 'alt_mixer_2.rotary_emb_dim' is 16, but the model's section makes it 0");
  config = tiny();
  config["rotary_emb_fraction"] = 0.5;
  config["alt_mixer_2"].erase("rotary_emb_dim");
  CHECK_THROWS_WITH_AS(static_cast<void>(read(config)),
                       "c.json: 'rotary_emb_fraction' turns 8 dimensions of a head, but only none or all 16 are supported",
                       std::runtime_error);
  config = tiny();
  config["rotary_emb_base"] = 500;
  config["alt_mixer_2"]["rotary_emb_base"] = 1000;
  CHECK_THROWS_WITH_AS(static_cast<void>(read(config)),
                       "c.json: 'alt_mixer_2.rotary_emb_base' is 1000, but the model's section makes it 500.0",
                       std::runtime_error);
  config = tiny();
  config["scale_attn_weights"] = true;
  config["alt_mixer_2"]["softmax_scale"] = 0.5;
  CHECK_THROWS_WITH_AS(static_cast<void>(read(config)),
                       "c.json: 'alt_mixer_2.softmax_scale' is 0.5, but the model's section makes it 0.25",
                       std::runtime_error);
}

TEST_CASE("the one window that the authors' code replaces") {
  json config = tiny();
  config["n_layer"] = 9;
  config["alt_mixer_2"]["window_size"] = 4096;
  CHECK(read(config).shape.left_window == 2048);
  config["alt_mixer_2_layers"] = {2, 7};
  CHECK_THROWS_WITH_AS(static_cast<void>(read(config)), doctest::Contains("c.json: layer 7 has a window_size of 4096"),
                       std::runtime_error);
}

TEST_CASE("the published layouts") {
  const ModelConfig small = ModelConfig::published("360m");
  CHECK(std::count(small.layers.begin(), small.layers.end(), MixerKind::linear) == 5);
  CHECK(std::count(small.layers.begin(), small.layers.end(), MixerKind::window) == 5);
  CHECK(small.layers[21] == MixerKind::linear);
  CHECK(small.layers[22] == MixerKind::window);
  CHECK(small.layers.size() == 26);
  CHECK(parameter_count(small) > 330'000'000);
  CHECK(parameter_count(small) < 400'000'000);
  const ModelConfig large = ModelConfig::published("1.3b");
  CHECK(std::count(large.layers.begin(), large.layers.end(), MixerKind::linear) == 7);
  CHECK(large.layers[33] == MixerKind::linear);
  CHECK(large.layers[34] == MixerKind::window);
  CHECK(large.layers.size() == 36);
  CHECK(large.shape.head_dim == 112);
  CHECK(parameter_count(large) > 1'200'000'000);
  CHECK(parameter_count(large) < 1'500'000'000);
  CHECK_THROWS_WITH_AS(ModelConfig::published("7b"), "the model '7b' is not known, but 360m and 1.3b are",
                       std::runtime_error);
}

/// What Hugging Face's GPT2Config writes of the authors' 360M experiment: its own keys, those of the experiment, and those
/// of training that nobody reads at inference.
json published_360m() {
  return json::parse(
      R"({"_name_or_path": "", "architectures": null, "model_type": "gpt2", "torch_dtype": null, "transformers_version": "4.40.1",
    "activation_function": "swiglu", "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0, "initializer_range": 0.02,
    "bos_token_id": 50256, "eos_token_id": 50256, "use_cache": true, "summary_type": "cls_index", "summary_use_proj": true,
    "summary_activation": null, "summary_proj_to_labels": true, "summary_first_dropout": 0.1, "layer_norm_epsilon": 1e-05,
    "n_embd": 1024, "n_head": 16, "n_inner": 2048, "n_layer": 26, "n_positions": 0, "max_position_embeddings": 0,
    "vocab_size": 50257, "pad_vocab_size_multiple": 8, "reorder_and_upcast_attn": false, "scale_attn_weights": true,
    "scale_attn_by_inverse_layer_idx": false, "data_type": "mixed", "enc_length": 1024, "dec_length": 1024,
    "special_initializer": true, "rms_norm": true, "fused_mlp": false, "fused_bias_fc": true, "fused_dropout_add_ln": true,
    "mlp_fc1_bias": false, "mlp_fc2_bias": false, "out_proj_bias": false, "qkv_proj_bias": false, "use_flash_attn": true,
    "residual_in_fp32": true, "rotary_emb_fraction": 1,
    "mixer": {"_target_": "based.models.mixers.convolution.BaseConv", "l_max": 2048, "use_bias": true, "expand_proj": 4,
              "kernel_sizes": [3]},
    "alt_mixer": {"_target_": "based.models.mixers.prefix_linear_attention.PrefixLinearAttention", "l_max": 2048,
                  "feature_dim": 16, "feature_name": "taylor_exp", "num_heads": 16, "num_key_value_heads": 16,
                  "enc_length": 1024, "dec_length": 1024, "implementation": "fla_parallel", "use_mask": true},
    "alt_mixer_2": {"_target_": "based.models.mixers.slide_attention.SlidingAttention", "window_size": 256, "num_heads": 16,
                    "causal": true, "use_mask": true},
    "alt_mixer_layers": [1, 6, 11, 16, 21], "alt_mixer_2_layers": [2, 7, 12, 17, 22]})");
}

void check_is_360m(const ModelConfig& config) {
  const ModelConfig published = ModelConfig::published("360m");
  CHECK(config.vocabulary == published.vocabulary);
  CHECK(config.vocabulary_rows == published.vocabulary_rows);
  CHECK(config.width == published.width);
  CHECK(config.hidden == published.hidden);
  CHECK(config.channels == published.channels);
  CHECK(config.heads == published.heads);
  CHECK(config.window_kv_heads == published.window_kv_heads);
  CHECK(config.shape == published.shape);
  CHECK(config.window_scale == published.window_scale);
  CHECK(config.rotates == published.rotates);
  CHECK(config.layers == published.layers);
}

TEST_CASE("published configurations load as they are") {
  json config = published_360m();
  check_is_360m(read(config));
  CHECK(read(config).has_encoder);
  CHECK(read(config).encoder_tokens == 1024);
  // As the experiment's file has it: GPT-2's own values are not repeated.
  for (const char* const key : {"vocab_size", "n_positions", "layer_norm_epsilon", "scale_attn_weights"}) {
    config.erase(key);
  }
  config["n_positions"] = 2048;
  check_is_360m(read(config));
  // Based: plainly causal, under the names that its older checkpoints have.
  config["mixer"] = json::parse(R"({"_target_": "src.models.mixers.base_conv.BaseConvWithSiLU4", "l_max": 2048,
    "use_bias": true, "expand_proj": 4, "kernel_sizes": 3})");
  config["alt_mixer"] = json::parse(R"({"_target_": "src.models.mixers.linear_attention.LinearAttention", "l_max": 2048,
    "feature_map": {"_target_": "src.models.mixers.linear_attention.TaylorExp", "input_dim": 16}, "feature_dim": 16,
    "num_heads": 16, "parallel_implementation": "fla_parallel"})");
  config["alt_mixer_2"]["_target_"] = "src.models.mixers.slide_fa2.SlidingsMHA";
  config["alt_mixer_2"]["do_update"] = true;
  config["fixed_decay"] = false;
  config["decay_const"] = -3;
  check_is_360m(read(config));
  CHECK_FALSE(read(config).has_encoder);
  // One mixer in all layers.
  for (const char* const key : {"alt_mixer", "alt_mixer_layers", "alt_mixer_2", "alt_mixer_2_layers"}) {
    config.erase(key);
  }
  config["mixer"] = published_360m()["alt_mixer"];
  CHECK(read(config).layers == std::vector(26, MixerKind::linear));
}

TEST_CASE("keys that make another model are refused by name, and load with the value that changes nothing") {
  struct Key {
    std::string pointer;
    json harmless;
    json other;
    std::string message;
  };
  const std::vector<Key> keys{
      {"/mup_embeddings_multiplier", 1.0, 10, "is 10, but only 1 is supported"},
      {"/mup_output_multiplier", 1, 0.5, "is 0.5, but only 1 is supported"},
      {"/mup_width_scale", 1.0, 0.25, "is 0.25, but only 1 is supported"},
      {"/mup_attn_multiplier", 1.0, 2.0, "is 2.0, but only 1 is supported"},
      {"/mup_scale_qk_dot_by_d", false, true, "is true, but only false is supported"},
      {"/prenorm", true, false, "is false, but only true is supported"},
      {"/norm_head", false, true, "is true, but only false is supported"},
      {"/lm_head_bias", false, true, "is true, but only false is supported"},
      {"/mlp_type", "base", "alt", "is 'alt', but only 'base' is supported"},
      {"/word_embed_proj_dim", nullptr, 64, "is 64, but only null is supported"},
      {"/max_position_embeddings", 0, 2048, "is 2048, but only 0 is supported"},
      {"/use_alibi", false, true, "is true, but only false is supported"},
      {"/attn_dwconv", false, true, "is true, but only false is supported"},
      {"/scale_attn_by_inverse_layer_idx", false, true, "is true, but only false is supported"},
      {"/rotary_emb_interleaved", false, true, "is true, but only false is supported"},
      {"/rotary_emb_scale_base", nullptr, 512, "is 512, but only null is supported"},
      {"/n_head_kv", 4, 3, "is 3, which does not divide n_head, 4"},
      {"/num_head_kv", 4, 0, "is 0, but must be an integer from 1 to 16777216"},
      {"/mixer/kernel_size", 3, 9, "is 9, but must be an integer from 2 to 8"},
      {"/mixer/kernel_sizes", 3, 5, "is 5, but the authors' code reads 'kernel_size', which makes it 3"},
      {"/alt_mixer/eps", 1e-6, 1e-3, "is 0.001, but must be a number from 0 to 1e-06"},
      {"/alt_mixer/scale_dim", 16, 64, "is 64, but only feature_dim, 16, is supported"},
      {"/alt_mixer/feature_map",
       {{"_target_", "a.TaylorExp"}, {"input_dim", 16}},
       {{"_target_", "a.TaylorExp"}, {"input_dim", 8}},
       "is 8, but only feature_dim, 16, is supported"},
      {"/alt_mixer_2/cross_attn", false, true, "is true, but only false is supported"},
      {"/alt_mixer_2/num_heads_kv", 4, 2, "is 2, but the model's section makes it 4"},
      {"/alt_mixer_2/window_size", 8, -1, "is -1, but must be an integer from 0 to 16777216"},
  };
  for (const Key& key : keys) {
    CAPTURE(key.pointer);
    CHECK(error_of(key.pointer, key.harmless).empty());
    const std::string message = error_of(key.pointer, key.other);
    CHECK(message.ends_with("' " + key.message));
    CHECK(message.starts_with("c.json: '"));
    CHECK(message.find(key.pointer.substr(key.pointer.rfind('/') + 1)) != std::string::npos);
    if (key.pointer != "/alt_mixer_2/window_size") {
      CHECK(error_of(key.pointer, nullptr).empty());
    }
  }
  CHECK(error_of("/alt_mixer_2/window_size", nullptr) == "c.json: 'alt_mixer_2.window_size' is missing");
}

TEST_CASE("keys of Based's linear attention alone") {
  json config = tiny();
  config["alt_mixer"]["_target_"] = "a.LinearAttention";
  const auto message = [&](const std::string& pointer, const json& value) {
    json changed = config;
    changed[json::json_pointer(pointer)] = value;
    try {
      static_cast<void>(read(changed));
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(message("/fixed_decay", false).empty());
  CHECK(message("/fixed_decay", true) ==
        "c.json: 'fixed_decay' is true, but linear attention with a decay is not supported");
  CHECK(message("/alt_mixer/use_decay_proj", false).empty());
  CHECK(message("/alt_mixer/use_decay_proj", true) ==
        "c.json: 'alt_mixer.use_decay_proj' is true, but only false is supported");
  CHECK(message("/alt_mixer/head_dim", 16).empty());
  CHECK(message("/alt_mixer/head_dim", 8) == "c.json: 'alt_mixer.head_dim' is 8, but only 16 is supported");
  CHECK(message("/alt_mixer/num_heads", nullptr) ==
        "c.json: 'alt_mixer.num_heads' is missing, which means 16, but the model has 4 heads");
  for (const char* const same : {"quadratic", "linear", "fla_parallel", "fla_chunk"}) {
    CHECK(message("/alt_mixer/parallel_implementation", same).empty());
  }
  CHECK(message("/alt_mixer/parallel_implementation", "tk")
            .starts_with("c.json: 'alt_mixer.parallel_implementation' is 'tk'"));
  // Prefix linear attention has no such keys.
  CHECK(error_of("/fixed_decay", true).empty());
  CHECK(error_of("/alt_mixer/use_decay_proj", true).empty());
}

TEST_CASE("keys that are obeyed, and the authors' values where they are left out") {
  json config = tiny();
  config["mixer"]["kernel_size"] = 4;
  config["mixer"].erase("kernel_sizes");
  config["mixer"].erase("expand_proj");
  config["alt_mixer_2"].erase("window_size");
  config["num_head_kv"] = 2;
  config["n_head_kv"] = 1;
  ModelConfig read_config = read(config);
  CHECK(read_config.shape == KernelShape{16, 16, 64, 4});
  CHECK(read_config.channels == 64);
  CHECK(read_config.window_kv_heads == 2);
  config.erase("num_head_kv");
  CHECK(read(config).window_kv_heads == 1);
  config = tiny();
  config["hidden_size"] = 128;
  config["num_attention_heads"] = 8;
  config["num_hidden_layers"] = 7;
  config["alt_mixer"].erase("num_heads");
  config["alt_mixer_2"].erase("num_heads");
  read_config = read(config);
  CHECK(read_config.width == 128);
  CHECK(read_config.heads == 8);
  CHECK(read_config.layers.size() == 7);
  CHECK(error_of("/hidden_size", 0) == "c.json: 'hidden_size' is 0, but must be an integer from 1 to 16777216");
  // A mixer that no layer is given to.
  config = tiny();
  config.erase("alt_mixer_2_layers");
  CHECK_FALSE(read(config).has(MixerKind::window));
}

TEST_CASE("Python's numbers load under keys that nobody reads, and are refused under those that are read") {
  const std::string text = tiny().dump();
  const auto with = [&](const std::string& member) { return "{" + member + ", " + text.substr(1); };
  for (const std::string named : {"NaN", "Infinity", "-Infinity"}) {
    CAPTURE(named);
    const ModelConfig config =
        ModelConfig::from_json(with("\"attn_pdrop\": " + named + ", \"list\": [1, " + named + ", -2.5]"), "c.json");
    CHECK(config.width == 64);
    CHECK_THROWS_WITH_AS(static_cast<void>(ModelConfig::from_json(with("\"layer_norm_epsilon\": " + named), "c.json")),
                         ("c.json: 'layer_norm_epsilon' is " + named + ", but must be a positive number").c_str(),
                         std::runtime_error);
    CHECK_THROWS_WITH_AS(static_cast<void>(ModelConfig::from_json(with("\"hidden_size\": " + named), "c.json")),
                         ("c.json: 'hidden_size' is " + named + ", but must be an integer from 1 to 16777216").c_str(),
                         std::runtime_error);
    CHECK_THROWS_WITH_AS(static_cast<void>(ModelConfig::from_json(with("\"mup_width_scale\": " + named), "c.json")),
                         ("c.json: 'mup_width_scale' is " + named + ", but only 1 is supported").c_str(),
                         std::runtime_error);
  }
  json config = tiny();
  config["rotary_emb_fraction"] = "marker";
  std::string fraction = config.dump();
  fraction.replace(fraction.find("\"marker\""), 8, "NaN");
  CHECK_THROWS_WITH_AS(static_cast<void>(ModelConfig::from_json(fraction, "c.json")),
                       "c.json: 'rotary_emb_fraction' is NaN, but must be a number from 0 to 1", std::runtime_error);
}

TEST_CASE("errors name file, key and both values") {
  CHECK(error_of("/mixer/_target_", "a.Mamba") ==
        "c.json: 'mixer._target_' is 'a.Mamba', but known mixers are BaseConv, PrefixLinearAttention, LinearAttention and "
        "SlidingAttention");
  CHECK(error_of("/n_layer", 0) == "c.json: 'n_layer' is 0, but must be an integer from 1 to 4096");
  CHECK(error_of("/n_embd", 1LL << 40) == "c.json: 'n_embd' is 1099511627776, but must be an integer from 1 to 16777216");
  CHECK(error_of("/n_embd", "64") == "c.json: 'n_embd' is '64', but must be an integer from 1 to 16777216");
  CHECK(error_of("/n_embd", nullptr) == "c.json: 'n_embd' is missing");
  CHECK(error_of("/n_head", 5) == "c.json: 'n_head' is 5, which does not divide n_embd, 64");
  CHECK(error_of("/alt_mixer_layers", {1, 6}) ==
        "c.json: 'alt_mixer_layers' has the entry 6, but layers are numbered from 0 to 5");
  CHECK(error_of("/alt_mixer_2_layers", {1, 2}) ==
        "c.json: 'alt_mixer_2_layers' has the entry 1, a layer that was given a mixer before");
  CHECK(error_of("/alt_mixer_layers", 3) == "c.json: 'alt_mixer_layers' is number, but must be a list of layers");
  CHECK(error_of("/mixer", 3) == "c.json: 'mixer' is number, but must be an object");
  CHECK(error_of("/mixer/kernel_sizes", {3, 5}) ==
        "c.json: 'mixer.kernel_sizes' is [3,5], but must be a list of one width from 2 to 8");
  CHECK(error_of("/mixer/use_bias", 1) == "c.json: 'mixer.use_bias' is 1, but must be true or false");
  CHECK(error_of("/alt_mixer_2/num_heads_kv", 3) ==
        "c.json: 'alt_mixer_2.num_heads_kv' is 3, which does not divide num_heads, 4");
  CHECK(error_of("/alt_mixer_2/rotary_emb_dim", 8) ==
        "c.json: 'alt_mixer_2.rotary_emb_dim' is 8, but the model's section makes it 16");
  CHECK(error_of("/alt_mixer", nullptr) ==
        "c.json: 'alt_mixer_layers' is given, but there is no 'alt_mixer' for these layers");
  CHECK(error_of("/parallel_block", true) == "c.json: 'parallel_block' is true, but only false is supported");
  CHECK(error_of("/head_dim", 32) == "c.json: 'head_dim' is 32, but only 16 is supported");
  CHECK(error_of("/alt_mixer_2/causal", false) == "c.json: 'alt_mixer_2.causal' is false, but only true is supported");
  CHECK(error_of("/alt_mixer_2/softmax_scale", -1) ==
        "c.json: 'alt_mixer_2.softmax_scale' is -1, but must be a positive number");
  CHECK(error_of("/alt_mixer/feature_map", {{"_target_", "a.Hedgehog"}}) ==
        "c.json: 'alt_mixer.feature_map._target_' is not TaylorExp, the only feature map that is supported");
  CHECK(error_of("/activation_function", "gelu") ==
        "c.json: 'activation_function' is 'gelu', but only 'swiglu' is supported");
  CHECK(error_of("/activation_function", nullptr) ==
        "c.json: 'activation_function' is missing, which means gelu_new, but only 'swiglu' is supported");
  CHECK(error_of("/rms_norm", nullptr) ==
        "c.json: 'rms_norm' is missing, which means LayerNorm, but only true is supported");
  CHECK(error_of("/alt_mixer_2/_target_", "a.LinearAttention") ==
        "c.json: 'alt_mixer_2' is a second LinearAttention or of its kind, but a model may have one of each kind");
  CHECK(error_of("/alt_mixer/num_heads", 2) == "c.json: 'alt_mixer.num_heads' is 2, but the model has 4 heads");
  CHECK(error_of("/alt_mixer/scale_dim", 64) ==
        "c.json: 'alt_mixer.scale_dim' is 64, but only feature_dim, 16, is supported");
  CHECK(error_of("/alt_mixer/enc_length", nullptr) == "c.json: 'enc_length' is missing");
  CHECK(error_of("/mixer/expand_proj", 1 << 24) ==
        "c.json: 'mixer.expand_proj' is 16777216, which gives 536870912 channels, but there must be from 1 to 16777216");
  CHECK(error_of("/tie_word_embeddings", false) == "c.json: 'tie_word_embeddings' is false, but only true is supported");
  CHECK_THROWS_WITH_AS(ModelConfig::from_json("{", "c.json"),
                       doctest::Contains("c.json: the configuration is not JSON at byte 2"), std::runtime_error);
  CHECK_THROWS_WITH_AS(ModelConfig::from_json("[]", "c.json"), "c.json: '' is array, but must be an object",
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(ModelConfig::from_file("/nowhere/config.json"),
                       "/nowhere/config.json: cannot be opened (No such file or directory)", std::runtime_error);
}

}  // namespace
}  // namespace jrt_lm::test
