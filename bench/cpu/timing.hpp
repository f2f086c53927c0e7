// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>

namespace bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The shortest of many runs: what the machine can do when nothing disturbs it. Ceilings and kernels are both timed so.
class Shortest {
 public:
  template <class Function>
  void time(const Function& function) {
    const double start = now();
    function();
    const double seconds = now() - start;
    best_ = seconds < best_ ? seconds : best_;
  }
  [[nodiscard]] double seconds() const { return best_; }

 private:
  double best_ = 1e30;
};

}  // namespace bench
