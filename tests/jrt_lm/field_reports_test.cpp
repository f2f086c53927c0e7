// SPDX-License-Identifier: Apache-2.0
// Situations in which users of such models and programs were let down, each in the words of what they did: what happens
// here.
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "jrt_lm/checkpoint.hpp"
#include "jrt_lm/model_config.hpp"
#include "jrt_lm/model_problem.hpp"
#include "jrt_lm/model_tensors.hpp"
#include "jrt_lm/options.hpp"
#include "jrt_lm/reference_model.hpp"
#include "jrt_lm/stored_file.hpp"
#include "support/mapped_file.hpp"
#if defined(JRT_LM_TOKENIZER)
#include "jrt_lm/tokenizer.hpp"
#endif

namespace jrt_lm::test {
namespace {

using nlohmann::json;

constexpr const char* byte_order_mark = "\xEF\xBB\xBF";

json tiny_config() {
  const support::MappedFile file(data_folder() + "/jrt_tiny/config.json");
  return json::parse(file.text());
}

ModelConfig read(const json& config) {
  return ModelConfig::from_json(config.dump(), "c.json");
}

/// A checkpoint of zeros with all tensors that the model needs.
std::string zeros_of(const ModelConfig& config) {
  json header = json::object();
  std::int64_t end = 0;
  for (const TensorSpec& tensor : tensors_of(config)) {
    const std::int64_t begin = end;
    end += 2 * tensor.size();
    header[tensor.name] = {{"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  return file_of(header.dump(), std::string(static_cast<std::size_t>(end), '\0'));
}

Options parsed(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "jrt_lm");
  std::vector<char*> pointers;
  for (std::string& argument : arguments) {
    pointers.push_back(argument.data());
  }
  pointers.push_back(nullptr);
  return parse_options(static_cast<int>(arguments.size()), pointers.data());
}

TEST_CASE("a configuration that asks for another model than the one that is run is refused by the key's name") {
  const std::vector<std::pair<const char*, json>> asked{{"mup_embeddings_multiplier", 10.0},
                                                        {"mup_output_multiplier", 0.5},
                                                        {"mup_width_scale", 0.25},
                                                        {"mup_attn_multiplier", 8},
                                                        {"prenorm", false},
                                                        {"norm_head", true},
                                                        {"lm_head_bias", true}};
  for (const auto& [key, value] : asked) {
    json config = tiny_config();
    config[key] = value;
    check_message(message_of([&] { static_cast<void>(read(config)); }), {"c.json: '", key, value.dump(), "supported"});
  }
}

TEST_CASE("a configuration that spells out what is run anyway loads, and so does one with keys of training") {
  json config = tiny_config();
  config.update(json::parse(
      R"({"mup_embeddings_multiplier": 1.0, "mup_output_multiplier": 1, "mup_width_scale": null, "prenorm": true,
      "norm_head": false, "lm_head_bias": false, "attn_pdrop": 0.1, "embd_pdrop": 0, "resid_pdrop": 0.0,
      "reorder_and_upcast_attn": false, "bos_token_id": 50256, "special_initializer": true, "fused_mlp": false,
      "residual_in_fp32": true, "a_key_of_tomorrow": {"deep": [1, 2]}})"));
  CHECK(read(config).layers.size() == 6);
}

TEST_CASE("a checkpoint whose MLP was rounded to another multiple loads with the width that its tensors have") {
  json json_config = tiny_config();
  json_config["n_inner"] = 128;
  for (const std::int64_t hidden : {128, 192, 256}) {  // rounded to 128, to 64, to 256
    ModelConfig stored = read(json_config);
    stored.hidden = hidden;
    const Folder folder;
    folder.write("model.safetensors", zeros_of(stored));
    ModelConfig config = read(json_config);
    settle_tensors(config, Checkpoint(folder.path()));
    CHECK(config.hidden == hidden);
  }
  for (const std::int64_t hidden : {64, 127, 257, 512}) {  // no rounding of 128 gives these
    ModelConfig stored = read(json_config);
    stored.hidden = hidden;
    const Folder folder;
    folder.write("model.safetensors", zeros_of(stored));
    ModelConfig config = read(json_config);
    check_message(message_of([&] { settle_tensors(config, Checkpoint(folder.path())); }),
                  {"model.safetensors: tensor 'transformer.layers.0.mlp.fc1.weight'",
                   "[" + std::to_string(2 * hidden) + ", 64]", "[512, 64]"});
  }
}

TEST_CASE("a weights file whose metadata is null loads") {
  const Folder folder;
  folder.write("model.safetensors",
               file_of(R"({"__metadata__":null,"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "1"));
  CHECK(Checkpoint(folder.path()).names() == std::vector<std::string>{"t"});
}

TEST_CASE("a configuration that Python wrote with numbers that JSON lacks loads, unless such a number counts") {
  const std::string text = tiny_config().dump();
  const auto with = [&](const std::string& member) {
    return ModelConfig::from_json("{" + member + "," + text.substr(1), "c.json");
  };
  CHECK(with(R"("lr": NaN, "max_norm": Infinity, "min": -Infinity, "note": "NaN, Infinity")").width == 64);
  check_message(message_of([&] { static_cast<void>(with(R"("rotary_emb_base": Infinity)")); }),
                {"c.json: 'rotary_emb_base' is Infinity"});
  check_message(message_of([&] { static_cast<void>(with(R"("mup_width_scale": NaN)")); }),
                {"c.json: 'mup_width_scale' is NaN"});
}

TEST_CASE("an index of shards that Python wrote with a number that JSON lacks is read") {
  const Folder folder;
  folder.write("a.safetensors", file_of(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "1"));
  folder.write("model.safetensors.index.json", R"({"metadata":{"total_size":NaN},"weight_map":{"t":"a.safetensors"}})");
  CHECK(Checkpoint(folder.path()).names() == std::vector<std::string>{"t"});
}

TEST_CASE("files that an editor began with a byte order mark are read") {
  const Folder folder;
  const std::string prompts = folder.write("prompts.txt", std::string(byte_order_mark) + "1 2 3\n4 5\n");
  CHECK(parsed({"--tokens-file", prompts}).prompts == std::vector<Tokens>{{1, 2, 3}, {4, 5}});
  const std::string config = folder.write("config.json", byte_order_mark + tiny_config().dump());
  CHECK(ModelConfig::from_file(config).width == 64);
  // Of an encoding that is not read it is named.
  const std::string wide = folder.write("wide.txt", std::string_view("\xFF\xFE\x31\0", 4));
  check_message(message_of([&] {
                  static_cast<void>(parsed({"--tokens-file", wide}));
                }),
                {wide + ": begins with the byte order mark of UTF-16"});
}

TEST_CASE("a temperature of 0 means the likeliest token") {
  const Options options = parsed({"--temperature", "0"});
  CHECK(options.generation.sampling.greedy());
  const std::vector<double> logits{0.5, 2, 2, -1};
  Sampler sampler(options.generation.sampling);
  for (int draw = 0; draw < 20; ++draw) {
    CHECK(sampler.draw(logits) == 1);
  }
  CHECK_FALSE(parsed({"--temperature", "0.001"}).generation.sampling.greedy());
}

TEST_CASE("an empty query, separator or file name is said to be empty, not taken for none") {
  for (const char* const option : {"--query", "--separator", "--tokens"}) {
    CHECK_THROWS_WITH_AS(parsed({option, ""}), doctest::Contains(option), std::invalid_argument);
  }
  for (const char* const option : {"--vocab", "--merges", "--tokens-file", "--random-weights"}) {
    CHECK_THROWS_WITH_AS(parsed({option, ""}), (std::string(option) + " is empty").c_str(), std::invalid_argument);
  }
  CHECK(parsed({"--query-text", ""}).query_text.has_value());  // which the tokenizer makes 0 tokens of: refused
  CHECK_FALSE(parsed({}).query_text.has_value());
}

TEST_CASE(
    "a prompt of three tokens for an encoder region of a thousand million is refused at once, unless it costs nothing") {
  const ModelConfig config = small_config();
  const TestWeights weights{config};
  const auto model = made(config, weights, precisions.front().type, 1);
  const std::vector<Request> three{{{1, 2, 3}}};
  GenerationOptions options;
  options.new_tokens = 2;
  const Tokens expected = generate(*model, three, options, {}).tokens.front();
  options.encoder_tokens = 1'000'000'000;
  for (const auto strategy : {ShortPromptStrategy::read_twice, ShortPromptStrategy::left_pad}) {
    options.short_prompt = strategy;
    CHECK_THROWS_WITH_AS(generate(*model, three, options, {}),
                         doctest::Contains("a prompt of 3 tokens is to be padded to 1000000000"), std::invalid_argument);
  }
  options.short_prompt = ShortPromptStrategy::shorten;
  CHECK(generate(*model, three, options, {}).tokens.front().size() == expected.size());
}

TEST_CASE("a measurement of more random tokens than memory has is refused at once") {
  CHECK_THROWS_WITH_AS(parsed({"--measure", "1073741824", "--batch", "1048576"}),
                       doctest::Contains("--batch 1048576 and --measure 1073741824 are 1125899906842624 tokens"),
                       std::invalid_argument);
  CHECK(parsed({"--batch", "16", "--measure", "131072"}).measure.size() == 1);
}

TEST_CASE("the clone of a repository whose large files were not fetched is told from a broken file") {
  const std::string pointer =
      "version https://git-lfs.github.com/spec/v1\noid sha256:" + std::string(64, '0') + "\nsize 9\n";
  for (const char* const name : {"model.safetensors", "pytorch_model.bin"}) {
    const Folder clone;
    const std::string path = clone.write(name, pointer);
    check_message(message_of([&] { const Checkpoint checkpoint(clone.path()); }), {path + ": is a Git LFS pointer"});
  }
}

TEST_CASE("a folder as the authors publish it, with PyTorch's file, is a model, and so is one with shards of it") {
  for (const char* const form : {"published", "sharded"}) {
    ModelConfig config = read(tiny_config());
    const Checkpoint checkpoint(data_folder() + "/torch/" + form);
    settle_tensors(config, checkpoint);
    CHECK(made(config, CheckpointWeights(checkpoint), precisions.front().type)->config().layers.size() == 6);
  }
  ModelConfig config = read(tiny_config());
  for (const char* const form : {"legacy", "hostile"}) {
    check_message(message_of([&] { const Checkpoint checkpoint(data_folder() + "/torch/" + form); }),
                  {"/torch/" + std::string(form) + "/pytorch_model.bin: "});
  }
}

TEST_CASE("a NaN in a weight that no token of the prompt needs gives no tokens at all") {
  // Ways and places: not_finite_test.cpp.
  const ModelConfig config = small_config();
  const SpoiltWeights weights(config, "transformer.embeddings.word_embeddings.weight", 20 * config.width, 1, std::nan(""));
  const auto model = made(config, weights, precisions.front().type);
  const std::vector<Request> requests{{{1, 2, 3}}};
  CHECK_THROWS_WITH_AS(generate(*model, requests, {}, {}), doctest::Contains("sequence 0, step 0"), std::runtime_error);
}

TEST_CASE("the mask token, a row with which the vocabulary is padded, can be read and never comes out") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const ReferenceModel reference(config, weights);
  const auto model = made(config, weights, precisions.front().type, 1);
  const auto mask = static_cast<std::int32_t>(config.vocabulary_rows - 1);
  const Tokens prompt{1, mask, 3, mask, 5};
  CHECK(relative_error(prefill_last(*model, prompt, 0, 5), reference.last_logits(prompt, 5, 0)) <=
        precisions.front().bound);
  GenerationOptions options;
  options.new_tokens = 40;
  options.sampling = {.top_k = 0, .top_p = 1, .temperature = 5, .seed = 1};
  const std::vector<Request> requests{{prompt}};
  const Generation result = generate(*model, requests, options, {});
  for (const std::int32_t token : result.tokens.front()) {
    CHECK(token < config.vocabulary);
  }
}

TEST_CASE("a saved conversation that claims more tokens than can be counted does not load") {
  // What else saved states may claim: state_exchange_test.cpp, window_attention_test.cpp and fuzz/saved_states_fuzz.cpp.
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const auto model = made(config, weights, precisions.front().type, 1);
  static_cast<void>(prefill_last(*model, Tokens{1, 2, 3}, 0, 0));
  const std::vector<std::byte> saved = model->save(0);
  for (std::size_t at = 0; at + 8 <= saved.size(); at += 4) {
    std::int64_t number = 0;
    std::memcpy(&number, saved.data() + at, sizeof number);
    if (number == 3) {  // every place where the number of tokens may be
      for (const std::int64_t claim : {INT64_MAX, INT64_MAX - 1, INT64_MIN, std::int64_t{-1}, std::int64_t{1} << 31}) {
        std::vector<std::byte> claims = saved;
        std::memcpy(claims.data() + at, &claim, sizeof claim);
        CHECK_THROWS_AS(model->load(claims, 0), std::exception);
      }
    }
  }
}

#if defined(JRT_LM_TOKENIZER)
std::string bpe_file(const std::string& name) {
  return data_folder() + "/bpe/" + name;
}

TEST_CASE("a vocabulary with a mask token far behind the others loads, and knows its text") {
  const support::MappedFile vocab(bpe_file("vocab.json"));
  const support::MappedFile merges(bpe_file("merges.txt"));
  json with_mask = json::parse(vocab.text());
  with_mask["<mask>"] = 50263;
  const Tokenizer tokenizer = Tokenizer::from_text("v", with_mask.dump(), "m", merges.text());
  CHECK(tokenizer.decode(Tokens{0, 50263, 1}) == "!<mask>\"");
  CHECK(tokenizer.encode("the license") == Tokenizer(bpe_file("vocab.json"), bpe_file("merges.txt")).encode("the license"));
}

TEST_CASE("a token that the tokenizer lacks, of a model with a larger vocabulary, is shown by its number") {
  const Tokenizer tokenizer(bpe_file("vocab.json"), bpe_file("merges.txt"));
  CHECK(tokenizer.decode(Tokens{0, 50260, 1}) == "!<|50260|>\"");
}

TEST_CASE("a list of merges that begins with a byte order mark merges") {
  const support::MappedFile vocab(bpe_file("vocab.json"));
  const support::MappedFile merges(bpe_file("merges.txt"));
  const Tokenizer tokenizer = Tokenizer::from_text("v", byte_order_mark + std::string(vocab.text()), "m",
                                                   byte_order_mark + std::string(merges.text()));
  CHECK(tokenizer.encode("the license") == Tokenizer(bpe_file("vocab.json"), bpe_file("merges.txt")).encode("the license"));
}
#endif

}  // namespace
}  // namespace jrt_lm::test
