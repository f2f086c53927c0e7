// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "support/backend.hpp"
#include "support/fuzz_states.hpp"

/// Random calls of a mixer, one after the other on one pool of states, as an engine makes them: prefills in pieces, steps,
/// drafts of which some tokens are taken. Of every slot the test knows which tokens its sequence has seen; all outputs are
/// compared with the formula over those, states with what the tokens leave.
namespace jrt::test {

/// One pool and its calls. A `Mixer` knows the operator; made from a `Random`, it has
///
///     Config
///     heads()                             of the pool
///     input_shapes(rows, tokens)          of what is in `Inputs`, and output_shape(rows, tokens)
///     begin_call(random, log)             changes what differs from call to call, and says so in `log`
///     fill(args, inputs, output)          everything in arguments but sequences and states
///     expected(inputs, last)              outputs of the last tokens of a sequence by the formula
///     wrong_state(inputs, state)          what is wrong with the state after a sequence; empty: nothing
///     describe(to)                        itself, for messages
template <class Backend, template <class, class> class MixerOf, class Config>
class RandomCalls {
 public:
  using Mixer = MixerOf<Backend, Config>;
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  template <class T>
  using Array = typename Backend::template Array<T>;

  RandomCalls(Random& random, std::int64_t max_tokens)
      : random_(random),
        max_tokens_(max_tokens),
        mixer_(random),
        slots_(random.between(max_sequences + 1, 2 * max_sequences + 2)),
        pool_offset_(granule * random.between(0, 2)),
        slot_stride_(mixer_.heads() * Format::head_elements + granule * random.between(0, 3)),
        memory_(static_cast<std::size_t>(pool_offset_ + slots_ * slot_stride_), poison<E>()) {
    // Slots hold the state of a sequence without tokens, or anything.
    for (std::int64_t slot = 0; slot < slots_; ++slot) {
      const bool known = random.chance(0.5);
      known_.push_back(known);
      seen_.push_back(random_inputs(1, 0));
      if (known) {
        std::fill_n(memory_.begin() + slot_begin(slot), slot_elements(), E{});
      }
    }
    pool_ = Array<E>(memory_);
  }

  /// The error of all outputs of at least `calls` calls.
  double run(int calls) {
    INFO(log());
    for (int call = 0; call < calls || (errors_.rows() < 40 && call < 40); ++call) {
      log_.emplace_back();
      mixer_.begin_call(random_, line());
      aligned_ = random_.chance(0.6);
      const std::int64_t kind = call == 0 ? 0 : random_.between(0, 9);
      if (kind < 5) {
        prefill_some();
      } else if (kind < 8) {
        step();
      } else {
        draft();
      }
    }
    CHECK(errors_.relative() <= tolerance<E>());
    return errors_.relative();
  }

 private:
  static constexpr auto granule = static_cast<std::int64_t>(Format::alignment / sizeof(E));

  /// All calls so far: a wrong one makes sense only with what came before it.
  [[nodiscard]] std::string log() const {
    std::ostringstream all;
    mixer_.describe(all);
    all << ", " << slots_ << " slots of stride " << slot_stride_ << " at " << pool_offset_;
    for (const std::ostringstream& call : log_) {
      all << '\n' << call.str();
    }
    return all.str();
  }
  std::ostringstream& line() { return log_.back(); }

  void fail(const std::string& wrong) {
    if (!wrong.empty()) {
      INFO(wrong);
      FAIL("a call went wrong, the last one of:");
    }
  }

  [[nodiscard]] std::int64_t slot_begin(std::int64_t slot) const { return pool_offset_ + slot * slot_stride_; }
  [[nodiscard]] std::int64_t slot_elements() const { return mixer_.heads() * Format::head_elements; }
  StatePoolView<Format> pool_view() { return {pool_.data() + pool_offset_, slots_, mixer_.heads(), slot_stride_}; }

  Inputs<E> random_inputs(std::int64_t rows, std::int64_t tokens) {
    Inputs<E> inputs;
    for (const TensorShape& shape : mixer_.input_shapes(rows, tokens)) {
      inputs.push_back(random_tensor<E>(shape, static_cast<unsigned>(random_.between(1, 1 << 30))));
    }
    return inputs;
  }

