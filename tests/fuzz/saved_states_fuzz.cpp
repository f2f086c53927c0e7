// SPDX-License-Identifier: Apache-2.0
// libFuzzer: whatever the bytes of saved states are, they are refused with nothing written, or every operation that goes on
// from them stays in its slot, and what is then saved loads again.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <jrt/jrt.hpp>
#include <span>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using jrt::StateSlots;

using Linear = jrt::BasedLinearAttention<float, 8, 8>;
using Window = jrt::SlidingWindowAttention<float, 8, 6>;
struct RotatedWindow : jrt::SlidingWindowAttention<jrt::BFloat16, 8, 2> {
  using Rotary = jrt::RotaryHalves<8>;
};
using Hybrid = jrt::HybridAttention<Linear, jrt::WindowBeside<Linear, 4>>;
using Convolution = jrt::GatedConvolution<float, 3>;
using Layers = jrt::Stack<jrt::Layer<Convolution, 5>, jrt::Layer<Linear, 1>, jrt::Layer<Window, 1>, jrt::Layer<Hybrid, 2>>;

constexpr std::int64_t max_tokens = 8;  // of a call
constexpr std::int64_t staged_tokens = 3;

void require(bool condition) {
  if (!condition) {
    __builtin_trap();
  }
}
void require(const jrt::Status& status) {
  require(status.ok());
}

