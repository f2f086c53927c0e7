// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <jrt/status.hpp>
#include <stdexcept>

namespace jrt_lm {

/// The library's errors as exceptions, which is how this program reports its own.
inline void require(const jrt::Status& status) {
  if (!status) {
    throw std::runtime_error(status.c_str());
  }
}

}  // namespace jrt_lm
