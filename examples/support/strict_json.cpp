// SPDX-License-Identifier: Apache-2.0
#include "support/strict_json.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>
#include <vector>

#include "support/byte_order_mark.hpp"

namespace support {

namespace {

using nlohmann::json;

constexpr std::size_t max_levels = 16;
constexpr std::size_t max_json_values = 1'000'000;

std::string on_one_line(std::string_view text) {
  constexpr std::size_t max_size = 120;
  std::string line(text.substr(0, max_size));
  if (text.size() > max_size) {
    // Not half of a UTF-8 sequence.
    while (!line.empty() && (static_cast<unsigned char>(text[line.size()]) & 0xc0) == 0x80) {
      line.pop_back();
    }
    line += "...";
  }
  for (char& c : line) {
    c = static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  return line;
}

/// Python's numbers that are none of JSON's: which of a text's numbers they are, counted from 0.
using SpecialNumbers = std::map<std::size_t, double>;

/// A text in which an ordinary number of the same length stands for each special one, so that bytes keep their places.
struct PlainText {
  std::string text;
  SpecialNumbers specials;
};

bool is_of_word(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '+' || c == '-' ||
         c == '_';
}

/// Up to the first mistake in a text, which ends the parsing, words outside of strings are numbers or true, false and null.
PlainText without_special_numbers(std::string_view text) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  static const std::map<std::string_view, std::pair<double, std::string_view>> specials{
      {"NaN", {std::numeric_limits<double>::quiet_NaN(), "0.0"}},
      {"Infinity", {infinity, "0.000000"}},
      {"-Infinity", {-infinity, "-0.000000"}}};
  PlainText plain{std::string(text), {}};
  std::size_t numbers = 0;
  for (std::size_t i = 0; i < text.size() && numbers <= max_json_values;) {  // more are refused
    if (text[i] == '"') {
      for (++i; i < text.size() && text[i] != '"'; ++i) {
        i += text[i] == '\\' ? 1 : 0;
      }
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < text.size() && is_of_word(text[end])) {
      ++end;
    }
    const std::string_view word = text.substr(i, end - i);
    if (const auto special = specials.find(word); special != specials.end()) {
      plain.text.replace(i, word.size(), special->second.second);
      plain.specials.emplace(numbers++, special->second.first);
    } else if (!word.empty() && (word[0] == '-' || (word[0] >= '0' && word[0] <= '9'))) {
      ++numbers;
    }
    i = std::max(end, i + 1);
  }
  return plain;
}

/// Builds the value as the parser reads it. The library's own builder keeps the last of equal keys and knows no limits.
class Builder : public nlohmann::json_sax<json> {
 public:
  Builder(const std::string& subject, const SpecialNumbers& specials) : subject_(subject), specials_(specials) {}

  json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(std::int64_t value) override { return add_number(value); }
  bool number_unsigned(std::uint64_t value) override { return add_number(value); }
  bool number_float(double value, const std::string& /*text*/) override { return add_number(value); }
  bool string(std::string& value) override { return add(std::move(value)); }
  bool binary(json::binary_t& value) override { return add(std::move(value)); }
  bool start_object(std::size_t /*size*/) override { return open(json::object()); }
  bool start_array(std::size_t /*size*/) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& key) override {
    const auto [place, is_new] = open_.back()->emplace(key, nullptr);
    if (!is_new) {
      fail("has the key " + in_quotes(key) + " twice in one object");
    }
    member_ = &*place;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*token*/, const json::exception& error) override {
    // What the library says, less its own name and the line and column, which have no meaning in one long line.
    const std::string_view what(error.what());
    const std::size_t begin = what.find(": ");
    fail("is not JSON at byte " + std::to_string(position) + ": " +
         on_one_line(begin == std::string_view::npos ? what : what.substr(begin + 2)));
  }

  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(subject_ + " " + what); }

 private:
  bool open(json&& container) {
    if (open_.size() == max_levels) {
      fail("is nested more than " + std::to_string(max_levels) + " levels deep");
    }
    add(std::move(container));
    open_.push_back(last_);
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  bool add_number(json&& value) {
    const auto special = specials_.find(numbers_++);
    return add(special == specials_.end() ? std::move(value) : json(special->second));
  }

  bool add(json&& value) {
    if (++values_ > max_json_values) {
      fail("has more than " + std::to_string(max_json_values) + " values");
    }
    if (open_.empty()) {
      last_ = &root_;
    } else if (open_.back()->is_array()) {
      last_ = &open_.back()->emplace_back();
    } else {
      last_ = member_;
    }
    *last_ = std::move(value);
    return true;
  }

  const std::string& subject_;
  const SpecialNumbers& specials_;
  json root_;
  std::vector<json*> open_{};  // containers, outermost first
  json* member_ = nullptr;     // place of the last key's value
  json* last_ = nullptr;       // the value added last
  std::size_t values_ = 0;
  std::size_t numbers_ = 0;
};

json parse(const std::string& subject, std::string_view text, const SpecialNumbers& specials) {
  Builder builder(subject, specials);
  // The library passes over a mark of UTF-8 itself, and counts its bytes.
  static_cast<void>(after_byte_order_mark(subject, text));
  // The library takes a NUL for the end of its input, whatever follows.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    builder.fail("is not JSON at byte " + std::to_string(nul + 1) + ": a NUL");
  }
  json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

}  // namespace

json parse_strict_json(const std::string& subject, std::string_view text) {
  return parse(subject, text, {});
}

json parse_python_json(const std::string& subject, std::string_view text) {
  const PlainText plain = without_special_numbers(text);
  return parse(subject, plain.text, plain.specials);
}

std::string in_quotes(std::string_view text) {
  // Appended: GCC 12 warns wrongly of "'" + std::string (GCC bug 105329).
  std::string quoted = "'";
  quoted += on_one_line(text);
  quoted += '\'';
  return quoted;
}

std::string brief(const json& value) {
  if (value.is_structured()) {
    return value.is_array() ? "an array" : "an object";
  }
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {  // dumped as null
    const auto number = value.get<double>();
    return std::isnan(number) ? "NaN" : number > 0 ? "Infinity" : "-Infinity";
  }
  return value.is_string() ? in_quotes(value.get_ref<const std::string&>()) : value.dump();
}

}  // namespace support