  /// Of tokens alone: rows that are not, which nobody may look at, are poison.
  Inputs<E> only_tokens(const Inputs<E>& inputs, const Batch& batch, const SlotPlan& plan) const {
    Inputs<E> poisoned = inputs;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      std::fill(poisoned[i].values.begin(), poisoned[i].values.end(), poison<E>());
      for (std::size_t b = 0; b < batch.parts.size(); ++b) {
        const Part& part = batch.parts[b];
        if (!plan.skipped(b)) {
          const std::size_t begin = inputs[i].index(part.row, part.first, 0, 0);
          std::copy_n(inputs[i].values.data() + begin, part.tokens * inputs[i].shape.heads * inputs[i].shape.dim,
                      poisoned[i].values.data() + begin);
        }
      }
    }
    return poisoned;
  }

  /// All that each sequence has seen after its tokens in a call, of those that take part. `drafts`: tokens before them that
  /// no state holds.
  std::vector<std::optional<Inputs<E>>> seen_after(const Inputs<E>& inputs, const Batch& batch, const SlotPlan& plan,
                                                   const Inputs<E>* drafts = nullptr) {
    std::vector<std::optional<Inputs<E>>> seen(batch.parts.size());
    for (std::size_t b = 0; b < seen.size(); ++b) {
      if (plan.skipped(b)) {
        continue;
      }
      const Part& part = batch.parts[b];
      Inputs<E> before = plan.starts_empty(b) ? random_inputs(1, 0) : seen_[static_cast<std::size_t>(plan.from[b])];
      if (drafts != nullptr) {
        before = joined_tokens(before, row_slice(*drafts, part.row, 0, (*drafts)[0].shape.tokens));
      }
      seen[b] = joined_tokens(before, row_slice(inputs, part.row, part.first, part.tokens));
    }
    return seen;
  }

  Placed<Backend, E> place_output(const Batch& batch) {
    const TensorShape shape = mixer_.output_shape(batch.rows, batch.tokens);
    const Placement placement = random_placement(random_, shape, aligned_);
    describe(line(), "output", placement);
    return Placed<Backend, E>(shape, placement);
  }

  void check_output(const Placed<Backend, E>& output, const Batch& batch,
                    const std::vector<std::optional<Inputs<E>>>& seen) {
    const TensorShape shape = mixer_.output_shape(batch.rows, batch.tokens);
    Tensor<double> expected{shape, std::vector<double>(element_count(shape), std::numeric_limits<double>::quiet_NaN())};
    for (std::size_t b = 0; b < seen.size(); ++b) {
      const Part& part = batch.parts[b];
      std::fill_n(expected.values.data() + expected.index(part.row, part.begin, 0, 0),
                  (part.end - part.begin) * shape.heads * shape.dim, 0.0);
      if (seen[b].has_value()) {
        const Tensor<double> outputs = mixer_.expected(*seen[b], part.tokens);
        std::copy(outputs.values.begin(), outputs.values.end(),
                  expected.values.data() + expected.index(part.row, part.first, 0, 0));
      }
    }
    if (!output.surroundings_intact()) {
      fail("written around the output");
    }
    fail(errors_.add(output.read(), expected, tolerance<E>()));
    line() << ", error so far " << errors_.relative();
  }

  /// The sequences' slots hold what they have seen now; nothing else of the pool has changed.
  void check_pool(const std::vector<std::optional<Inputs<E>>>& seen, const std::vector<std::int32_t>& to) {
    const std::vector<E> before = memory_;
    memory_ = pool_.read();
    std::vector<E> expected = before;
    for (std::size_t b = 0; b < seen.size(); ++b) {
      if (seen[b].has_value()) {
        const std::int64_t begin = slot_begin(to[b]);
        std::copy_n(memory_.begin() + begin, slot_elements(), expected.begin() + begin);
        known_[static_cast<std::size_t>(to[b])] = true;
        seen_[static_cast<std::size_t>(to[b])] = *seen[b];
        const std::string wrong = mixer_.wrong_state(*seen[b], memory_.data() + begin);
        fail(wrong.empty() ? wrong : "state of sequence " + std::to_string(b) + ": " + wrong);
      }
    }
    if (std::memcmp(expected.data(), memory_.data(), memory_.size() * sizeof(E)) != 0) {
      fail("written elsewhere in the pool");
    }
  }

