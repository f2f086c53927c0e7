// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <span>

#include "jrt_lm/generation.hpp"

namespace jrt_lm {

/// One line on standard error that says how far a long prefill is: rewritten in place on a terminal, a line for each
/// quarter elsewhere.
class ProgressLine {
 public:
  explicit ProgressLine(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0) {}

  /// To be told of prefills of these requests; nothing if they are short.
  Progress of(std::span<const Request> requests, const GenerationOptions& options) {
    for (const Request& request : requests) {
      tokens_ += std::ssize(request.context) * options.reads + std::ssize(request.query) +
                 std::ssize(options.separator) * (options.reads - 1);
    }
    if (quiet_ || tokens_ < shortest) {
      return {};
    }
    return [this](double done) { show(done); };
  }

  /// Ends the line, if there was one.
  void end() const {
    if (terminal_ && shown_ >= 0) {
      std::fputc('\n', stderr);
    }
  }

 private:
  static constexpr std::int64_t shortest = 8192;  // tokens; less is over before anyone asks

  void show(double done) {
    const auto percent = static_cast<int>(done * 100);
    const int step = terminal_ ? 1 : 25;
    if (percent / step != shown_ / step || shown_ < 0) {
      shown_ = percent;
      std::fprintf(stderr, terminal_ ? "\rprefill of %lld tokens: %d %%" : "prefill of %lld tokens: %d %%\n",
                   static_cast<long long>(tokens_), percent);
      std::fflush(stderr);
    }
  }

  bool quiet_;
  bool terminal_;
  std::int64_t tokens_ = 0;
  int shown_ = -1;
};

}  // namespace jrt_lm
