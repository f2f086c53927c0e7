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
  const std::size_t before = (page - reinterpret_cast<std::uintptr_t>(memory) % page) % page;
  if (before < bytes) {
    static_cast<void>(::madvise(static_cast<std::byte*>(memory) + before, bytes - before, MADV_HUGEPAGE));
  }
#endif
}

}  // namespace jrt_lm