  /// Slot indices in the backend's memory, or none where they are 0, 1, …
  class PlacedSlots {
   public:
    PlacedSlots(Random& random, const std::vector<std::int32_t>& slots, std::ostream& log)
        : slots_(slots), implicit_(counts_up(slots) && random.chance(0.7)) {
      log << (implicit_ ? " (no array)" : "");
    }
    StateSlots<Format> view(const StatePoolView<Format>& pool) { return {pool, implicit_ ? nullptr : slots_.data()}; }

   private:
    Array<std::int32_t> slots_;
    bool implicit_;
  };

  void prefill_some() {
    Batch batch = random_batch(random_, random_.chance(0.3) ? 12 : max_tokens_);
    SlotPlan plan = random_slots(random_, known_, batch.count(), random_.chance(0.5), true);
    plan.reads = random_.chance(0.75);
    plan.writes = random_.chance(0.85);
    for (std::size_t b = 0; b < batch.parts.size(); ++b) {
      if (plan.skipped(b) && !batch.lists.seq_lens.empty() && random_.chance(0.5)) {
        batch.lists.seq_lens[b] = random_.chance(0.5) ? -3 : 1 << 30;  // of a skipped sequence nothing counts
      }
    }
    line() << "prefill";
    describe(line(), batch, plan);

    const Inputs<E> inputs = random_inputs(batch.rows, batch.tokens);
    PlacedInputs<Backend, E> placed(random_, only_tokens(inputs, batch, plan), aligned_, line());
    Placed<Backend, E> output = place_output(batch);
    PlacedSequences<Backend> sequences(batch.lists);
    PlacedSlots from(random_, plan.from, line());
    PlacedSlots to(random_, plan.to, line());
    Array<std::uint8_t> has_initial(plan.has_initial);
    PrefillArgs<Config> args;
    mixer_.fill(args, placed.views(), output.view());
    args.sequences = sequences.view();
    if (plan.reads) {
      args.initial_state = from.view(pool_view());
      args.has_initial_state = plan.has_initial.empty() ? nullptr : has_initial.data();
    }
    if (plan.writes) {
      args.final_state = to.view(pool_view());
    }
    JRT_REQUIRE_OK(prefill(args, Backend::execution()));
    auto seen = seen_after(inputs, batch, plan);
    check_output(output, batch, seen);
    if (!plan.writes) {
      seen.clear();
    }
    check_pool(seen, plan.to);
  }

  /// New tokens of a step, mostly few.
  std::int64_t random_width() {
    return random_.chance(0.5) ? 1 : random_.chance(0.8) ? random_.between(0, 6) : random_length(random_, 70);
  }

  void step() {
    const std::int64_t width = random_width();
    const Batch batch = full_rows(random_.between(1, max_sequences), width);
    const bool in_place = random_.chance(0.5);
    SlotPlan plan = random_slots(random_, known_, batch.count(), in_place, false);
    const bool leaves_out = in_place && random_.chance(0.5);
    plan.to = leaves_out ? plan.from : plan.to;
    line() << "step";
    describe(line(), batch, plan);

    const Inputs<E> inputs = random_inputs(batch.rows, batch.tokens);
    PlacedInputs<Backend, E> placed(random_, only_tokens(inputs, batch, plan), aligned_, line());
    Placed<Backend, E> output = place_output(batch);
    PlacedSlots from(random_, plan.from, line());
    PlacedSlots to(random_, plan.to, line());
    DecodeArgs<Config> args;
    mixer_.fill(args, placed.views(), output.view());
    args.source = from.view(pool_view());
    if (!leaves_out) {
      args.destination = to.view(pool_view());
    }
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
    const auto seen = seen_after(inputs, batch, plan);
    check_output(output, batch, seen);
    check_pool(seen, plan.to);
  }

