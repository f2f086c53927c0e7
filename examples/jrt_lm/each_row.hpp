// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <jrt/thread_pool.hpp>

namespace jrt_lm {

/// `function(t)` for every row, a few at a time.
template <class Function>
void each_row(jrt::ThreadPool& threads, std::int64_t rows, const Function& function) {
  constexpr std::int64_t together = 16;
  threads.run((rows + together - 1) / together, [&](std::int64_t task, int /*worker*/) {
    for (std::int64_t t = task * together; t < std::min(rows, (task + 1) * together); ++t) {
      function(t);
    }
  });
}

}  // namespace jrt_lm
