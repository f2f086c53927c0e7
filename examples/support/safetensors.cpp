// SPDX-License-Identifier: Apache-2.0
#include "support/safetensors.hpp"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <utility>

#include "support/mapped_file.hpp"
#include "support/strict_json.hpp"

namespace support {

namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "numbers are copied as they lie in the file");
static_assert(sizeof(std::size_t) == sizeof(std::uint64_t), "offsets in the file are sizes in memory");

constexpr std::uint64_t max_header_bytes = 100'000'000;  // the format's own limit
constexpr std::int64_t max_bytes = std::numeric_limits<std::int64_t>::max();

[[noreturn]] void fail(const std::string& message) {
  throw std::runtime_error(message);
}

const json& field(const json& entry, const std::string& origin, const char* key) {
  const auto found = entry.find(key);
  if (found == entry.end()) {
    fail(origin + " has no " + key);
  }
  return *found;
}

std::string read_dtype(const json& value, const std::string& origin) {
  if (!value.is_string()) {
    fail(origin + " has the dtype " + brief(value) + ", which is not a text");
  }
  auto dtype = value.get<std::string>();
  if (width_of_dtype(dtype) == 0) {
    fail(origin + " has the dtype " + in_quotes(dtype) + "; known are " + known_dtypes());
  }
  return dtype;
}

std::vector<std::int64_t> read_shape(const json& value, const std::string& origin) {
  if (!value.is_array()) {
    fail(origin + " has the shape " + brief(value) + ", which is not an array");
  }
  std::vector<std::int64_t> shape;
  for (const json& extent : value) {
    if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > static_cast<std::uint64_t>(max_bytes)) {
      fail(origin + " has " + brief(extent) + " in its shape, which is not a whole number from 0 to " +
           std::to_string(max_bytes));
    }
    shape.push_back(extent.get<std::int64_t>());
  }
  return shape;
}

/// Where a tensor lies in the file's data.
struct Place {
  std::uint64_t begin;
  std::uint64_t end;
  const std::string* name;
  [[nodiscard]] std::string text() const { return std::to_string(begin) + " to " + std::to_string(end); }
};

Place read_place(const json& value, const std::string& name, const std::string& origin, std::uint64_t data_bytes) {
  if (!value.is_array() || value.size() != 2) {
    fail(origin + " has data_offsets that are " +
         (value.is_array() ? std::to_string(value.size()) + " values" : brief(value)) + ", not 2 numbers");
  }
  for (const json& offset : value) {
    if (!offset.is_number_unsigned()) {
      fail(origin + " has " + brief(offset) + " in its data_offsets, which is not a whole number from 0");
    }
  }
  const Place place{value[0].get<std::uint64_t>(), value[1].get<std::uint64_t>(), &name};
  if (place.begin > place.end) {
    fail(origin + " lies at bytes " + place.text() + " of the data: it ends before it begins");
  }
  if (place.end > data_bytes) {
    fail(origin + " lies at bytes " + place.text() + " of the data, but there are " + std::to_string(data_bytes));
  }
  return place;
}