/// What the fuzzer chooses; zeros when that has come to its end.
class Choices {
 public:
  explicit Choices(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  template <class T>
  T take() {
    T value{};
    const std::size_t size = std::min(sizeof value, bytes_.size());
    std::memcpy(&value, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
    return value;
  }
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  [[nodiscard]] std::vector<std::byte> rest() const {
    std::vector<std::byte> rest(bytes_.size());
    std::transform(bytes_.begin(), bytes_.end(), rest.begin(), [](std::uint8_t byte) { return std::byte{byte}; });
    return rest;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

template <class E>
std::vector<E> some_numbers(std::int64_t count) {
  std::vector<E> numbers(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = jrt::convert<E>(std::sin(static_cast<float>(7 * i + 1)));
  }
  return numbers;
}

/// Inputs and outputs of one mixer: of attention, d = dv = 8.
template <class Config, int heads_>
struct Mixer {
  using Operator = Config;
  using Format = jrt::StateFormatOf<Config>;
  using E = typename Config::Element;
  static constexpr std::int64_t heads = heads_;

  std::vector<E> inputs = some_numbers<E>(max_tokens * heads * 8 * 3);
  std::vector<E> outputs = std::vector<E>(inputs.size() / 3);
  std::vector<E> staged = std::vector<E>(staging(nullptr).bytes() / sizeof(E));

  static jrt::StagingView<Config> staging(E* data) { return {data, 1, staged_tokens, heads}; }
  jrt::StagingView<Config> staging() { return staging(staged.data()); }

  template <class Args>
  void fill(Args& args, std::int64_t tokens) {
    if constexpr (jrt::ConvolutionConfig<Config>) {
      const jrt::TensorShape shape{1, tokens, 1, heads};
      args.input = jrt::view_bthd<const E>(inputs.data(), shape);
      args.gate = jrt::view_bthd<const E>(inputs.data() + outputs.size(), shape);
      args.weight = inputs.data() + 2 * outputs.size();
      args.output = jrt::view_bthd(outputs.data(), shape);
    } else {
      const jrt::TensorShape shape{1, tokens, heads, 8};
      args.query = jrt::view_bthd<const E>(inputs.data(), shape);
      args.key = jrt::view_bthd<const E>(inputs.data() + outputs.size(), shape);
      args.value = jrt::view_bthd<const E>(inputs.data() + 2 * outputs.size(), shape);
      args.output = jrt::view_bthd(outputs.data(), shape);
    }
  }
};

/// The same of all layers of a stack.
template <class Stack>
struct StackOf;
template <class... Part>
struct StackOf<jrt::Stack<Part...>> {
  using Operator = jrt::Stack<Part...>;
  using Format = Operator;
  static constexpr std::int64_t heads = 1;

  std::tuple<Mixer<typename Part::Config, Part::heads>...> mixers{};
  std::vector<std::uint64_t> staged = std::vector<std::uint64_t>(
      jrt::StackStaging<Operator>{nullptr, 1, staged_tokens}.bytes() / sizeof(std::uint64_t) + 1);

  jrt::StackStaging<Operator> staging() { return {reinterpret_cast<std::byte*>(staged.data()), 1, staged_tokens}; }

  template <class Args>
  void fill(Args& args, std::int64_t tokens) {
    std::apply([&](auto&... mixer) { std::apply([&](auto&... of) { (mixer.fill(of, tokens), ...); }, args.layers); },
               mixers);
  }
};

/// A pool of three slots, of which the middle one is used, and the operations that go on from it.
template <class Subject>
class Sequence {
 public:
  using Operator = typename Subject::Operator;
  using Format = typename Subject::Format;

  Sequence() {
    require(jrt::StatePool<Format>::allocate(3, Subject::heads, pool_));
    std::memset(bytes().data(), 0x5a, bytes().size());
    require(jrt::clear_states(slot(), 1, jrt::Cpu{}));
  }

  StateSlots<Format> slot() { return {pool_.view(), slots_}; }

  void step(std::int64_t tokens) {
    jrt::DecodeArgs<Operator> args;
    subject_.fill(args, tokens);
    args.source = slot();
    require(jrt::decode_step(args, jrt::Cpu{}));
  }
  void stage_and_commit(std::int32_t accepted) {
    jrt::StagedStepArgs<Operator> args;
    subject_.fill(args, staged_tokens - 1);
    args.state = slot();
    args.staging = subject_.staging();
    require(jrt::staged_step(args, jrt::Cpu{}));
    subject_.fill(args, 1);
    args.already_staged = staged_tokens - 1;
    require(jrt::staged_step(args, jrt::Cpu{}));
    jrt::CommitArgs<Operator> commits;
    commits.staging = subject_.staging();
    commits.accepted_tokens = &accepted;
    commits.source = slot();
    require(jrt::commit(commits, jrt::Cpu{}));
  }
  void prefill(std::int64_t tokens) {
    jrt::PrefillArgs<Operator> args;
    subject_.fill(args, tokens);
    args.initial_state = slot();
    args.final_state = slot();
    require(jrt::prefill(args, jrt::Cpu{}));
  }
  void run(Choices& choices) {
    step(1);
    step(1 + choices.take<std::uint8_t>() % max_tokens);
    stage_and_commit(choices.take<std::uint8_t>() % (staged_tokens + 1));
    prefill(choices.take<std::uint8_t>() % (max_tokens + 1));
    step(1);
  }

  std::vector<std::byte> saved() {
    std::vector<std::byte> saved(static_cast<std::size_t>(jrt::saved_states_bytes<Format>(1, Subject::heads)));
    require(jrt::save_states(slot(), 1, saved, jrt::Cpu{}));
    return saved;
  }
  jrt::Status load(std::span<const std::byte> saved) { return jrt::load_states(saved, slot(), 1, jrt::Cpu{}); }

  std::span<std::byte> bytes() {
    auto* const begin = reinterpret_cast<std::byte*>(pool_.view().data);
    return {begin, static_cast<std::size_t>(3 * Format::slot_bytes(Subject::heads))};
  }
  std::span<std::byte> slot_bytes() { return bytes().subspan(bytes().size() / 3, bytes().size() / 3); }
  void require_neighbours_untouched() {
    const auto untouched = [](std::byte byte) { return byte == std::byte{0x5a}; };
    require(std::all_of(bytes().data(), slot_bytes().data(), untouched));
    require(std::all_of(slot_bytes().data() + slot_bytes().size(), bytes().data() + bytes().size(), untouched));
  }

 private:
  Subject subject_{};
  jrt::StatePool<Format> pool_;
  std::int32_t slots_[1] = {1};
};

/// Numbers at which something overflows or begins, and any other.
std::uint64_t number(Choices& choices) {
  const auto near = static_cast<std::uint64_t>(std::int64_t{choices.take<std::uint8_t>()} - 128);
  switch (choices.take<std::uint8_t>() % 5) {
    case 0:
      return near;
    case 1:
      return (std::uint64_t{1} << 63) + near;
    case 2:
      return (std::uint64_t{1} << 62) + near;
    case 3:
      return (std::uint64_t{1} << 32) + near;
    default:
      return choices.take<std::uint64_t>();
  }
}

/// Some of the bytes become other ones; numbers of 64 bits stand at multiples of 8 from the end, where there are any.
void change(std::span<std::byte> bytes, Choices& choices) {
  for (int edits = 0; edits < 8 && !choices.empty(); ++edits) {
    const std::uint64_t value = number(choices);
    const std::size_t words = bytes.size() / sizeof value;
    const std::size_t word = choices.take<std::uint16_t>() % words;
    std::memcpy(bytes.data() + (bytes.size() - (word + 1) * sizeof value), &value, sizeof value);
  }
}

template <class Subject>
void load_and_run(std::span<const std::byte> bytes, Choices& choices) {
  Sequence<Subject> sequence;
  sequence.step(5);
  const std::vector<std::byte> before(sequence.bytes().begin(), sequence.bytes().end());
  const jrt::Status status = sequence.load(bytes);
  if (!status.ok()) {
    require(status.code() == jrt::StatusCode::corrupt_data && status.message().starts_with("load_states: "));
    require(std::equal(before.begin(), before.end(), sequence.bytes().begin()));
    return;
  }
  sequence.run(choices);
  sequence.require_neighbours_untouched();
  require(sequence.load(sequence.saved()));
}

template <class Subject>
void fuzz(Choices& choices) {
  enum { as_they_are, saved_and_changed, cut, unchecked, kinds };
  const auto kind = choices.take<std::uint8_t>() % kinds;
  if (kind == as_they_are) {
    load_and_run<Subject>(choices.rest(), choices);
    return;
  }
  Sequence<Subject> sequence;
  sequence.prefill(choices.take<std::uint8_t>() % (max_tokens + 1));
  if (kind == unchecked) {
    // A pool is the caller's memory; whatever got there, nothing leaves the slot.
    change(sequence.slot_bytes(), choices);
    sequence.run(choices);
    sequence.require_neighbours_untouched();
    return;
  }
  std::vector<std::byte> saved = sequence.saved();
  if (kind == cut) {
    saved.resize(choices.take<std::uint16_t>() % saved.size());
    saved.shrink_to_fit();
  } else {
    change(saved, choices);
  }
  load_and_run<Subject>(saved, choices);
}

}  // namespace

// The name is libFuzzer's. NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Choices choices({data, size});
  switch (choices.take<std::uint8_t>() % 6) {
    case 0:
      fuzz<Mixer<Linear, 2>>(choices);
      break;
    case 1:
      fuzz<Mixer<Window, 2>>(choices);
      break;
    case 2:
      fuzz<Mixer<RotatedWindow, 1>>(choices);
      break;
    case 3:
      fuzz<Mixer<Hybrid, 1>>(choices);
      break;
    case 4:
      fuzz<Mixer<Convolution, 5>>(choices);
      break;
    default:
      fuzz<StackOf<Layers>>(choices);
      break;
  }
  return 0;
}
