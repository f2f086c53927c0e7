// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <utility>

#include "jrt_lm/checkpoint.hpp"
#include "jrt_lm/stored_file.hpp"

namespace jrt_lm::test {
namespace {

std::string vector_file(const std::string& name, std::initializer_list<float> numbers) {
  const std::string data = bytes_of(numbers);
  return file_of("{\"" + name + R"(":{"dtype":"F32","shape":[)" + std::to_string(numbers.size()) +
                     R"(],"data_offsets":[0,)" + std::to_string(data.size()) + "]}}",
                 data);
}

std::string open_error(const Folder& folder) {
  return message_of([&] { const Checkpoint checkpoint(folder.path()); });
}

TEST_CASE("a checkpoint in one file") {
  const Folder folder;
  const std::string path = folder.write("model.safetensors", vector_file("w", {1, 2, 3}));
  const Checkpoint checkpoint(folder.path());
  CHECK(checkpoint.names() == std::vector<std::string>{"w"});
  CHECK(checkpoint.contains("w"));
  CHECK_FALSE(checkpoint.contains("b"));
  CHECK(checkpoint.where("w") == path);
  CHECK(checkpoint.tensor("w").as<double>() == std::vector<double>{1, 2, 3});
  const std::int64_t extent = 3;
  CHECK(&checkpoint.tensor("w", {extent}) == &checkpoint.tensor("w"));
  CHECK(&checkpoint.tensor("w", std::vector<std::int64_t>{3}) == &checkpoint.tensor("w"));
  check_message(message_of([&] { std::ignore = checkpoint.tensor("w", {3, 1}); }), {path, "'w'", "[3]", "[3, 1]"});
  check_message(message_of([&] { std::ignore = checkpoint.tensor("w", {4}); }), {path, "'w'", "[3]", "[4]"});
  check_message(message_of([&] { std::ignore = checkpoint.tensor("b", {3}); }), {path, "no tensor 'b'"});
  check_message(message_of([&] { std::ignore = checkpoint.tensor("b"); }), {path, "no tensor 'b'"});
  check_message(message_of([&] { std::ignore = checkpoint.where("b"); }), {path, "no tensor 'b'"});
}

TEST_CASE("a checkpoint in shards, moved while a tensor is held") {
  const Folder folder;
  const std::string first = folder.write("model-1.safetensors", vector_file("w", {1, 2, 3}));
  const std::string second = folder.write("model-2.safetensors", vector_file("b", {4}));
  const std::string index =
      folder.write("model.safetensors.index.json",
                   R"({"metadata":{"total_size":16},"weight_map":{"w":"model-1.safetensors","b":"model-2.safetensors"}})");
  Checkpoint opened(folder.path());
  const auto& weight = opened.tensor("w");
  const Checkpoint checkpoint(std::move(opened));
  CHECK(checkpoint.names() == std::vector<std::string>{"b", "w"});
  CHECK(checkpoint.where("w") == first);
  CHECK(checkpoint.where("b") == second);
  CHECK(&checkpoint.tensor("w") == &weight);
  CHECK(weight.as<float>() == std::vector<float>{1, 2, 3});
  CHECK(checkpoint.tensor("b", {1}).as<float>() == std::vector<float>{4});
  check_message(message_of([&] { std::ignore = checkpoint.tensor("b", {2}); }), {second, "'b'", "[1]", "[2]"});
  check_message(message_of([&] { std::ignore = checkpoint.tensor("c"); }), {index, "no tensor 'c'"});
}

TEST_CASE("one file is preferred to shards") {
  const Folder folder;
  folder.write("model.safetensors", vector_file("w", {1}));
  folder.write("model.safetensors.index.json", "not looked at");
  CHECK(Checkpoint(folder.path()).contains("w"));
}

TEST_CASE("a folder without a checkpoint") {
  const Folder folder;
  check_message(open_error(folder), {folder.path(), "model.safetensors", "model.safetensors.index.json"});
  check_message(message_of([] { const Checkpoint checkpoint("/no/such/folder"); }), {"/no/such/folder", "neither"});
  std::filesystem::create_directory(folder.path("model.safetensors"));
  check_message(open_error(folder), {folder.path("model.safetensors"), "is not a file"});
}

TEST_CASE("an index that is none") {
  const Folder folder;
  for (const char* const text :
       {"", "{", "[]", "3", "{}", R"({"weight_map":[]})", R"({"weight_map":{},"weight_map":{}})"}) {
    CAPTURE(text);
    const std::string index = folder.write("model.safetensors.index.json", text);
    check_message(open_error(folder), {index});
  }
  folder.write("model.safetensors.index.json", R"({"weight_map":{"w":"a","w":"b"}})");
  check_message(open_error(folder), {"'w' twice"});
}

TEST_CASE("a shard that is not the name of a file in the folder") {
  const Folder folder;
  folder.write("a.safetensors", vector_file("w", {1}));
  const std::pair<const char*, const char*> cases[] = {{R"("../a.safetensors")", "'../a.safetensors'"},
                                                       {R"("/etc/passwd")", "'/etc/passwd'"},
                                                       {R"("./a.safetensors")", "'./a.safetensors'"},
                                                       {R"("..")", "'..'"},
                                                       {R"(".")", "'.'"},
                                                       {R"("")", "''"},
                                                       {R"("a.safetensors\u0000")", "'a.safetensors?'"},
                                                       {R"("b\\a.safetensors")", "a.safetensors'"},
                                                       {"7", "7"},
                                                       {"null", "null"},
                                                       {R"(["a.safetensors"])", "an array"}};
  for (const auto& [shard, shown] : cases) {
    const std::string index =
        folder.write("model.safetensors.index.json", std::string(R"({"weight_map":{"w":)") + shard + "}}");
    check_message(open_error(folder), {index, "'w'", shown, "not the name of a file"});
  }
}

TEST_CASE("index and shards that disagree") {
  const Folder folder;
  const std::string a = folder.write("a.safetensors", vector_file("w", {1}));
  const std::string b = folder.write("b.safetensors", vector_file("b", {1}));
  const std::string twice = folder.write("twice.safetensors", vector_file("w", {2}));
  const auto error = [&](const std::string& weight_map) {
    folder.write("model.safetensors.index.json", R"({"weight_map":)" + weight_map + "}");
    return open_error(folder);
  };
  const std::string index = folder.path("model.safetensors.index.json");
  check_message(error(R"({"w":"missing.safetensors"})"), {folder.path("missing.safetensors"), "cannot be opened"});
  check_message(error(R"({"w":"b.safetensors","b":"b.safetensors"})"), {b, "no tensor 'w'", index});
  check_message(error(R"({"b":"b.safetensors","c":"a.safetensors","w":"a.safetensors"})"), {a, "no tensor 'c'", index});
  check_message(error(R"({"w":"a.safetensors","x":"twice.safetensors"})"), {a, twice, "'w'"});
  folder.write("more.safetensors", file_of(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                           R"("unlisted":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                           "12"));
  check_message(error(R"({"w":"a.safetensors","b":"more.safetensors"})"),
                {folder.path("more.safetensors"), "'unlisted'", index});
  folder.write("bad.safetensors", "1234");
  check_message(error(R"({"w":"bad.safetensors"})"), {folder.path("bad.safetensors"), "has 4 bytes"});
}

}  // namespace
}  // namespace jrt_lm::test
