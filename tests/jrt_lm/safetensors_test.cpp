// SPDX-License-Identifier: Apache-2.0
#include "support/safetensors.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "jrt_lm/stored_file.hpp"
#include "support/golden.hpp"

namespace jrt_lm::test {
namespace {

using support::SafeTensors;
using support::StoredTensor;

/// One tensor, its data behind headers of two lengths, so that at least one of them is misaligned.
template <class Check>
void with_tensor(const std::string& dtype, std::int64_t count, const std::string& data, const Check& check) {
  for (const char* const padding : {"", " "}) {
    const std::string file = file_of(
        header_of("\"" + dtype + "\"", "[" + std::to_string(count) + "]", "[0," + std::to_string(data.size()) + "]") +
            padding,
        data);
    const auto tensors = SafeTensors::from_memory("memory", as_bytes(file));
    const StoredTensor& tensor = tensors.tensor("t");
    CHECK(tensor.dtype == dtype);
    CHECK(tensor.size() == count);
    check(tensor);
  }
}

template <class T>
void check_floating(const std::string& dtype) {
  std::vector<T> numbers;
  for (int i = -50; i < 50; ++i) {
    numbers.push_back(static_cast<T>(static_cast<float>(i) * 0.37F));
  }
  std::string data(numbers.size() * sizeof(T), '\0');
  std::memcpy(data.data(), numbers.data(), data.size());
  with_tensor(dtype, 100, data, [&](const StoredTensor& tensor) {
    const auto doubles = tensor.as<double>();
    const auto floats = tensor.as<float>();
    const auto halves = tensor.as<jrt::Half>();
    const auto brains = tensor.as<jrt::BFloat16>();
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      REQUIRE(doubles[i] == jrt::convert<double>(numbers[i]));
      REQUIRE(floats[i] == jrt::convert<float>(numbers[i]));
      REQUIRE(halves[i] == jrt::convert<jrt::Half>(numbers[i]));
      REQUIRE(brains[i] == jrt::convert<jrt::BFloat16>(numbers[i]));
    }
    check_message(message_of([&] { std::ignore = tensor.as<std::int64_t>(); }),
                  {"memory: tensor 't'", dtype, "whole numbers"});
  });
}

template <class T>
void check_integers(const std::string& dtype, std::initializer_list<T> numbers) {
  with_tensor(dtype, static_cast<std::int64_t>(numbers.size()), bytes_of(numbers), [&](const StoredTensor& tensor) {
    CHECK(tensor.as<std::int64_t>() == std::vector<std::int64_t>(numbers.begin(), numbers.end()));
    const auto doubles = tensor.as<double>();
    const auto floats = tensor.as<float>();
    const auto halves = tensor.as<jrt::Half>();
    const auto brains = tensor.as<jrt::BFloat16>();
    std::size_t i = 0;
    for (const T number : numbers) {
      CHECK(doubles[i] == static_cast<double>(number));
      CHECK(floats[i] == static_cast<float>(number));
      CHECK(halves[i] == jrt::Half(static_cast<float>(number)));
      CHECK(brains[i] == jrt::BFloat16(static_cast<float>(number)));
      ++i;
    }
  });
}

TEST_CASE("every type of numbers converts to every type") {
  check_floating<double>("F64");
  check_floating<float>("F32");
  check_floating<jrt::Half>("F16");
  check_floating<jrt::BFloat16>("BF16");
  check_integers<std::int64_t>("I64", {0, -1, 7, (std::int64_t{1} << 53) + 1, std::numeric_limits<std::int64_t>::min()});
  check_integers<std::int32_t>("I32", {0, -1, 7, std::numeric_limits<std::int32_t>::max()});
  check_integers<std::uint8_t>("U8", {0, 1, 128, 255});
}

TEST_CASE("infinities and NaNs stay what they are") {
  const float infinity = std::numeric_limits<float>::infinity();
  with_tensor("F32", 3, bytes_of({infinity, -infinity, std::nanf("")}), [](const StoredTensor& tensor) {
    const auto halves = tensor.as<jrt::Half>();
    CHECK(static_cast<float>(halves[0]) == std::numeric_limits<float>::infinity());
    CHECK(static_cast<float>(halves[1]) == -std::numeric_limits<float>::infinity());
    CHECK(std::isnan(static_cast<float>(halves[2])));
  });
}

TEST_CASE("a part of a tensor") {
  with_tensor("I32", 5, bytes_of<std::int32_t>({10, 11, 12, 13, 14}), [](const StoredTensor& tensor) {
    std::vector<float> part(3, -1.0F);
    tensor.copy_to(part.data(), 2, 2);
    CHECK(part == std::vector<float>{12, 13, -1});
    tensor.copy_to(part.data(), 5, 0);
    tensor.copy_to(part.data(), 4, 1);
    CHECK(part == std::vector<float>{14, 13, -1});
    for (const auto& [first, count] : {std::pair{4, 2}, {6, 0}, {-1, 2}, {0, -1}}) {
      check_message(message_of([&, first = first, count = count] { tensor.copy_to(part.data(), first, count); }),
                    {"'t' has 5 numbers", std::to_string(count) + " from number " + std::to_string(first)});
    }
  });
}

TEST_CASE("scalars, empty tensors and empty files") {
  const std::string file = file_of(R"({"scalar":{"dtype":"U8","shape":[],"data_offsets":[0,1]},)"
                                   R"("none":{"dtype":"F32","shape":[3,0],"data_offsets":[1,1]}}  )",
                                   "\x05");
  const auto tensors = SafeTensors::from_memory("memory", as_bytes(file));
  CHECK(tensors.names() == std::vector<std::string>{"none", "scalar"});
  CHECK(tensors.tensor("scalar").as<std::int64_t>() == std::vector<std::int64_t>{5});
  CHECK(tensors.tensor("scalar").size() == 1);
  CHECK(tensors.tensor("none").as<double>().empty());
  CHECK(tensors.tensor("none").shape == std::vector<std::int64_t>{3, 0});
  const std::string nothing = file_of("{}");
  CHECK(SafeTensors::from_memory("memory", as_bytes(nothing)).names().empty());
}

TEST_CASE("metadata that is null is none") {
  const std::string file = file_of(R"({"__metadata__":null,"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "1");
  const auto tensors = SafeTensors::from_memory("memory", as_bytes(file));
  CHECK(tensors.names() == std::vector<std::string>{"t"});
  check_message(message_of([&] { std::ignore = tensors.text("format"); }), {"memory", "no metadata 'format'"});
}

TEST_CASE("tensors and metadata by name") {
  const std::string file = file_of(R"({"__metadata__":{"count":"-12","word":"12 a"}})");
  const auto tensors = SafeTensors::from_memory("memory", as_bytes(file));
  CHECK(tensors.path() == "memory");
  CHECK(tensors.number("count") == -12);
  CHECK(tensors.text("word") == "12 a");
  CHECK_FALSE(tensors.contains("__metadata__"));
  check_message(message_of([&] { std::ignore = tensors.number("word"); }), {"memory", "'word'", "'12 a'"});
  check_message(message_of([&] { std::ignore = tensors.number("words"); }), {"memory", "no metadata 'words'"});
  check_message(message_of([&] { std::ignore = tensors.text("words"); }), {"memory", "no metadata 'words'"});
  check_message(message_of([&] { std::ignore = tensors.tensor("t\n"); }), {"memory", "no tensor 't?'"});
}

TEST_CASE("a file that is moved keeps its tensors where they are") {
  const Folder folder;
  const std::string path = folder.write("f", file_of(header_of(R"("F32")", "[2]", "[0,8]"), bytes_of({1.5F, -2.0F})));
  SafeTensors opened(path);
  const StoredTensor& tensor = opened.tensor("t");
  SafeTensors moved(std::move(opened));
  const std::string nothing = file_of("{}");
  SafeTensors assigned = SafeTensors::from_memory("memory", as_bytes(nothing));
  assigned = std::move(moved);
  CHECK(&assigned.tensor("t") == &tensor);
  CHECK(tensor.as<float>() == std::vector<float>{1.5F, -2.0F});
  CHECK(tensor.origin == path + ": tensor 't'");
}

TEST_CASE("all golden files") {
  const auto folder = std::filesystem::path(jrt::test::data_file("any")).parent_path();
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") {
      const SafeTensors file(entry.path().string());
      CHECK_FALSE(file.names().empty());
      for (const std::string& name : file.names()) {
        const auto numbers = file.tensor(name).as<double>();
        CHECK(std::isfinite(std::accumulate(numbers.begin(), numbers.end(), 0.0)));
      }
      ++files;
    }
  }
  CHECK(files > 0);
}

}  // namespace
}  // namespace jrt_lm::test