  /// Staged steps, then some of their tokens are taken.
  void draft() {
    const std::int64_t count = random_.between(1, max_sequences);
    const bool in_place = random_.chance(0.5);
    SlotPlan plan = random_slots(random_, known_, count, in_place, false);
    SlotPlan staging_plan = plan;
    staging_plan.writes = false;
    const std::int64_t capacity = random_.between(1, 12);
    const std::int64_t offset = random_.between(0, 1);
    line() << "drafts for " << capacity << " tokens at " << offset;
    StagingView<Config> staging{nullptr, count, capacity, mixer_.heads()};
    const std::vector<E> empty(static_cast<std::size_t>(offset) + staging.bytes() / sizeof(E), poison<E>());
    Array<E> staged(empty);
    staging.data = staged.data() + offset;

    PlacedSlots from(random_, plan.from, line());
    Inputs<E> drafts = random_inputs(count, 0);
    for (std::int64_t already = 0; already < capacity && (already == 0 || random_.chance(0.8));) {
      const Batch batch = full_rows(count, std::min(capacity - already, random_width()));
      describe(line(), batch, staging_plan);
      const Inputs<E> inputs = random_inputs(count, batch.tokens);
      PlacedInputs<Backend, E> placed(random_, only_tokens(inputs, batch, staging_plan), aligned_, line());
      Placed<Backend, E> output = place_output(batch);
      StagedStepArgs<Config> args;
      mixer_.fill(args, placed.views(), output.view());
      args.state = from.view(pool_view());
      args.staging = staging;
      args.already_staged = already;
      JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
      check_output(output, batch, seen_after(inputs, batch, staging_plan, &drafts));
      check_pool({}, {});
      drafts = joined_tokens(drafts, inputs);
      already += batch.tokens;
      check_staging(staged.read(), empty, staging, offset, already, staging_plan);
    }
    take(staging, drafts, plan, from, in_place);
  }

  /// Rows that no step was to write are as they were.
  void check_staging(const std::vector<E>& staged, std::vector<E> expected, const StagingView<Config>& staging,
                     std::int64_t offset, std::int64_t tokens, const SlotPlan& plan) {
    const std::int64_t row = staging.heads * StagingView<Config>::row_elements;
    for (std::int64_t b = 0; b < staging.sequences; ++b) {
      if (!plan.skipped(static_cast<std::size_t>(b))) {
        const std::int64_t begin = offset + b * staging.tokens * row;
        std::copy_n(staged.begin() + begin, tokens * row, expected.begin() + begin);
      }
    }
    if (std::memcmp(expected.data(), staged.data(), staged.size() * sizeof(E)) != 0) {
      fail("written elsewhere in the staging buffer");
    }
  }

  void take(const StagingView<Config>& staging, const Inputs<E>& drafts, SlotPlan plan, PlacedSlots& from, bool in_place) {
    const bool leaves_out = in_place && random_.chance(0.5);
    plan.to = leaves_out ? plan.from : plan.to;
    std::vector<std::int32_t> counts;
    Batch batch = full_rows(staging.sequences, 0);
    for (std::size_t b = 0; b < batch.parts.size(); ++b) {
      batch.parts[b].tokens = random_.between(0, drafts[0].shape.tokens);
      counts.push_back(plan.skipped(b) ? 99 : static_cast<std::int32_t>(batch.parts[b].tokens));
    }
    line() << ", commit";
    describe(line(), "accepted", counts);
    describe(line(), "to", plan.to);
    Array<std::int32_t> accepted(counts);
    PlacedSlots to(random_, plan.to, line());
    CommitArgs<Config> args;
    args.staging = staging;
    args.accepted_tokens = accepted.data();
    args.source = from.view(pool_view());
    if (!leaves_out) {
      args.destination = to.view(pool_view());
    }
    JRT_REQUIRE_OK(commit(args, Backend::execution()));
    check_pool(seen_after(drafts, batch, plan), plan.to);
  }

  Random& random_;
  std::int64_t max_tokens_;
  Mixer mixer_;
  std::int64_t slots_;
  std::int64_t pool_offset_;
  std::int64_t slot_stride_;
  bool aligned_ = false;   // all tensors of a call
  std::vector<E> memory_;  // of the pool, as it was last seen
  Array<E> pool_;
  std::vector<bool> known_;      // slots that hold a state
  std::vector<Inputs<E>> seen_;  // and the tokens that led to it
  std::vector<std::ostringstream> log_;
  ErrorSum errors_;
};

/// Random calls on `cases` pools, other calls for each format of state; the worst error of one pool's.
template <class Backend, template <class, class> class MixerOf, class Config>
double fuzz_mixer(unsigned seed, int cases, std::int64_t max_tokens) {
  using Format = StateFormatOf<Config>;
  using E = typename Format::Scalar;
  Random random(seed + static_cast<unsigned>(Format::head_elements * 16 + sizeof(E) + std::is_same_v<E, Half>));
  double worst = 0;
  for (int i = 0; i < cases; ++i) {
    CAPTURE(seed);
    CAPTURE(i);
    worst = std::max(worst, RandomCalls<Backend, MixerOf, Config>(random, max_tokens).run(12));
  }
  return worst;
}

}  // namespace jrt::test
