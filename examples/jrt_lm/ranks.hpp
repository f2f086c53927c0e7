// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <jrt/distributed/communicator.hpp>
#include <jrt/distributed/context_layout.hpp>
#include <jrt/status.hpp>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

/// One prompt on several ranks: threads of the CPU, or GPUs, each with the whole model and a piece of the tokens.
namespace jrt_lm {

/// A prompt, and how its tokens are divided: the encoder region is the first of them, where they are.
struct RankedPrompt {
  std::span<const std::int32_t> tokens{};
  std::vector<std::int64_t> pieces{};          ///< tokens of each rank
  std::vector<std::int64_t> encoder_pieces{};  ///< likewise of the encoder region
  std::int32_t slot = 0;
  bool continues = false;
  std::int64_t tokens_before = 0;  ///< that the sequence has read

  [[nodiscard]] jrt::ContextLayout layout() const {
    jrt::ContextLayout layout;
    layout.ranks = static_cast<int>(pieces.size());
    layout.tokens = pieces.data();
    layout.encoder_tokens = encoder_pieces.data();
    layout.first_positions = &tokens_before;
    layout.has_initial_state = continues ? &has_state : nullptr;
    return layout;
  }

 private:
  static constexpr std::uint8_t has_state = 1;
};

/// An error of a rank because another one has failed before: that one's says more.
class FollowedAnother final : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The connection of the ranks of a group, which a device makes.
class RankGroup {
 public:
  RankGroup() = default;
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;
  virtual ~RankGroup() = default;

  /// All ranks' exchanges, those that wait and later ones, end with an error. From any thread. Whether it is the first
  /// call.
  bool abort() {
    const bool first = !aborted_.exchange(true);
    end_exchanges();
    return first;
  }
  [[nodiscard]] bool aborted() const { return aborted_; }

 private:
  virtual void end_exchanges() = 0;

  std::atomic<bool> aborted_ = false;
};

/// One rank's end of it: a jrt::Communicator behind virtual functions.
template <class Execution>
class RankLink {
 public:
  using Part = std::function<jrt::Status(const Execution&)>;

  RankLink() = default;
  RankLink(const RankLink&) = delete;
  RankLink& operator=(const RankLink&) = delete;
  virtual ~RankLink() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  virtual jrt::Status all_gather(const void* send, void* receive, std::size_t bytes, const Execution& on) = 0;
  virtual jrt::Status exchange(std::span<const jrt::OutgoingBytes> outgoing, std::span<const jrt::IncomingBytes> incoming,
                               const Execution& on) = 0;
  virtual jrt::Status overlap(const Execution& on, const Part& transfers, const Part& work) = 0;
  virtual void abort() = 0;
};

/// By a communicator of the library.
template <class Execution, class C>
class LinkOf final : public RankLink<Execution> {
 public:
  using Part = typename RankLink<Execution>::Part;

  template <class... Arguments>
  explicit LinkOf(Arguments&&... arguments) : communicator_(std::forward<Arguments>(arguments)...) {}

  [[nodiscard]] int rank() const override { return communicator_.rank(); }
  [[nodiscard]] int size() const override { return communicator_.size(); }
  jrt::Status all_gather(const void* send, void* receive, std::size_t bytes, const Execution& on) override {
    return communicator_.all_gather(send, receive, bytes, on);
  }
  jrt::Status exchange(std::span<const jrt::OutgoingBytes> outgoing, std::span<const jrt::IncomingBytes> incoming,
                       const Execution& on) override {
    return communicator_.exchange(outgoing, incoming, on);
  }
  jrt::Status overlap(const Execution& on, const Part& transfers, const Part& work) override {
    if constexpr (requires { communicator_.overlap(on, transfers, work); }) {
      return communicator_.overlap(on, transfers, work);
    } else {
      const jrt::Status status = transfers(on);
      return status.ok() ? work(on) : status;
    }
  }
  void abort() override { communicator_.abort(); }

 private:
  C communicator_;
};

/// A link that exchanges nothing: with it, a rank makes all of its calls but the exchanges, with numbers that mean nothing.
template <class Execution>
class RehearsalLink final : public RankLink<Execution> {
 public:
  using Part = typename RankLink<Execution>::Part;

  RehearsalLink(int rank, int size) : rank_(rank), size_(size) {}

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  jrt::Status all_gather(const void* /*send*/, void* /*receive*/, std::size_t /*bytes*/, const Execution& /*on*/) override {
    return {};
  }
  jrt::Status exchange(std::span<const jrt::OutgoingBytes> /*outgoing*/, std::span<const jrt::IncomingBytes> /*incoming*/,
                       const Execution& /*on*/) override {
    return {};
  }
  jrt::Status overlap(const Execution& on, const Part& transfers, const Part& work) override {
    const jrt::Status status = transfers(on);
    return status.ok() ? work(on) : status;
  }
  void abort() override {}

 private:
  int rank_;
  int size_;
};

}  // namespace jrt_lm
