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
