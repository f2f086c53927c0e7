// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

/// JSON from files that may be hostile.
namespace support {

/// The value that `text` is, and nothing beside it. No object has a key twice; there are at most 16 levels and a million
/// values, so that a small text never needs much memory. Errors are std::runtime_error, one line: `subject` ("FILE: the
/// header"), and what is wrong with it. A byte order mark of UTF-8 is passed over; that of another encoding is an error.
nlohmann::json parse_strict_json(const std::string& subject, std::string_view text);

/// The same for what Python's `json` writes: Infinity, -Infinity and NaN are numbers too.
nlohmann::json parse_python_json(const std::string& subject, std::string_view text);

/// 'text' as a message shows it: in quotes, on one line, and not too long.
std::string in_quotes(std::string_view text);

/// A value as a message shows it: a number, a text in quotes, or what kind of value it is.
std::string brief(const nlohmann::json& value);

}  // namespace support
