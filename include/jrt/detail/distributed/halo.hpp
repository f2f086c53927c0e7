// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/halo_plan.hpp"
#include "jrt/distributed/communicator.hpp"
#include "jrt/status.hpp"
#include "jrt/tensor_view.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// Rows of one or two tensors (keys and values, or inputs alone) that ranks send one another, in one block for each pair.
template <class Element>
struct RowTensors {
  TensorView<Element> first{};
  TensorView<Element> second{};  // empty if there is one

  [[nodiscard]] std::int64_t row_elements() const { return first.heads * first.dim + second.heads * second.dim; }
  [[nodiscard]] RowTensors slice(std::int64_t row, std::int64_t count) const {
    const auto part = [&](const auto& view) { return view.data == nullptr ? view : view.slice_tokens(row, count); };
    return {part(first), part(second)};
  }
};

template <class Element>
RowTensors<const Element> as_input(const RowTensors<Element>& rows) {
  return {rows.first, rows.second};
}

/// Rows of both tensors beside each other, contiguous, `count` of them, with the extents of `like`.
template <class Element, class Any>
RowTensors<Element> packed_rows(Element* memory, std::int64_t count, const RowTensors<Any>& like) {
  const std::int64_t row = like.row_elements();
  const auto view = [&](const auto& of, std::int64_t offset) {
    TensorView<Element> part = view_bthd(memory, {.tokens = count, .heads = of.heads, .dim = of.dim});
    part.token_stride = row;
    part.batch_stride = count * row;
    part.data = memory == nullptr ? nullptr : memory + offset;
    return part;
  };
  RowTensors<Element> rows;
  rows.first = view(like.first, 0);
  if (like.second.heads > 0) {
    rows.second = view(like.second, like.first.heads * like.first.dim);
  }
  return rows;
}

template <class Execution, class Element>
Status copy_rows(const RowTensors<const Element>& from, const RowTensors<Element>& to, const Execution& on) {
  return ContextBackend<Execution>::copy_two(from.first, to.first, from.second, to.second, on);
}
template <class Execution, class Element>
Status add_rows(const RowTensors<const Element>& from, const RowTensors<Element>& to, const Execution& on) {
  const auto add = [&](const auto& source, const auto& rows) {
    return rows.data == nullptr ? Status() : ContextBackend<Execution>::add_rows(source, rows, on);
  };
  const Status status = add(from.first, to.first);
  return status.ok() ? add(from.second, to.second) : status;
}

/// `function(edge, first row in the edges, first row in the halos)` for every edge.
template <class Function>
Status for_edges_of(const HaloPlan& plan, const Function& function) {
  Status status;
  std::int64_t row = 0;
  std::int64_t halo_row = 0;
  for (std::int64_t i = 0; status.ok() && i < plan.halos; ++i) {
    const HaloPlan::Edge edge = plan.edge(i);
    status = function(edge, row, halo_row);
    row += edge.halo + edge.tokens;
    halo_row += edge.halo;
  }
  return status;
}

/// The exchange of halos, and of their gradients back.
template <class Element, class Execution>
class HaloExchange {
 public:
  HaloExchange(const HaloPlan& plan, const RowTensors<const Element>& like, const Execution& on)
      : plan_(plan), like_(like), on_(on) {}

  void take(Arena& arena) {
    outgoing_ = arena.take<Element>(plan_.outgoing_rows * like_.row_elements());
    incoming_ = arena.take<Element>(plan_.incoming_rows * like_.row_elements());
  }
  /// Memory for the rows of all halos: what arrives itself, if it is in their order, as that of one sequence is.
  [[nodiscard]] RowTensors<Element> take_halos(Arena& arena) const {
    bool in_order = true;
    for (std::int64_t i = 0; i < plan_.incoming(); ++i) {
      const HaloPlan::Copy copy = plan_.copy(incoming_copies, i);
      in_order = in_order && copy.first == copy.block_row;
    }
    Element* const memory = in_order ? incoming_ : arena.take<Element>(plan_.halo_rows * like_.row_elements());
    return packed_rows(memory, plan_.halo_rows, like_);
  }

  /// The halos of this rank's pieces: `halos` has `plan.halo_rows` rows.
  template <class C>
  Status halos(const RowTensors<const Element>& local, const RowTensors<Element>& halos, C& communicator,
               const Execution& on) const {
    const auto sent = packed_rows(outgoing_, plan_.outgoing_rows, like_);
    const auto received = packed_rows(incoming_, plan_.incoming_rows, like_);
    Status status;
    for (std::int64_t i = 0; status.ok() && i < plan_.outgoing(); ++i) {
      const HaloPlan::Copy copy = plan_.copy(outgoing_copies, i);
      if (in_place(local, i) == nullptr) {
        status = copy_rows(local.slice(copy.first, copy.rows), sent.slice(copy.block_row, copy.rows), on);
      }
    }
    if (status.ok()) {
      status = exchange(
          outgoing_copies,
          [&](std::int64_t i, std::int64_t row) {
            const Element* const rows = in_place(local, i);
            return rows != nullptr ? rows : outgoing_ + row * like_.row_elements();
          },
          incoming_copies, incoming_, communicator, on);
    }
    return !status.ok() || halos.first.data == incoming_
               ? status
               : for_copies(incoming_copies, [&](const HaloPlan::Copy& copy) {
                   return copy_rows(as_input(received).slice(copy.block_row, copy.rows), halos.slice(copy.first, copy.rows),
                                    on);
                 });
  }

