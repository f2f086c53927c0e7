// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <filesystem>
#include <limits>
#include <tuple>

#include "jrt_lm/stored_file.hpp"
#include "jrt_lm/torch_archive.hpp"
#include "support/golden.hpp"
#include "support/torch_file.hpp"
#include "support/zip_archive.hpp"

namespace jrt_lm::test {
namespace {

using support::TorchFile;

constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();

void refused(const std::string& file, std::initializer_list<std::string_view> parts) {
  const std::string message = message_of([&] { TorchFile::from_memory("memory", as_bytes(file)); });
  CHECK(message.starts_with("memory: "));
  check_message(message, parts);
}

const std::string four_numbers = bytes_of({1.0F, 2.0F, 3.0F, 4.0F});

/// A file with the tensor 't' of a storage that has four numbers.
void refused_view(std::int64_t offset, const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides,
                  std::initializer_list<std::string_view> parts) {
  const std::string view = pickle::tensor(pickle::storage("FloatStorage", "0", 4), offset, shape, strides);
  refused(torch_file_of(pickle::dictionary({{"t", view}}), four_numbers), parts);
}

void refused_pickle(const std::string& pickle, std::initializer_list<std::string_view> parts) {
  refused(torch_file_of(pickle, four_numbers), parts);
}

TEST_CASE("files that are no archive are called what they are") {
  const Folder folder;
  const auto error = [&](std::string_view content) {
    const std::string path = folder.write("pytorch_model.bin", content);
    return message_of([&] { const TorchFile file(path); });
  };
  std::string name = jrt::test::data_file("torch/legacy/pytorch_model.bin");
  name.resize(name.rfind(".safetensors"));
  check_message(message_of([&] { const TorchFile file(name); }), {"before version 1.6", "torch.save(torch.load("});
  check_message(error("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 814000000\n"),
                {folder.path(), "Git LFS pointer", "git lfs pull"});
  check_message(error(""), {"''", "not as a zip archive"});
  check_message(error("<!DOCTYPE html>"), {"'<!DO'", "not as a zip archive"});
  check_message(error("PK\x03\x04 and then nothing"), {"cut short"});
  check_message(error("PK"), {"cut short"});
}

TEST_CASE("no part of a valid file is a valid file") {
  const std::string view = pickle::tensor(pickle::storage("FloatStorage", "0", 4), 0, {2, 2}, {2, 1});
  for (const bool zip64 : {false, true}) {
    const std::string file = torch_file_of(pickle::dictionary({{"t", view}}), four_numbers, {.zip64 = zip64});
    CHECK(TorchFile::from_memory("memory", as_bytes(file)).tensor("t").as<float>() == std::vector<float>{1, 2, 3, 4});
    for (std::size_t size = 0; size < file.size(); ++size) {
      CAPTURE(size);
      CHECK_THROWS_AS(TorchFile::from_memory("memory", as_bytes(file.substr(0, size))), std::runtime_error);
    }
  }
}

TEST_CASE("archives that are not as torch.save writes them") {
  const std::string empty = "\x80\x02}.";
  refused(archive_of({{"a/data.pkl", empty}}, {.method = 8}), {"'a/data.pkl'", "compressed", "8"});
  refused(archive_of({{"a/data.pkl", empty}}, {.flags = 1}), {"'a/data.pkl'", "encrypted"});
  refused(archive_of({{"a/data.pkl", empty}}, {.local_prefix = "b"}), {"'a/data.pkl'", "another name"});
  refused(archive_of({{"a/data.pkl", empty}, {"a/data.pkl", empty}}), {"'a/data.pkl' twice"});
  refused(archive_of({{"a/data.pkl", empty}, {"b/data.pkl", empty}}), {"two pickles", "'a/data.pkl'", "'b/data.pkl'"});
  refused(archive_of({{"data.pkl", empty}, {"a/b/data.pkl", empty}}), {"without the entry data.pkl"});
  refused(archive_of({{"a/data.pkl", empty}, {"a/byteorder", "big"}}), {"byte order 'big'"});
}

TEST_CASE("numbers of an archive that leave the file") {
  const std::string good = archive_of({{"a/data.pkl", "\x80\x02}."}}, {.zip64 = true});
  const std::size_t directory = good.find("PK\x01\x02");
  const std::size_t end64 = good.find("PK\x06\x06");
  const std::size_t locator = good.find("PK\x06\x07");
  const std::size_t zip64_field = good.find("ZZZ") + 3 + 4;
  struct Case {
    std::size_t at;
    std::string_view part;
  };
  const Case cases[] = {{zip64_field, "bytes from byte"},     {zip64_field + 16, "should lie at byte"},
                        {end64 + 32, "but no entry 1"},       {end64 + 40, "must end before byte"},
                        {end64 + 48, "must end before byte"}, {locator + 8, "end of the zip64 archive should lie at"}};
  for (const Case& example : cases) {
    const std::size_t at = example.at;
    for (const std::uint64_t number : {std::uint64_t{1} << 40, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
      CAPTURE(at);
      CAPTURE(number);
      std::string file = good;
      std::memcpy(file.data() + at, &number, sizeof number);
      if (at == zip64_field) {  // stored as they are: both sizes
        std::memcpy(file.data() + at + 8, &number, sizeof number);
      }
      refused(file, {example.part});
    }
  }
  std::string file = good;
  file[zip64_field] = '\x7f';
  refused(file, {"has 127 bytes, but 4 are stored"});
  file = good;
  file[directory] = 'Q';
  refused(file, {"but no entry 0"});
  file = good;
  file[end64 + 16] = 1;
  refused(file, {"part 2"});
}

TEST_CASE("views that leave their storage") {
  refused_view(0, {5}, {1}, {"memory: tensor 't'", "[5]", "offset 0", "4 numbers"});
  refused_view(4, {1}, {1}, {"offset 4", "4 numbers"});
  refused_view(1, {2, 2}, {2, 1}, {"[2, 2]", "offset 1"});
  refused_view(0, {2, 2}, {1, 3}, {"strides [1, 3]"});
  refused_view(0, {2}, {largest}, {"4 numbers"});
  refused_view(largest, {2}, {1}, {"offset 9223372036854775807"});
  refused_view(0, {1 << 20, 1 << 20}, {largest / 4, 1}, {"4 numbers"});
  refused_view(0, {std::int64_t{1} << 32, std::int64_t{1} << 32}, {0, 0}, {"needs more than"});
  refused_view(0, {0, largest, largest}, {0, 0, 0}, {"needs more than"});
  refused_view(-1, {1}, {1}, {"offset is -1"});
  refused_view(0, {-1}, {1}, {"shape is -1"});
  refused_view(3, {2}, {-1}, {"strides is -1"});
  refused_view(0, {2, 2}, {1}, {"2 dimensions with 1 strides"});
  refused_view(0, std::vector<std::int64_t>(65, 1), std::vector<std::int64_t>(65, 1), {"65 numbers", "at most 64"});
  const auto storage_error = [](const std::string& storage, std::initializer_list<std::string_view> parts) {
    refused_pickle(pickle::dictionary({{"t", pickle::tensor(storage, 0, {1}, {1})}}), parts);
  };
  storage_error(pickle::storage("FloatStorage", "0", 5), {"storage of 5 numbers of F32", "data/0 has 16 bytes"});
  storage_error(pickle::storage("DoubleStorage", "0", largest), {"9223372036854775807 numbers of F64"});
  storage_error(pickle::storage("FloatStorage", "1", 4), {"'data/1', which is not there"});
  storage_error(pickle::storage("FloatStorage", "../data.pkl", 4), {"'data/../data.pkl', which is not there"});
  storage_error(pickle::storage("FloatStorage", "0", -4), {"size is -4"});
}

TEST_CASE("every name but those of tensors, storages and dictionaries is refused, and nothing is executed") {
  const Folder folder;
  const std::string command = "touch " + folder.path("executed");
  const std::string call = pickle::text(command) + "\x85R";
  const std::string view = pickle::tensor(pickle::storage("FloatStorage", "0", 4), 0, {4}, {1});
  const std::pair<std::string, std::string> cases[] = {
      {pickle::name("posix", "system") + call, "'posix.system'"},
      {pickle::name("builtins", "eval") + call, "'builtins.eval'"},
      {pickle::name("torch._utils", "_rebuild_qtensor"), "'torch._utils._rebuild_qtensor'"},
      {pickle::name("torch", "load") + call, "'torch.load'"},
      {pickle::name("collections", "OrderedDict.fromkeys"), "'collections.OrderedDict.fromkeys'"},
      {"(" + pickle::text(command) + "iposix\nsystem\n", "'posix.system'"},                     // INST
      {pickle::text("posix") + pickle::text("system") + "\x93" + call, "'posix.system'"},       // STACK_GLOBAL
      {"(" + pickle::name("posix", "system") + pickle::text(command) + "o", "'posix.system'"},  // OBJ
      {pickle::name("collections", "OrderedDict") + ")\x81", "opcode"},                         // NEWOBJ
      {"\x82\x01", "opcode"},                                                                   // EXT1
      {"Pname\n", "opcode"},                                                                    // PERSID
      {pickle::name("torch", "FloatStorage") + ")R", "by its key"},
      {pickle::name("collections", "OrderedDict") + "(" + pickle::integer(1) + "tR", "1 arguments, but must have 0"},
      {pickle::name("torch._utils", "_rebuild_tensor_v2") + ")R", "0 arguments, but must have 6 to 7"},
      {pickle::name("torch._utils", "_rebuild_parameter") + "(NNNtR", "is None, but must be a tensor"},
      {view + "}b", "sets attributes of a tensor"},
      {pickle::text("posix") + ")R", "is a text, but must be a name"},
  };
  for (const auto& example : cases) {
    CAPTURE(example.second);
    refused_pickle(pickle::dictionary({{"good", view}, {"x", example.first}}), {example.second});
  }
  std::string name = jrt::test::data_file("torch/hostile/pytorch_model.bin");
  name.resize(name.rfind(".safetensors"));
  check_message(message_of([&] { const TorchFile file(name); }), {"'posix.system'", "nothing was executed"});
  CHECK_FALSE(std::filesystem::exists(folder.path("executed")));
  CHECK_FALSE(std::filesystem::exists("executed.txt"));
}

TEST_CASE("pickles that are none, or none of tensors") {
  refused_pickle("", {"data.pkl, byte 0", "needs 1 more bytes, but 0 are left"});
  refused_pickle("\x80\x01}.", {"protocol 1"});
  refused_pickle("\x80\x02]q\x01.", {"is a list, but must be a dictionary"});
  refused_pickle("\x80\x02.", {"takes a value, but there is none"});
  refused_pickle("\x80\x02}u.", {"above a mark, but there is none"});
  refused_pickle("\x80\x02}(K\x01u.", {"1 values"});
  refused_pickle("\x80\x02}h\x05.", {"value 5 from its memo"});
  refused_pickle("\x80\x02}(0.", {"takes a value, but there is none"});
  refused_pickle("\x80\x02X\xff\xff\xff\xff", {"needs 4294967295 more bytes, but 0 are left"});
  refused_pickle("\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff", {"needs 18446744073709551615 more bytes"});
  refused_pickle(
      "\x80\x02\x8a\x09"
      "123456789.",
      {"whole number of 9 bytes"});
  refused_pickle(
      "\x80\x02"
      "cposix",
      {"a line without end"});
  refused_pickle(pickle::dictionary({{"epoch", pickle::integer(3)}}), {"'epoch' is a whole number, but must be a tensor"});
  refused_pickle(pickle::dictionary({{"a", "]"}}), {"'a' is a list"});
  const std::string view = pickle::tensor(pickle::storage("FloatStorage", "0", 4), 0, {4}, {1});
  refused_pickle(pickle::dictionary({{"t", view}, {"t", view}}), {"'t' is there twice"});
  refused_pickle("\x80\x02}K\x01" + view + "s.", {"name is a whole number, but must be a text"});
  refused_pickle("\x80\x02}Q.", {"persistent id is a dictionary"});
  refused_pickle("\x80\x02(K\x01tQ.", {"not one of a storage"});
  // A dictionary that holds itself.
  refused_pickle("\x80\x02}q\x01" + pickle::text("self") + "h\x01s.", {"'self' is a dictionary, but must be a tensor"});
  // More than any model needs, in few bytes.
  refused_pickle("\x80\x02" + std::string(2'000'000, ']'), {"more than 1000000 values"});
  refused_pickle("\x80\x02" + std::string(2'000'000, '('), {"more than 1000000 marks"});
  refused_pickle("\x80\x02N" + std::string(2'000'000, '\x94'), {"more than 1000000 values in its memo"});
  std::string recalls = "\x80\x02Nq\x01";
  for (int i = 0; i < 1'000'000; ++i) {
    recalls += "h\x01";
  }
  refused_pickle(recalls, {"more than 1000000 values on its stack"});
}

}  // namespace
}  // namespace jrt_lm::test
