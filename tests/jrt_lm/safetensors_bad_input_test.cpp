// SPDX-License-Identifier: Apache-2.0
// What safetensors files must not be, and what is said then.
#include <doctest/doctest.h>

#include "jrt_lm/stored_file.hpp"
#include "support/safetensors.hpp"

namespace jrt_lm::test {
namespace {

using support::SafeTensors;

std::string error_of(const std::string& file) {
  return message_of([&] { SafeTensors::from_memory("memory", as_bytes(file)); });
}

struct BadFile {
  std::string header;
  std::string data;
  std::initializer_list<std::string_view> message;
};

void check_refused(const BadFile& bad) {
  CAPTURE(bad.header.substr(0, 200));
  const std::string message = error_of(file_of(bad.header, bad.data));
  check_message(message, bad.message);
  check_message(message, {"memory: "});
}

TEST_CASE("files that are none") {
  const Folder folder;
  check_message(message_of([&] { const SafeTensors file(folder.path("missing")); }),
                {folder.path("missing"), "cannot be opened"});
  check_message(message_of([&] { const SafeTensors file(folder.path()); }), {folder.path(), "is not a file"});
  const std::string empty = folder.write("empty", "");
  check_message(message_of([&] { const SafeTensors file(empty); }), {empty, "has 0 bytes", "8"});
  check_message(error_of("1234567"), {"memory: has 7 bytes", "8"});
  check_message(error_of(bytes_of<std::uint64_t>({3}) + "{}"), {"memory: ", "header of 3 bytes", "only 2 bytes follow"});
  check_message(error_of(bytes_of<std::uint64_t>({~std::uint64_t{0}}) + "{}"),
                {"18446744073709551615", "only 2 bytes follow"});
  // The format's limit; the file has a hole and takes no space.
  const std::string large = folder.write("large", bytes_of<std::uint64_t>({100'000'001}) + "{");
  std::filesystem::resize_file(large, 100'000'009);
  check_message(message_of([&] { const SafeTensors file(large); }),
                {large, "header of 100000001 bytes", "allows 100000000"});
}

TEST_CASE("headers that are not JSON, or not an object") {
  for (const char* const text : {"[]", "3", "", " {}", "\xef\xbb\xbf{}", "\"{\""}) {
    CAPTURE(text);
    check_message(error_of(file_of(text)), {"memory: has a header that begins with", "'{'"});
  }
  check_refused({"{", {}, {"the header is not JSON at byte 2"}});
  check_refused({"{}x", {}, {"the header is not JSON at byte 3"}});
  check_refused({"{'a':1}", {}, {"the header is not JSON at byte 2"}});
  check_refused({std::string("{}\0}", 4), {}, {"the header is not JSON at byte 3", "NUL"}});
  check_refused({"{\"\xff\":1}", {}, {"the header is not JSON at byte 3", "UTF-8"}});
  check_refused({"{\"a\":\"\xc3\"}", {}, {"the header is not JSON at byte 8", "UTF-8"}});
  check_refused({"{\"a\":1e999}", {}, {"the header is not JSON at byte"}});
  check_refused({"{\"" + std::string(1000, 'a') + "\n", {}, {"the header is not JSON at byte 1003"}});
}

TEST_CASE("headers made to cost much") {
  const std::string deep(1'000'000, '[');
  check_refused({"{\"a\":" + deep, {}, {"nested more than 16 levels"}});
  std::string wide = R"({"t":{"dtype":"F32","data_offsets":[0,4],"shape":[1)";
  for (int i = 0; i < 1'000'000; ++i) {
    wide += ",1";
  }
  check_refused({wide + "]}}", "1234", {"more than 1000000 values"}});
  check_refused({"{\"" + std::string(1000, 'a') + "\":1}", {}, {"tensor 'aaa", "...' is 1"}});
}

TEST_CASE("keys that come twice") {
  const std::string entry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  check_refused({R"({"t":)" + entry + R"(,"t":)" + entry + "}", "1", {"the key 't' twice"}});
  check_refused({R"({"__metadata__":{"k":"1","k":"1"}})", {}, {"the key 'k' twice"}});
  check_refused({R"({"t":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", "1", {"the key 'shape' twice"}});
}

TEST_CASE("metadata that is not text") {
  check_refused({R"({"__metadata__":"k"})", {}, {"__metadata__ is 'k'"}});
  check_refused({R"({"__metadata__":[]})", {}, {"__metadata__ is an array"}});
  check_refused({R"({"__metadata__":{"k":NaN}})", {}, {"the header is not JSON at byte"}});
  check_refused({R"({"__metadata__":{"k":5}})", {}, {"metadata 'k' is 5"}});
  check_refused({R"({"__metadata__":{"k":{}}})", {}, {"metadata 'k' is an object"}});
}

TEST_CASE("tensors without what they need, or with it in the wrong type") {
  const auto refused = [](const std::string& dtype, const std::string& shape, const std::string& offsets,
                          std::initializer_list<std::string_view> message) {
    check_refused({header_of(dtype, shape, offsets), "12345678", message});
  };
  check_refused({R"({"t":[]})", {}, {"tensor 't' is an array"}});
  check_refused({R"({"t":{}})", {}, {"tensor 't' has no dtype"}});
  check_refused({R"({"t":{"dtype":"F32"}})", {}, {"tensor 't' has no shape"}});
  check_refused({R"({"t":{"dtype":"F32","shape":[2]}})", {}, {"tensor 't' has no data_offsets"}});
  refused("32", "[2]", "[0,8]", {"tensor 't'", "dtype 32"});
  refused(R"("F8")", "[2]", "[0,8]", {"tensor 't'", "dtype 'F8'", "F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL"});
  refused(R"("")", "[2]", "[0,8]", {"tensor 't'", "dtype ''"});
  refused(R"("F32")", "2", "[0,8]", {"tensor 't'", "shape 2"});
  refused(R"("F32")", R"({"a":2})", "[0,8]", {"tensor 't'", "shape an object"});
  for (const char* const extent : {"-2", "2.0", "\"2\"", "null", "9223372036854775808", "18446744073709551616"}) {
    refused(R"("F32")", "[1," + std::string(extent) + "]", "[0,8]",
            {"tensor 't' has ", " in its shape", "9223372036854775807"});
  }
  refused(R"("F32")", "[2]", "8", {"tensor 't'", "data_offsets that are 8"});
  refused(R"("F32")", "[2]", "[0]", {"tensor 't'", "data_offsets that are 1 values"});
  refused(R"("F32")", "[2]", "[0,8,8]", {"tensor 't'", "data_offsets that are 3 values"});
  refused(R"("F32")", "[2]", "[0,\"8\"]", {"tensor 't' has '8' in its data_offsets"});
  refused(R"("F32")", "[2]", "[-1,7]", {"tensor 't' has -1 in its data_offsets"});
  refused(R"("F32")", "[2]", "[0,8.0]", {"tensor 't' has 8.0 in its data_offsets"});
}

TEST_CASE("tensors that do not fit") {
  const auto refused = [](const std::string& shape, const std::string& offsets,
                          std::initializer_list<std::string_view> message) {
    check_refused({header_of(R"("F32")", shape, offsets), "12345678", message});
  };
  refused("[2]", "[8,0]", {"tensor 't'", "8 to 0", "ends before it begins"});
  refused("[2]", "[1,9]", {"tensor 't'", "1 to 9", "there are 8"});
  refused("[2]", "[0,18446744073709551615]", {"tensor 't'", "18446744073709551615", "there are 8"});
  refused("[3]", "[0,8]", {"tensor 't' has 8 bytes", "F32 of shape [3] needs 12"});
  refused("[]", "[0,8]", {"tensor 't' has 8 bytes", "F32 of shape [] needs 4"});
  refused("[4294967296,4294967296]", "[0,8]",
          {"tensor 't'", "[4294967296, 4294967296]", "more than 9223372036854775807 bytes"});
  refused("[2305843009213693952]", "[0,8]", {"tensor 't'", "[2305843009213693952]", "more than 9223372036854775807 bytes"});
  refused("[0,4294967296,4294967296]", "[0,0]", {"tensor 't'", "more than 9223372036854775807 bytes"});
  refused("[1]", "[0,4]", {"tensors end at byte 4", "there are 8"});
  refused("[1]", "[4,8]", {"tensor 't' begins at byte 4", "must begin at byte 0"});
}

TEST_CASE("tensors with a gap between them, or that overlap") {
  const auto header = [](const std::string& a, const std::string& b) {
    return R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)" + a + R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)" +
           b + "}}";
  };
  const std::string valid = file_of(header("[2,4]", "[0,2]"), "1234");
  CHECK(SafeTensors::from_memory("memory", as_bytes(valid)).tensor("a").as<std::int64_t>() ==
        std::vector<std::int64_t>{'3', '4'});
  check_refused({header("[0,2]", "[3,5]"), "12345", {"'b' begins at byte 3", "'a' before it ends at byte 2"}});
  check_refused({header("[0,2]", "[1,3]"), "123", {"'b' begins at byte 1", "'a' before it ends at byte 2"}});
  check_refused({header("[0,2]", "[0,2]"), "12", {"begins at byte 0", "before it ends at byte 2"}});
  check_refused(
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}})",
       "1234",
       {"'b' begins at byte 2", "'a' before it ends at byte 4"}});
  check_refused({"{}", "1", {"tensors end at byte 0", "there are 1"}});
}

}  // namespace
}  // namespace jrt_lm::test
