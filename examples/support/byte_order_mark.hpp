// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace support {

/// A text without the byte order mark that some editors begin UTF-8 with. The mark of another encoding is a
/// std::runtime_error, which begins with `subject`: without one its bytes would be called bad UTF-8, or stray NULs.
inline std::string_view after_byte_order_mark(const std::string& subject, std::string_view text) {
  constexpr std::string_view utf8 = "\xEF\xBB\xBF";
  if (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF")) {
    throw std::runtime_error(subject + " begins with the byte order mark of UTF-16 or UTF-32, but must be UTF-8");
  }
  return text.starts_with(utf8) ? text.substr(utf8.size()) : text;
}

}  // namespace support
