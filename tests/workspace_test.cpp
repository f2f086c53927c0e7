// SPDX-License-Identifier: Apache-2.0
#include <jrt/workspace.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace jrt::detail {
namespace {

TEST_CASE("an arena of the counted size holds all slices, aligned and apart, at any alignment of the base") {
  const auto take_all = [](Arena& arena) {
    struct Slices {
      char* a;
      double* b;
      float* c;
    };
    return Slices{arena.take<char>(3), arena.take<double>(5), arena.take<float>(17)};
  };
  Arena counting;
  const auto none = take_all(counting);
  CHECK(none.a == nullptr);
  CHECK(none.c == nullptr);
  for (std::size_t shift = 0; shift < 130; ++shift) {
    std::vector<char> memory(counting.bytes_needed() + 256);
    char* const base = memory.data() + shift;
    Arena arena(Workspace{base, counting.bytes_needed()});
    const auto slices = take_all(arena);
    for (const void* slice : {static_cast<void*>(slices.a), static_cast<void*>(slices.b), static_cast<void*>(slices.c)}) {
      CHECK(reinterpret_cast<std::uintptr_t>(slice) % Arena::alignment == 0);
    }
    CHECK(slices.a >= base);
    CHECK(reinterpret_cast<char*>(slices.b) >= slices.a + 3);
    CHECK(reinterpret_cast<char*>(slices.c) >= reinterpret_cast<char*>(slices.b + 5));
    CHECK(reinterpret_cast<char*>(slices.c + 17) <= base + counting.bytes_needed());
  }
}

TEST_CASE("nothing taken needs nothing") {
  CHECK(Arena{}.bytes_needed() == 0);
}

}  // namespace
}  // namespace jrt::detail
