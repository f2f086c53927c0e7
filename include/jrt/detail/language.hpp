// SPDX-License-Identifier: Apache-2.0
#pragma once

// Headers that include no other header of the library include this one, so that whichever comes first reports once that
// C++20 is missing. `#error` alone does not stop g++, and hundreds of lines about what C++17 lacks would follow; a header
// that cannot be found does.
#if __cplusplus < 202002L
#error "jrt needs C++20: compile with -std=c++20 (g++ 12, clang++ 14 or newer; nvcc 12 or newer)."
#include <jrt: see the error above>
#endif