/// The format allows no hole, in which something else might hide, and no byte in two tensors.
void require_covered(const std::string& path, std::vector<Place> places, std::uint64_t data_bytes) {
  std::sort(places.begin(), places.end(),
            [](const Place& a, const Place& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  std::uint64_t covered = 0;
  const std::string* last = nullptr;
  for (const Place& place : places) {
    if (place.begin != covered) {
      fail(path + ": tensor " + in_quotes(*place.name) + " begins at byte " + std::to_string(place.begin) +
           " of the data, but " +
           (last == nullptr ? "the first tensor must begin" : "tensor " + in_quotes(*last) + " before it ends") +
           " at byte " + std::to_string(covered));
    }
    covered = place.end;
    last = place.name;
  }
  if (covered != data_bytes) {
    fail(path + ": the tensors end at byte " + std::to_string(covered) + " of the data, but there are " +
         std::to_string(data_bytes));
  }
}

std::map<std::string, std::string> read_metadata(const std::string& path, const json& entry) {
  if (entry.is_null()) {  // some writers say so that there is none
    return {};
  }
  if (!entry.is_object()) {
    fail(path + ": __metadata__ is " + brief(entry) + ", not an object");
  }
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) {
      fail(path + ": metadata " + in_quotes(key) + " is " + brief(value) + ", not a text");
    }
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

/// The header's text.
std::string_view header_text(const std::string& path, std::span<const std::byte> bytes) {
  std::uint64_t size = 0;
  if (bytes.size() < sizeof size) {
    fail(path + ": has " + std::to_string(bytes.size()) + " bytes, too few for the " + std::to_string(sizeof size) +
         " that every file begins with");
  }
  std::memcpy(&size, bytes.data(), sizeof size);
  if (size > bytes.size() - sizeof size) {
    fail(path + ": has a header of " + std::to_string(size) + " bytes, but only " +
         std::to_string(bytes.size() - sizeof size) + " bytes follow");
  }
  if (size > max_header_bytes) {
    fail(path + ": has a header of " + std::to_string(size) + " bytes, but the format allows " +
         std::to_string(max_header_bytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof size, size);
  if (!text.starts_with('{')) {
    fail(path + ": has a header that begins with " + in_quotes(text.substr(0, 1)) + ", not with '{'");
  }
  return text;
}

}  // namespace

SafeTensors::SafeTensors(const std::string& path) : TensorFile(path, std::make_unique<MappedFile>(path)) {
  read(file_->bytes());
}

SafeTensors::SafeTensors(std::string name, std::span<const std::byte> bytes) : TensorFile(std::move(name), nullptr) {
  read(bytes);
}

SafeTensors SafeTensors::from_memory(std::string name, std::span<const std::byte> bytes) {
  return {std::move(name), bytes};
}

void SafeTensors::read(std::span<const std::byte> bytes) {
  const std::string_view text = header_text(path_, bytes);
  const json header = parse_strict_json(path_ + ": the header", text);
  const auto data = bytes.subspan(sizeof(std::uint64_t) + text.size());
  std::vector<Place> places;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      metadata_ = read_metadata(path_, entry);
      continue;
    }
    const std::string origin = path_ + ": tensor " + in_quotes(name);
    if (!entry.is_object()) {
      fail(origin + " is " + brief(entry) + ", not an object");
    }
    StoredTensor tensor;
    tensor.dtype = read_dtype(field(entry, origin, "dtype"), origin);
    tensor.shape = read_shape(field(entry, origin, "shape"), origin);
    tensor.origin = origin;
    const std::uint64_t needed = checked_bytes(tensor);
    const auto [place, is_new] = tensors_.emplace(name, std::move(tensor));
    places.push_back(read_place(field(entry, origin, "data_offsets"), place->first, origin, data.size()));
    const std::uint64_t given = places.back().end - places.back().begin;
    if (given != needed) {
      fail(origin + " has " + std::to_string(given) + " bytes, but " + place->second.dtype + " of shape " +
           shape_text(place->second.shape) + " needs " + std::to_string(needed));
    }
    place->second.bytes = data.subspan(places.back().begin, needed);
  }
  require_covered(path_, std::move(places), data.size());
}

const std::string& SafeTensors::text(const std::string& key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) {
    fail(path_ + ": has no metadata " + in_quotes(key));
  }
  return found->second;
}

std::int64_t SafeTensors::number(const std::string& key) const {
  const std::string& digits = text(key);
  std::int64_t number = 0;
  const char* const end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, number);
  if (error != std::errc() || stop != end) {
    fail(path_ + ": metadata " + in_quotes(key) + " is " + in_quotes(digits) + ", not a whole number");
  }
  return number;
}

}  // namespace support
