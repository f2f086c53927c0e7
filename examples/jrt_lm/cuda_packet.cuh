// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace jrt_lm {

/// 16 bytes of T.
template <class T>
struct alignas(16) Packet {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

/// Of a block for one row.
inline constexpr int row_threads = 128;

}  // namespace jrt_lm
