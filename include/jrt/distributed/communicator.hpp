// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <span>

#include "jrt/status.hpp"

/// What context-parallel calls need of the connection between ranks. Models: `ThreadCommunicator` (ranks are threads, on
/// the CPU backend), `NcclCommunicator` (a GPU each), and any of an engine's own.
namespace jrt {

/// Bytes for another rank, in memory that the execution argument's device can read.
struct OutgoingBytes {
  int to = 0;
  const void* data = nullptr;
  std::size_t bytes = 0;
};

/// Where the bytes of another rank go.
struct IncomingBytes {
  int from = 0;
  void* data = nullptr;
  std::size_t bytes = 0;
};

/// Requires:   `rank()`, from 0, and `size()`, the ranks of the group.
///             `all_gather(send, receive, bytes, on)`: `bytes` bytes of every rank, in rank order, into `receive`, which
///             holds size() · bytes; `send` may be this rank's place in `receive`. Called by all ranks with equal `bytes`.
///             `exchange(outgoing, incoming, on)`: all these transfers at once, at most one to and one from each rank,
///             never with itself; the other side's list has the counterpart of each. `abort()`: the calls of all ranks,
///             those that wait and later ones, end with an error.
/// Guarantees: transfers are ordered with the work of `on`: they read what was enqueued (or computed) before, and what
///             follows reads what arrived. A failure is a Status; nothing throws.
/// Optional:   `overlap(on, transfers, work)`: the Status of `transfers(beside)` and `work(on)`, both called once, where
///             `beside` is an execution argument of the same type whose work runs beside that of `on`: what either does
///             comes after what `on` did before, and what follows on `on` comes after both. Without it, a call does one
///             after the other. A failure of `transfers` leaves `work` out.
/// Tested by:  tests/distributed/
template <class C, class Execution>
concept Communicator = requires(C& communicator, const void* send, void* receive, std::size_t bytes,
                                std::span<const OutgoingBytes> outgoing, std::span<const IncomingBytes> incoming,
                                const Execution& on) {
  { communicator.rank() } -> std::convertible_to<int>;
  { communicator.size() } -> std::convertible_to<int>;
  { communicator.all_gather(send, receive, bytes, on) } -> std::same_as<Status>;
  { communicator.exchange(outgoing, incoming, on) } -> std::same_as<Status>;
  communicator.abort();
};

namespace detail {

/// No work of the caller's beside an exchange.
struct NoWork {
  Status operator()() const { return {}; }
};

template <class Execution, class Transfers, class Work>
Status one_after_the_other(const Execution& on, const Transfers& transfers, const Work& work) {
  const Status status = transfers(on);
  return status.ok() ? work(on) : status;
}

/// `transfers(execution)`, which may wait for other ranks, and `work(on)`, which needs nothing of it, nor it of that.
template <class C, class Execution, class Transfers, class Work>
Status overlapped(C& communicator, const Execution& on, const Transfers& transfers, const Work& work) {
  if constexpr (requires { communicator.overlap(on, transfers, work); }) {
    return communicator.overlap(on, transfers, work);
  } else {
    return one_after_the_other(on, transfers, work);
  }
}

}  // namespace detail

}  // namespace jrt
