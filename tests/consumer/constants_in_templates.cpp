// SPDX-License-Identifier: Apache-2.0
// A user's template is the first to ask for constants of a state, with the one header that has them. Compiled, not run.
#include <jrt/policy/taylor.hpp>
#include <jrt/state.hpp>

namespace {

using Format = jrt::StateFormat<jrt::Taylor2<16>, 64, float>;

template <class Engine>
struct Cache {
  explicit Cache(std::int64_t numbers) : slots(numbers / (2 * Format::head_elements)) {}
  std::int64_t slots;
};

}  // namespace

std::int64_t slots_of(std::int64_t numbers) {
  return Cache<void>(numbers).slots;
}
