// SPDX-License-Identifier: Apache-2.0
// Against what Hugging Face's `tokenizers` encodes texts as (tests/data/bpe), and against merges done one at a time.
#include "jrt_lm/tokenizer.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace jrt_lm {
namespace {

using nlohmann::json;
using Tokens = std::vector<std::int32_t>;

std::string data_file(const std::string& name) {
  const char* const directory = std::getenv("JRT_TEST_DATA");
  return std::string(directory != nullptr ? directory : JRT_TEST_DATA_DEFAULT) + "/bpe/" + name;
}

json read_json(const std::string& name) {
  return json::parse(std::ifstream(data_file(name)));
}

std::string read_text(const std::string& name) {
  std::ifstream file(data_file(name));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

Tokenizer golden() {
  return {data_file("vocab.json"), data_file("merges.txt")};
}

/// A tokenizer's files, in a folder that goes with it; tests spoil one thing.
struct Files {
  Files() { std::filesystem::create_directory(folder); }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;
  ~Files() { std::filesystem::remove_all(folder); }

  [[nodiscard]] Tokenizer load() const {
    std::ofstream(vocab_path, std::ios::binary) << vocab;
    std::ofstream(merges_path, std::ios::binary) << merges;
    return {vocab_path, merges_path};
  }
  /// What is wrong, after the name of the file that it is wrong with.
  [[nodiscard]] std::string error() const {
    try {
      static_cast<void>(load());
    } catch (const std::runtime_error& caught) {
      std::string message = caught.what();
      CHECK(message.find('\n') == std::string::npos);
      REQUIRE(message.starts_with(folder.string() + "/"));
      return message.substr(folder.string().size() + 1);
    }
    return "no error";
  }

  std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("jrt_lm_tokenizer_" + std::to_string(std::random_device{}()));
  std::string vocab_path = (folder / "vocab.json").string();
  std::string merges_path = (folder / "merges.txt").string();
  std::string vocab = read_text("vocab.json");
  std::string merges = read_text("merges.txt");
};

/// The vocabulary with one entry more or another number.
std::string with(const std::string& token, const json& number) {
  json vocab = read_json("vocab.json");
  vocab[token] = number;
  return vocab.dump();
}

TEST_CASE("texts have the tokens that Hugging Face's library gives them") {
  const Tokenizer tokenizer = golden();
  CHECK(tokenizer.size() == 600);
  const json encodings = read_json("encodings.json");
  CHECK(encodings.size() > 60);
  for (const json& encoding : encodings) {
    const auto text = encoding.at("text").get<std::string>();
    CAPTURE(text);
    CHECK(tokenizer.encode(text) == encoding.at("ids").get<Tokens>());
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

TEST_CASE("bytes that are not UTF-8 are tokens of their own, and come back") {
  const Tokenizer tokenizer = golden();
  for (int byte = 0; byte < 256; ++byte) {
    const std::string text(1, static_cast<char>(byte));
    CAPTURE(byte);
    CHECK(tokenizer.encode(text).size() == 1);
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
  // A stray byte, one that never occurs, a surrogate, an overlong one, one too large, and one that is cut off.
  for (const std::string invalid : {"\x80", "\xFF", "\xED\xA0\x80", "\xC0\xAF", "\xF4\x90\x80\x80", "\xF0\x9F\x98"}) {
    Tokens expected = tokenizer.encode("the license  ");
    for (const char byte : invalid) {
      expected.push_back(tokenizer.encode(std::string(1, byte)).at(0));
    }
    const Tokens after = tokenizer.encode("and a work");
    expected.insert(expected.end(), after.begin(), after.end());
    CHECK(tokenizer.encode("the license  " + invalid + "and a work") == expected);
    CHECK(tokenizer.decode(expected) == "the license  " + invalid + "and a work");
  }
  std::mt19937 generator(1);
  for (int trial = 0; trial < 300; ++trial) {
    std::string text(generator() % 60, ' ');
    std::generate(text.begin(), text.end(), [&] { return static_cast<char>(generator() % 2 == 0 ? generator() : 'a'); });
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

TEST_CASE("merges are those that merging one after another does") {
  const Tokenizer tokenizer = golden();
  const auto vocab = read_json("vocab.json").get<std::map<std::string, std::int32_t>>();
  std::vector<std::pair<std::string, std::string>> merges;
  std::ifstream file(data_file("merges.txt"));
  std::string left;
  std::string right;
  for (file >> left >> right; file >> left >> right;) {
    merges.emplace_back(left, right);
  }
  REQUIRE(merges.size() == 344);
  std::mt19937 generator(1);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<std::string> parts;
    std::string word;
    for (std::uint32_t i = 0; i < 2 + generator() % 40; ++i) {
      parts.emplace_back(1, "theorinsa"[generator() % 9]);
      word += parts.back();
    }
    for (const auto& [first, second] : merges) {
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
        if (parts[i] == first && parts[i + 1] == second) {
          parts[i] += second;
          parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        }
      }
    }
    Tokens expected;
    for (const std::string& part : parts) {
      expected.push_back(vocab.at(part));
    }
    CAPTURE(word);
    CHECK(tokenizer.encode(word) == expected);
  }
}

TEST_CASE("a million bytes take no longer than their number") {
  const Tokenizer tokenizer = golden();
  const auto repeated = [](const std::string& text) {
    std::string all;
    while (all.size() < 1'000'000) {
      all += text;
    }
    return all;
  };
  for (const std::string text : {"the", "a", "x", "a ", " ", "é", "\n", "-=", "'s", "\x80", "a\xFF", "日本"}) {
    const std::string long_text = repeated(text);
    const auto start = std::chrono::steady_clock::now();
    const Tokens tokens = tokenizer.encode(long_text);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    CAPTURE(text);
    CHECK(time.count() < 60);  // quadratic time is hours
    CHECK(tokenizer.decode(tokens) == long_text);
  }
}

TEST_CASE("decoding a number that no token has") {
  const Tokenizer tokenizer = golden();
  CHECK(tokenizer.decode({}).empty());
  CHECK(tokenizer.decode(Tokens{0, 600, 1}) == "!<|600|>\"");
  CHECK(tokenizer.decode(Tokens{INT32_MAX}) == "<|2147483647|>");
  CHECK_THROWS_WITH_AS(static_cast<void>(tokenizer.decode(Tokens{-1})),
                       "token -1 is not in the vocabulary, which has 600 tokens", std::runtime_error);
}

TEST_CASE("numbers may leave gaps, up to a bound") {
  Files files;
  files.vocab = with("<|mask|>", 606);
  Tokenizer tokenizer = files.load();
  CHECK(tokenizer.size() == 607);
  CHECK(tokenizer.decode(Tokens{606, 605, 599}) == "<|mask|><|605|>" + golden().decode(Tokens{599}));
  CHECK(tokenizer.encode("the license, and a work") == golden().encode("the license, and a work"));
  files.vocab = with("a", (1 << 24) - 1);
  tokenizer = files.load();
  CHECK(tokenizer.size() == 1 << 24);
  const Tokens tokens = tokenizer.encode("a");
  CHECK(tokens == Tokens{(1 << 24) - 1});
  CHECK(tokenizer.decode(tokens) == "a");
}

TEST_CASE("byte order marks are passed over, or named") {
  Files files;
  files.vocab = "\xEF\xBB\xBF" + files.vocab;
  files.merges = "\xEF\xBB\xBF" + files.merges;
  CHECK(files.load().encode("the license, and a work") == golden().encode("the license, and a work"));
  files.merges = "\xEF\xBB\xBFt h\n";  // no line of the version
  CHECK(files.load().encode("the").size() == 2);
  files.merges = std::string("\xFF\xFEt\0 \0h\0\n\0", 10);
  CHECK(files.error() == "merges.txt: begins with the byte order mark of UTF-16 or UTF-32, but must be UTF-8");
  files.vocab = std::string("\xFE\xFF\0{\0}", 6);
  CHECK(files.error() ==
        "vocab.json: the vocabulary begins with the byte order mark of UTF-16 or UTF-32, but must be UTF-8");
}

TEST_CASE("files as texts") {
  const std::string vocab = read_text("vocab.json");
  const std::string merges = read_text("merges.txt");
  CHECK(Tokenizer::from_text("v", vocab, "m", merges).encode("the license") == golden().encode("the license"));
  CHECK_THROWS_WITH_AS(Tokenizer::from_text("v", vocab, "m", "x"),
                       "m: line 1 is \"x\", but must be two tokens with a space between them", std::runtime_error);
  CHECK_THROWS_WITH_AS(Tokenizer::from_text("v", "[]", "m", merges), "v: is an array, but must be an object",
                       std::runtime_error);
}

TEST_CASE("a token outside of the alphabet is decoded as what it is called") {
  Files files;
  files.vocab = with("<a special token>", 600);
  const Tokenizer tokenizer = files.load();
  CHECK(tokenizer.size() == 601);
  CHECK(tokenizer.decode(Tokens{600}) == "<a special token>");
  CHECK(tokenizer.decode(tokenizer.encode("<a special token>")) == "<a special token>");
  CHECK(tokenizer.encode("<a special token>").size() > 1);
}

TEST_CASE("files with other line ends, and with no merges") {
  Files files;
  std::string other;
  for (const char letter : files.merges.substr(files.merges.find('\n') + 1)) {
    other += letter == '\n' ? std::string("\r\n") : std::string(1, letter);
  }
  files.merges = other.substr(0, other.size() - 2);
  CHECK(files.load().encode("the license, and a work") == golden().encode("the license, and a work"));
  for (const char* const nothing : {"", "#version: 0.2", "#version: 0.2\n"}) {
    files.merges = nothing;
    CHECK(files.load().encode("the license").size() == 11);
  }
}

TEST_CASE("bad vocabularies") {
  Files files;
  const auto error = [&](const std::string& vocab) {
    files.vocab = vocab;
    return files.error();
  };
  CHECK(error("").starts_with("vocab.json: the vocabulary is not JSON at byte 1: "));
  CHECK(error("{\"a\": 0,").starts_with("vocab.json: the vocabulary is not JSON at byte 9: "));
  CHECK(error(R"({"a": 0, "a": 1})") == "vocab.json: the vocabulary has the key 'a' twice in one object");
  CHECK(error("[1, 2]") == "vocab.json: is an array, but must be an object");
  CHECK(error("{}") == "vocab.json: has no token \"!\", which stands for byte 33");
  CHECK(error(with("a", "7")) ==
        "vocab.json: token \"a\" has the number \"7\", but must have an integer from 0 to 16777215");
  CHECK(error(with("a", 7.5)) == "vocab.json: token \"a\" has the number 7.5, but must have an integer from 0 to 16777215");
  CHECK(error(with("a", true)) ==
        "vocab.json: token \"a\" has the number true, but must have an integer from 0 to 16777215");
  CHECK(error(with("a", -1)) == "vocab.json: token \"a\" has the number -1, but must have an integer from 0 to 16777215");
  CHECK(error(with("a", 1 << 24)) ==
        "vocab.json: token \"a\" has the number 16777216, but must have an integer from 0 to 16777215");
  CHECK(error(with("\n", 18446744073709551615U)) ==
        "vocab.json: token \"\\n\" has the number 18446744073709551615, but must have an integer from 0 to 16777215");
  CHECK(error(with("a", 0)) == "vocab.json: tokens \"!\" and \"a\" both have the number 0");
  json vocab = read_json("vocab.json");
  vocab["word"] = vocab["Ċ"];
  vocab.erase("Ċ");
  CHECK(error(vocab.dump()) == "vocab.json: has no token \"Ċ\", which stands for byte 10");
}

TEST_CASE("bad merges") {
  Files files;
  const auto error = [&](const std::string& merges) {
    files.merges = merges;
    return files.error();
  };
  const std::string malformed = ", but must be two tokens with a space between them";
  CHECK(error("#version: 0.2\nt h\nth\n") == "merges.txt: line 3 is \"th\"" + malformed);
  CHECK(error("t h\n\n") == "merges.txt: line 2 is \"\"" + malformed);
  CHECK(error("t h e\n") == "merges.txt: line 1 is \"t h e\"" + malformed);
  CHECK(error("t  h\n") == "merges.txt: line 1 is \"t  h\"" + malformed);
  CHECK(error(" th\n") == "merges.txt: line 1 is \" th\"" + malformed);
  CHECK(error("th \n") == "merges.txt: line 1 is \"th \"" + malformed);
  CHECK(error(std::string("\0\xFF", 2)) == "merges.txt: line 1 is \"\\u0000\uFFFD\"" + malformed);
  CHECK(error(std::string(100'000, 'x')).size() < 250);
  const std::string missing = " is not in the vocabulary, " + files.vocab_path;
  CHECK(error("t h\nx y\n") == "merges.txt: line 2 is \"x y\", but \"xy\"" + missing);
  CHECK(error("t hx\n") == "merges.txt: line 1 is \"t hx\", but \"hx\"" + missing);
  CHECK(error("tx h\n") == "merges.txt: line 1 is \"tx h\", but \"tx\"" + missing);
  CHECK(error("#version: 0.2\nt h\na n\nt h\n") == "merges.txt: line 4 is \"t h\", as line 2 was");
  CHECK(error("t h\na n\na n\n") == "merges.txt: line 3 is \"a n\", as line 2 was");
}

TEST_CASE("files that cannot be read") {
  const Files files;
  const std::string none = (files.folder / "none").string();
  const std::string folder = files.folder.string();
  CHECK_THROWS_WITH_AS(Tokenizer(none, none), (none + ": cannot be opened (No such file or directory)").c_str(),
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(Tokenizer(folder, none), (folder + ": is not a file").c_str(), std::runtime_error);
  CHECK_THROWS_WITH_AS(Tokenizer(data_file("vocab.json"), none),
                       (none + ": cannot be opened (No such file or directory)").c_str(), std::runtime_error);
  CHECK_THROWS_WITH_AS(Tokenizer(data_file("vocab.json"), folder), (folder + ": is not a file").c_str(),
                       std::runtime_error);
}

}  // namespace
}  // namespace jrt_lm