  /// Adds the gradients of halos to those of the tokens on their ranks.
  template <class C>
  Status gradients(const RowTensors<const Element>& halos, const RowTensors<Element>& local, C& communicator) const {
    const auto sent = packed_rows(incoming_, plan_.incoming_rows, like_);
    const auto received = packed_rows(outgoing_, plan_.outgoing_rows, like_);
    Status status;
    if (halos.first.data != incoming_) {
      status = for_copies(incoming_copies, [&](const HaloPlan::Copy& copy) {
        return copy_rows(halos.slice(copy.first, copy.rows), sent.slice(copy.block_row, copy.rows), on_);
      });
    }
    if (status.ok()) {
      status = exchange(
          incoming_copies,
          [&](std::int64_t /*first*/, std::int64_t row) -> const Element* {
            return incoming_ + row * like_.row_elements();
          },
          outgoing_copies, outgoing_, communicator, on_);
    }
    return !status.ok() ? status : for_copies(outgoing_copies, [&](const HaloPlan::Copy& copy) {
      return add_rows(as_input(received).slice(copy.block_row, copy.rows), local.slice(copy.first, copy.rows), on_);
    });
  }

 private:
  template <class Function>
  Status for_copies(HaloArray list, const Function& function) const {
    Status status;
    const std::int64_t count = list == outgoing_copies ? plan_.outgoing() : plan_.incoming();
    for (std::int64_t i = 0; status.ok() && i < count; ++i) {
      status = function(plan_.copy(list, i));
    }
    return status;
  }

  /// The rows of outgoing copy i where they are, if they need not be copied: of one tensor, contiguous, and all that its
  /// peer gets.
  [[nodiscard]] const Element* in_place(const RowTensors<const Element>& local, std::int64_t i) const {
    const TensorView<const Element>& view = local.first;
    const auto has_peer = [&](std::int64_t other, int peer) {
      return other >= 0 && other < plan_.outgoing() && plan_.copy(outgoing_copies, other).peer == peer;
    };
    const HaloPlan::Copy copy = plan_.copy(outgoing_copies, i);
    const bool contiguous = local.second.data == nullptr && view.token_stride == like_.row_elements() &&
                            (view.heads == 1 || view.head_stride == view.dim);
    return contiguous && !has_peer(i - 1, copy.peer) && !has_peer(i + 1, copy.peer) ? view.row(0, copy.first, 0) : nullptr;
  }

  /// Transfers of one block for each peer of a list, made by `transfer(n, peer, first copy, first row, rows)`.
  template <class Transfer>
  [[nodiscard]] int for_peers(HaloArray list, const Transfer& transfer) const {
    const std::int64_t count = list == outgoing_copies ? plan_.outgoing() : plan_.incoming();
    int peers = 0;
    for (std::int64_t i = 0; i < count;) {
      const HaloPlan::Copy first = plan_.copy(list, i);
      const std::int64_t first_copy = i;
      std::int64_t rows = 0;
      for (; i < count && plan_.copy(list, i).peer == first.peer; ++i) {
        rows += plan_.copy(list, i).rows;
      }
      transfer(peers++, first.peer, first_copy, first.block_row, rows);
    }
    return peers;
  }

  /// `send(first copy, first row)`: where the rows of a block begin.
  template <class Send, class C>
  Status exchange(HaloArray send_list, const Send& send, HaloArray receive_list, Element* receive, C& communicator,
                  const Execution& on) const {
    OutgoingBytes outgoing[HaloPlan::max_peers];
    IncomingBytes incoming[HaloPlan::max_peers];
    const std::int64_t row = like_.row_elements();
    const auto bytes = [&](std::int64_t rows) { return static_cast<std::size_t>(rows * row) * sizeof(Element); };
    const int sends = for_peers(send_list, [&](int n, int peer, std::int64_t copy, std::int64_t first, std::int64_t rows) {
      outgoing[n] = {peer, send(copy, first), bytes(rows)};
    });
    const int receives = for_peers(receive_list, [&](int n, int peer, std::int64_t, std::int64_t first, std::int64_t rows) {
      incoming[n] = {peer, receive + first * row, bytes(rows)};
    });
    if (sends + receives == 0) {
      return {};
    }
    return communicator.exchange(std::span<const OutgoingBytes>(outgoing, static_cast<std::size_t>(sends)),
                                 std::span<const IncomingBytes>(incoming, static_cast<std::size_t>(receives)), on);
  }

  const HaloPlan& plan_;
  RowTensors<const Element> like_;
  const Execution& on_;
  Element* outgoing_ = nullptr;
  Element* incoming_ = nullptr;
};

}  // namespace jrt::detail
