// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>

namespace jrt_lm {

/// A GPU reads prompts of up to so many tokens in less time than the host takes to launch the kernels for them.
inline constexpr std::int64_t short_prompt_tokens = 2048;

/// Rows in the prefill of one short prompt: as many as it has tokens, or more. Those behind it are of no sequence.
struct PromptShape {
  std::int64_t rows = 0;
  std::int64_t encoder_rows = 0;

  friend bool operator<(const PromptShape& a, const PromptShape& b) {
    return std::pair(a.rows, a.encoder_rows) < std::pair(b.rows, b.encoder_rows);
  }
};

/// The shape for a prompt of so many tokens: rows in multiples of 16 and at most an eighth more than needed, no encoder
/// rows, half as many or as many. So all lengths have few shapes, whose work can be kept.
inline PromptShape short_prompt_shape(std::int64_t tokens, std::int64_t prefix) {
  const auto power = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(tokens)));
  const std::int64_t unit = std::max<std::int64_t>(16, power / 16);
  PromptShape shape;
  shape.rows = (tokens + unit - 1) / unit * unit;
  if (prefix > 0) {
    shape.encoder_rows = 2 * prefix <= shape.rows ? shape.rows / 2 : shape.rows;
  }
  return shape;
}

/// Prefills that were captured, by shape. A shape's second prompt is the one that is captured: the first has loaded kernels
/// and found out how much memory they need, and a program that reads one prompt does not wait for a capture.
template <class Graph>
class PromptGraphs {
 public:
  static constexpr std::size_t most = 32;  ///< of the shapes used last

  /// Calls `run()` for the first prompt of a shape, `launch(graph)` with what `capture()` returned for all others.
  template <class Run, class Capture, class Launch>
  void read(const PromptShape& shape, const Run& run, const Capture& capture, const Launch& launch) {
    const auto found = entries_.find(shape);
    if (found == entries_.end()) {
      run();
      forget_oldest();
      entries_[shape].last_use = ++uses_;
      return;
    }
    Entry& entry = found->second;
    entry.last_use = ++uses_;
    if (entry.graph == nullptr) {
      entry.graph = capture();
    }
    launch(entry.graph);
  }

  /// Memory has moved, and graphs still use where it was.
  void clear() { entries_.clear(); }

 private:
  struct Entry {
    Graph graph{};
    std::int64_t last_use = 0;
  };

  void forget_oldest() {
    if (entries_.size() == most) {
      entries_.erase(std::min_element(entries_.begin(), entries_.end(),
                                      [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; }));
    }
  }

  std::map<PromptShape, Entry> entries_;
  std::int64_t uses_ = 0;
};

}  // namespace jrt_lm
