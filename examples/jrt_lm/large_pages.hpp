// SPDX-License-Identifier: Apache-2.0
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>

namespace jrt_lm {

/// Asks for memory that was not written yet to come in few large pages: fewer look-ups of addresses while weights stream
/// by. Where the system does not know of that, nothing happens.
inline void ask_for_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = 4096;  // calls begin at one
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t first = (begin + page - 1) / page * page;
  if (first < begin + bytes) {
    static_cast<void>(::madvise(reinterpret_cast<void*>(first), begin + bytes - first, MADV_HUGEPAGE));
  }
#endif
}

}  // namespace jrt_lm
