// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string_view>

#include "jrt/detail/language.hpp"

/// The one error channel: every entry point returns a `Status`, and none throws, prints or aborts.
namespace jrt {

enum class StatusCode {
  ok,                ///< The operation ran (or, on a stream, was enqueued).
  invalid_argument,  ///< An argument is wrong; nothing was written. The message names it and gives both values.
  out_of_memory,     ///< An owning type or a convenience overload could not allocate; nothing was written.
  corrupt_data,      ///< Saved bytes are truncated, of another version or of another shape; nothing was written.
  device_error,      ///< The device refused a launch or a transfer; the message quotes its error.
};

/// Result of an operation: a code and, if it failed, one readable sentence. It lives on the stack (no allocation), and
/// making a successful one costs two stores.
class [[nodiscard]] Status {
 public:
  /// Success.
  Status() noexcept { message_[0] = '\0'; }

  /// Failure with a message formatted as by printf; longer messages are cut.
  [[gnu::format(printf, 2, 3)]] static Status error(StatusCode code, const char* format, ...) noexcept {
    Status status;
    status.code_ = code;
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(status.message_, sizeof status.message_, format, arguments);
    va_end(arguments);
    return status;
  }

  [[nodiscard]] bool ok() const noexcept { return code_ == StatusCode::ok; }
  explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] StatusCode code() const noexcept { return code_; }

  /// What was wrong; empty on success. Valid as long as this object.
  [[nodiscard]] std::string_view message() const noexcept { return message_; }
  [[nodiscard]] const char* c_str() const noexcept { return message_; }

 private:
  StatusCode code_ = StatusCode::ok;
  char message_[252];
};

}  // namespace jrt
