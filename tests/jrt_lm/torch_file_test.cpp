// SPDX-License-Identifier: Apache-2.0
#include "support/torch_file.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <tuple>

#include "jrt_lm/checkpoint.hpp"
#include "jrt_lm/stored_file.hpp"
#include "jrt_lm/torch_archive.hpp"
#include "support/golden.hpp"
#include "support/safetensors.hpp"

namespace jrt_lm::test {
namespace {

using support::StoredTensor;
using support::TorchFile;

std::string torch_data(const std::string& name) {
  return jrt::test::data_file("torch/" + name).substr(0, jrt::test::data_file("torch/" + name).rfind(".safetensors"));
}

template <class T>
void check_same(const StoredTensor& tensor, const StoredTensor& expected) {
  const auto numbers = tensor.as<T>();
  const auto wanted = expected.as<T>();
  REQUIRE(numbers.size() == wanted.size());
  // Bytes, as NaN is equal to no number; an empty tensor's pointer may be null, which memcmp must not get.
  CHECK((numbers.empty() || std::memcmp(numbers.data(), wanted.data(), numbers.size() * sizeof(T)) == 0));
}

TEST_CASE("every type and every view that PyTorch writes has the numbers that PyTorch says") {
  for (const char* const name : {"views.bin", "views_protocol4.bin"}) {
    CAPTURE(name);
    const TorchFile file(torch_data(name));
    const support::SafeTensors expected(torch_data("views.safetensors"));
    CHECK(file.names() == expected.names());
    for (const std::string& tensor_name : expected.names()) {
      CAPTURE(tensor_name);
      const StoredTensor& tensor = file.tensor(tensor_name);
      const StoredTensor& wanted = expected.tensor(tensor_name);
      CHECK(tensor.dtype == wanted.dtype);
      CHECK(tensor.shape == wanted.shape);
      CHECK(support::same_numbers(tensor, wanted));
      CHECK(support::same_numbers(wanted, tensor));
      check_same<double>(tensor, wanted);
      check_same<float>(tensor, wanted);
      check_same<jrt::Half>(tensor, wanted);
      check_same<jrt::BFloat16>(tensor, wanted);
      // From the middle, a part of them.
      const std::int64_t first = tensor.size() / 3;
      const std::int64_t count = tensor.size() / 2;
      std::vector<double> part(static_cast<std::size_t>(count));
      tensor.copy_to(part.data(), first, count);
      const auto all = wanted.as<double>();
      CHECK(std::equal(part.begin(), part.end(), all.begin() + first));
    }
    CHECK(file.tensor("int64").as<std::int64_t>() == std::vector<std::int64_t>{std::int64_t{1} << 40, -3});
    CHECK(file.tensor("int16").as<std::int64_t>() == std::vector<std::int64_t>{300, -300});
    CHECK(file.tensor("bool").as<std::int64_t>() == std::vector<std::int64_t>{1, 0, 1});
    CHECK_FALSE(support::same_numbers(file.tensor("first_of_storage"), file.tensor("last_of_storage")));
    CHECK_FALSE(support::same_numbers(file.tensor("transposed"), file.tensor("permuted")));
  }
}

TEST_CASE("views that differ in one number, or in the sign of a zero, are not the same") {
  const std::string storage = bytes_of({1.0F, 2.0F, 3.0F, 4.0F, 1.0F, 2.0F, 3.0F, 5.0F, 0.0F, -0.0F});
  const auto view = [](std::int64_t offset, std::int64_t rows, std::int64_t row_stride, std::int64_t column_stride) {
    return pickle::tensor(pickle::storage("FloatStorage", "0", 10), offset, {rows, 2}, {row_stride, column_stride});
  };
  const std::string bytes = torch_file_of(pickle::dictionary({{"transposed", view(0, 2, 1, 2)},
                                                              {"same", view(0, 2, 1, 2)},
                                                              {"other", view(4, 2, 1, 2)},
                                                              {"zero", view(8, 1, 1, 0)},
                                                              {"negative_zero", view(9, 1, 1, 0)}}),
                                          storage);
  const auto file = TorchFile::from_memory("memory", as_bytes(bytes));
  CHECK(file.tensor("transposed").as<float>() == std::vector<float>{1, 3, 2, 4});
  CHECK(support::same_numbers(file.tensor("transposed"), file.tensor("same")));
  CHECK_FALSE(support::same_numbers(file.tensor("transposed"), file.tensor("other")));
  CHECK(file.tensor("zero").as<float>() == std::vector<float>{0, 0});
  CHECK_FALSE(support::same_numbers(file.tensor("zero"), file.tensor("negative_zero")));
}

TEST_CASE("attributes of a dictionary do not matter, and a training checkpoint has its tensors under state_dict") {
  const TorchFile module(torch_data("module.bin"));
  CHECK(module.names() == std::vector<std::string>{"0.bias", "0.weight", "1.bias", "1.num_batches_tracked",
                                                   "1.running_mean", "1.running_var", "1.weight"});
  CHECK(module.tensor("1.running_var").as<float>() == std::vector<float>{1, 1});
  CHECK(module.tensor("1.num_batches_tracked").as<std::int64_t>() == std::vector<std::int64_t>{0});
  const TorchFile nested(torch_data("nested.bin"));
  CHECK(nested.names() == std::vector<std::string>{"w"});
  CHECK(nested.tensor("w").as<float>() == std::vector<float>{1, 2});
}

TEST_CASE("sizes in 64 bits, a comment behind the archive, the older names of tensors") {
  const std::string old_tensor = pickle::name("torch._utils", "_rebuild_tensor") + "(" +
                                 pickle::storage("FloatStorage", "0", 3) + pickle::integer(1) + pickle::tuple({2}) +
                                 pickle::tuple({1}) + "tR";
  const std::string storage = bytes_of({1.0F, 2.0F, 3.0F});
  for (const bool zip64 : {false, true}) {
    for (const char* const comment : {"", "a comment", "PK\x05\x06 is not the end"}) {
      const std::string bytes =
          torch_file_of(pickle::dictionary({{"t", old_tensor}}), storage, {.zip64 = zip64, .comment = comment});
      CHECK(TorchFile::from_memory("memory", as_bytes(bytes)).tensor("t").as<float>() == std::vector<float>{2, 3});
    }
  }
}

TEST_CASE("the authors' small model as PyTorch writes it, in one file and in shards") {
  const support::SafeTensors expected(jrt::test::data_file("jrt_tiny/model"));
  for (const char* const folder : {"published", "sharded"}) {
    CAPTURE(folder);
    const Checkpoint checkpoint(torch_data(folder));
    for (const std::string& name : expected.names()) {
      CAPTURE(name);
      CHECK(support::same_numbers(checkpoint.tensor(name), expected.tensor(name)));
    }
  }
}

TEST_CASE("names: model. is dropped, counters of the training are passed over, the table may be the last projection's") {
  const auto vector = [](std::int64_t offset) {
    return pickle::tensor(pickle::storage("FloatStorage", "0", 4), offset, {2}, {1});
  };
  const std::string storage = bytes_of({1.0F, 2.0F, 3.0F, 4.0F});
  const Folder folder;
  const auto open = [&](const std::vector<std::pair<std::string, std::string>>& tensors) {
    folder.write("pytorch_model.bin", torch_file_of(pickle::dictionary(tensors), storage));
    return Checkpoint(folder.path());
  };
  const Checkpoint renamed = open({{"model.a", vector(0)}, {"b", vector(2)}, {"val_metrics.c", vector(0)}});
  CHECK(renamed.names() == std::vector<std::string>{"a", "b"});
  CHECK(renamed.tensor("a").as<float>() == std::vector<float>{1, 2});
  CHECK(renamed.where("a") == folder.path("pytorch_model.bin"));
  check_message(message_of([&] { std::ignore = renamed.tensor("a", {3}); }), {"'model.a'", "[2]", "[3]"});
  const Checkpoint tied = open({{"model.lm_head.weight", vector(0)}});
  CHECK(tied.names() == std::vector<std::string>{Checkpoint::embeddings});
  const Checkpoint both = open({{"model.lm_head.weight", vector(0)}, {Checkpoint::embeddings, vector(2)}});
  CHECK(both.names() == std::vector<std::string>{Checkpoint::head, Checkpoint::embeddings});
  check_message(message_of([&] { open({{"model.a", vector(0)}, {"a", vector(0)}}); }), {"'a'", "'model.a'", "the same"});
}

TEST_CASE("what is given back to the system comes again") {
  const Folder folder;
  std::vector<float> numbers(100'000);
  std::iota(numbers.begin(), numbers.end(), 0.0F);
  std::string storage(numbers.size() * sizeof(float), '\0');
  std::memcpy(storage.data(), numbers.data(), storage.size());
  folder.write("pytorch_model.bin",
               torch_file_of(pickle::dictionary(
                                 {{"t", pickle::tensor(pickle::storage("FloatStorage", "0", 100'000), 0, {100'000}, {1})}}),
                             storage));
  const Checkpoint checkpoint(folder.path());
  for (int i = 0; i < 2; ++i) {
    CHECK(checkpoint.tensor("t").as<float>() == numbers);
    checkpoint.release("t");
  }
}

}  // namespace
}  // namespace jrt_lm::test
