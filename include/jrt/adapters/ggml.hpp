// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !defined(GGML_MAX_DIMS)
#error "jrt/adapters/ggml.hpp: include your own ggml.h before it; the library has none."
#elif GGML_MAX_DIMS != 4
#error "jrt/adapters/ggml.hpp: tensors of this ggml do not have four dimensions, for which the adapter is written."
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "jrt/decode.hpp"
#include "jrt/execution/cpu.hpp"
#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/numeric.hpp"
#include "jrt/prefill.hpp"
#include "jrt/status.hpp"
#include "jrt/team.hpp"
#include "jrt/tensor_view.hpp"
#include "jrt/workspace.hpp"

/// The library's mixers as nodes of a ggml graph (`ggml_custom_4d`), run by ggml's own threads. A dimension's place in
/// ggml's `ne` is counted from the innermost: queries are ne = (d, heads, tokens, batch), inputs of a convolution ne =
/// (channels, tokens, batch). What is in another order is brought into it by `ggml_permute`, which copies nothing.
///
/// The file that computes the graph's nodes also includes the CPU backend of the mixers that it uses (jrt/cpu/…).
namespace jrt::ggml {

/// ggml's name of an element type.
template <Element T>
inline constexpr ggml_type type_of = std::is_same_v<T, float>    ? GGML_TYPE_F32
                                     : std::is_same_v<T, double> ? GGML_TYPE_F64
                                     : std::is_same_v<T, Half>   ? GGML_TYPE_F16
                                                                 : GGML_TYPE_BF16;

/// A tensor with ne = (dim, heads, tokens, batch) as a view. Its data may not be allocated yet. Errors, with `view`
/// unchanged: another type than T, values of a row that do not follow one another, strides that are no multiple of T.
template <class T>
Status view_of(const char* name, const ggml_tensor& tensor, TensorView<T>& view) {
  using E = std::remove_const_t<T>;
  constexpr auto bytes = static_cast<std::int64_t>(sizeof(E));
  if (tensor.type != type_of<E>) {
    return Status::error(StatusCode::invalid_argument, "ggml: argument '%s' has type %s, but must have %s.", name,
                         ggml_type_name(tensor.type), ggml_type_name(type_of<E>));
  }
  std::int64_t strides[4];
  for (int i = 0; i < 4; ++i) {
    const auto stride = static_cast<std::int64_t>(tensor.nb[i]);
    strides[i] = stride / bytes;
    if (tensor.ne[i] > 1 && (stride % bytes != 0 || (i == 0 && stride != bytes))) {
      return Status::error(StatusCode::invalid_argument, "ggml: argument '%s' has nb[%d] = %lld, but must have %s %lld.",
                           name, i, static_cast<long long>(stride), i == 0 ? "one element's" : "a multiple of",
                           static_cast<long long>(bytes));
    }
  }
  view = {static_cast<T*>(tensor.data),
          tensor.ne[3],
          tensor.ne[2],
          tensor.ne[1],
          tensor.ne[0],
          strides[3],
          strides[2],
          strides[1]};
  return {};
}

/// What the nodes of one graph share: it outlives them. An engine gives it memory after all nodes have been added, and
/// looks at `status` after the graph has been computed.
struct Session {
  /// `threads`: how many will compute the graph, at most.
  explicit Session(int threads) : team(threads) {}

  Team team;
  std::size_t workspace_bytes = 0;  ///< what the nodes added so far need
  Workspace workspace{};            ///< memory for one node at a time
  /// The first error of a node since the engine has last reset this. The output of that node, and of every node after it,
  /// is NaN; their states are unchanged.
  Status status;
};

/// Inputs of an attention: ne = (d, heads, tokens, batch), values with dv.
struct AttentionTensors {
  ggml_tensor* query = nullptr;
  ggml_tensor* key = nullptr;
  ggml_tensor* value = nullptr;
  ggml_tensor* key_encoder = nullptr;    ///< for masks that read the encoder region
  ggml_tensor* value_encoder = nullptr;  ///< likewise
};

/// Inputs of a convolution: ne = (channels, tokens, batch).
struct ConvolutionTensors {
  ggml_tensor* input = nullptr;
  ggml_tensor* gate = nullptr;    ///< optional
  ggml_tensor* weight = nullptr;  ///< ne = (K, channels), contiguous
  ggml_tensor* bias = nullptr;    ///< ne = (channels), contiguous; optional
};

namespace detail {

template <class Args>
struct ConfigOf;
template <template <class> class Args, class Config>
struct ConfigOf<Args<Config>> {
  using type = Config;
};

template <class Config, class On>
std::size_t workspace_bytes(const PrefillArgs<Config>& args, const On& on) {
  return prefill_workspace_bytes(args, on);
}
template <class Config, class On>
std::size_t workspace_bytes(const DecodeArgs<Config>& args, const On& on) {
  return decode_workspace_bytes(args, on);
}
template <class Config, class On>
std::size_t workspace_bytes(const StagedStepArgs<Config>& args, const On& on) {
  return staged_workspace_bytes(args, on);
}
template <class Config, class On>
Status run(const PrefillArgs<Config>& args, const Workspace& workspace, const On& on) {
  return prefill(args, workspace, on);
}
template <class Config, class On>
Status run(const DecodeArgs<Config>& args, const Workspace& workspace, const On& on) {
  return decode_step(args, workspace, on);
}
template <class Config, class On>
Status run(const StagedStepArgs<Config>& args, const Workspace& workspace, const On& on) {
  return staged_step(args, workspace, on);
}

/// Reads tensors of one call. Those of narrower types are converted into an arena, or, without a team, only counted there.
class Inputs {
 public:
  Inputs(jrt::detail::Arena& arena, Team* team) : arena_(arena), team_(team) {}

  [[nodiscard]] const Status& status() const { return status_; }

  /// The next source of the node, if `given`.
  template <class E>
  void read(const char* name, const ggml_tensor* source, TensorView<const E>& view) {
    if (!status_.ok()) {
      return;
    }
    constexpr bool wide = sizeof(E) >= 4;
    const ggml_type type = source->type;
    if (wide && type == GGML_TYPE_F16) {
      convert_from<Half>(name, *source, view);
    } else if (wide && type == GGML_TYPE_BF16) {
      convert_from<BFloat16>(name, *source, view);
    } else if (sizeof(E) == 8 && type == GGML_TYPE_F32) {
      convert_from<float>(name, *source, view);
    } else {
      status_ = view_of(name, *source, view);
    }
  }

  /// Channels: ne = (channels, tokens, batch).
  template <class E>
  void read_channels(const char* name, const ggml_tensor* source, TensorView<const E>& view) {
    TensorView<const E> as_rows;
    read(name, source, as_rows);
    equal(name, 3, source->ne[3], 1);
    view = {as_rows.data, as_rows.tokens,       as_rows.heads,       1,
            as_rows.dim,  as_rows.token_stride, as_rows.head_stride, as_rows.dim};
  }

  /// Parameters: `rows` rows of `dim` numbers, contiguous.
  template <class E>
  void read_parameters(const char* name, const ggml_tensor* source, std::int64_t dim, std::int64_t rows, const E*& data) {
    TensorView<const E> as_rows;
    read(name, source, as_rows);
    equal(name, 0, source->ne[0], dim);
    equal(name, 1, source->ne[1], rows);
    if (status_.ok() && rows > 1 && as_rows.head_stride != dim) {
      status_ = Status::error(StatusCode::invalid_argument, "ggml: argument '%s' has nb[1] = %lld, but must be contiguous.",
                              name, static_cast<long long>(source->nb[1]));
    }
    data = as_rows.data;
  }

 private:
  void equal(const char* name, int dimension, std::int64_t value, std::int64_t expected) {
    if (status_.ok() && value != expected) {
      status_ = Status::error(StatusCode::invalid_argument, "ggml: argument '%s' has ne[%d] = %lld, but must have %lld.",
                              name, dimension, static_cast<long long>(value), static_cast<long long>(expected));
    }
  }

  template <class From, class E>
  void convert_from(const char* name, const ggml_tensor& source, TensorView<const E>& view) {
    TensorView<const From> from;
    status_ = view_of(name, source, from);
    if (!status_.ok()) {
      return;
    }
    const std::int64_t rows = from.batch * from.tokens * from.heads;
    E* const to = arena_.take<E>(rows * from.dim);
    view = view_bthd<const E>(to, {from.batch, from.tokens, from.heads, from.dim});
    if (team_ == nullptr || from.data == nullptr) {
      return;
    }
    const std::int64_t tasks = 4 * std::int64_t{team_->concurrency()};
    team_->run(tasks, [&](std::int64_t task, int /*worker*/) {
      for (std::int64_t row = rows * task / tasks; row < rows * (task + 1) / tasks; ++row) {
        const std::int64_t token = row / from.heads;
        const From* const values = from.row(token / from.tokens, token % from.tokens, row % from.heads);
        for (std::int64_t c = 0; c < from.dim; ++c) {
          to[row * from.dim + c] = convert<E>(values[c]);
        }
      }
    });
  }

  jrt::detail::Arena& arena_;
  Team* team_;
  Status status_;
};

}  // namespace detail

/// A call of the library as a node of a graph: `Args` is `PrefillArgs`, `DecodeArgs` or `StagedStepArgs` of any mixer. The
/// engine sets what is no tensor in `args` (states, sequences, scale, …), and may change it from one computation of the
/// graph to the next. The node must outlive the graph, at its address.
///
///     jrt::ggml::Session session(n_threads);
///     jrt::ggml::Node<jrt::DecodeArgs<Config>> attention;
///     attention.args.source = {pool, slots};
///     ggml_tensor* y = attention.add(context, session, {.query = q, .key = k, .value = v});
///     …                                                                 // the rest of the graph, and memory for it
///     session.workspace = {memory, session.workspace_bytes};
///     ggml_graph_compute(graph, &plan);
///     if (!session.status) { … }
///
/// **Types.** Outputs have the operator's element type, and so have inputs, or a narrower one: tensors of 16 bits beside an
/// operator of float (and float beside double) are converted, exactly, into the session's workspace in every call, 4 (8)
/// bytes an element. So ggml's usual query in F32 with keys and values in F16 is an operator of float. Quantised tensors,
/// and types that the element type cannot hold, are refused.
///
/// **Errors.** A callback of ggml cannot fail, so a node that does fills its output with NaN and says why in
/// `Session::status`.
template <class Args>
class Node {
 public:
  using Config = typename detail::ConfigOf<Args>::type;
  using Element = typename Args::Element;
  using Tensors = std::conditional_t<ConvolutionConfig<Config>, ConvolutionTensors, AttentionTensors>;

  Args args{};

  Node() = default;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  /// Adds the node to a context and returns its output: ne = (dv, query heads, tokens, batch) or (channels, tokens, batch).
  /// Raises `session.workspace_bytes` to what the call needs; set states and sequences before. Null, with
  /// `session.status`, if query, key, value or input is missing; all else that is wrong shows when the graph is computed.
  ggml_tensor* add(ggml_context* context, Session& session, const Tensors& tensors) {
    session_ = &session;
    if (const char* const missing = missing_of(tensors); missing != nullptr) {
      session.status = Status::error(StatusCode::invalid_argument, "ggml: argument '%s' is missing: it is null.", missing);
      return nullptr;
    }
    ggml_tensor* given[5];
    int count = 0;
    for_inputs(tensors, [&](ggml_tensor* tensor, bool& is_given) {
      is_given = tensor != nullptr;
      if (is_given) {
        given[count++] = tensor;
      }
    });
    const std::int64_t* const ne = first_of(tensors)->ne;
    ggml_tensor* output = nullptr;
    if constexpr (ConvolutionConfig<Config>) {
      output =
          ggml_custom_4d(context, type_of<Element>, ne[0], ne[1], ne[2], 1, given, count, &compute, GGML_N_TASKS_MAX, this);
    } else {
      output = ggml_custom_4d(context, type_of<Element>, tensors.value->ne[0], ne[1], ne[2], ne[3], given, count, &compute,
                              GGML_N_TASKS_MAX, this);
    }
    Args call = args;
    jrt::detail::Arena counting;
    if (read(*output, call, counting, nullptr).ok()) {
      const std::size_t bytes = counting.bytes_needed() + detail::workspace_bytes(call, Cpu{session.team});
      session.workspace_bytes = bytes > session.workspace_bytes ? bytes : session.workspace_bytes;
    }
    return output;
  }

 private:
  static const char* missing_of(const AttentionTensors& tensors) {
    return tensors.query == nullptr   ? "query"
           : tensors.key == nullptr   ? "key"
           : tensors.value == nullptr ? "value"
                                      : nullptr;
  }
  static const char* missing_of(const ConvolutionTensors& tensors) { return tensors.input == nullptr ? "input" : nullptr; }

  static ggml_tensor* first_of(const AttentionTensors& tensors) { return tensors.query; }
  static ggml_tensor* first_of(const ConvolutionTensors& tensors) { return tensors.input; }

  /// `function(tensor, flag)` for every input; a node's sources are those that are given, in this order.
  template <class Function>
  void for_inputs(const AttentionTensors& tensors, const Function& function) {
    ggml_tensor* const all[] = {tensors.query, tensors.key, tensors.value, tensors.key_encoder, tensors.value_encoder};
    for (int i = 0; i < 5; ++i) {
      function(all[i], given_[i]);
    }
  }
  template <class Function>
  void for_inputs(const ConvolutionTensors& tensors, const Function& function) {
    ggml_tensor* const all[] = {tensors.input, tensors.gate, tensors.weight, tensors.bias};
    for (int i = 0; i < 4; ++i) {
      function(all[i], given_[i]);
    }
  }

  static void compute(ggml_tensor* output, int thread, int threads, void* node) {
    auto& self = *static_cast<Node*>(node);
    Session& session = *self.session_;
    const Status status =
        session.team.enter(thread, threads, [&] { return session.status.ok() ? self.run(*output) : session.status; });
    if (thread == 0 && !status.ok()) {
      session.status = status;
      std::memset(output->data, 0xff, ggml_nbytes(output));  // a NaN in every type of floating-point numbers
    }
  }

  /// In thread 0, while the others serve.
  Status run(ggml_tensor& output) {
    const Workspace& workspace = session_->workspace;
    Args call = args;
    jrt::detail::Arena counting;
    Status status = read(output, call, counting, nullptr);
    const std::size_t converted = counting.bytes_needed();
    if (status.ok() && converted > 0) {
      if (workspace.data == nullptr || workspace.bytes < converted) {
        return Status::error(StatusCode::invalid_argument,
                             "ggml: the session's workspace has %zu bytes, but %zu are needed for tensors in 16 bits.",
                             workspace.bytes, converted);
      }
      jrt::detail::Arena arena(workspace);
      status = read(output, call, arena, &session_->team);
    }
    const Workspace rest{converted == 0 ? workspace.data : static_cast<std::byte*>(workspace.data) + converted,
                         workspace.bytes - converted};
    return status.ok() ? detail::run(call, rest, Cpu{session_->team}) : status;
  }

  /// Sets the tensors of a call.
  Status read(ggml_tensor& output, Args& call, jrt::detail::Arena& arena, Team* team) const {
    detail::Inputs inputs(arena, team);
    ggml_tensor* const* source = output.src;
    if constexpr (ConvolutionConfig<Config>) {
      inputs.read_channels("input", *source++, call.input);
      if (given_[1]) {
        inputs.read_channels("gate", *source++, call.gate);
      }
      if (given_[2]) {
        inputs.read_parameters("weight", *source++, Config::kernel_width, call.input.dim, call.weight);
      }
      if (given_[3]) {
        inputs.read_parameters("bias", *source++, call.input.dim, 1, call.bias);
      }
    } else {
      inputs.read("query", *source++, call.query);
      inputs.read("key", *source++, call.key);
      inputs.read("value", *source++, call.value);
      if constexpr (requires { call.key_encoder; }) {
        if (given_[3]) {
          inputs.read("key_encoder", *source++, call.key_encoder);
        }
        if (given_[4]) {
          inputs.read("value_encoder", *source++, call.value_encoder);
        }
      } else if (given_[3] || given_[4]) {
        return Status::error(StatusCode::invalid_argument,
                             "ggml: argument '%s' is given, but this operation has no encoder region.",
                             given_[3] ? "key_encoder" : "value_encoder");
      }
    }
    TensorView<Element> rows;
    const Status status = inputs.status().ok() ? view_of("output", output, rows) : inputs.status();
    call.output = rows;
    if constexpr (ConvolutionConfig<Config>) {
      call.output = {rows.data, rows.tokens, rows.heads, 1, rows.dim, rows.token_stride, rows.head_stride, rows.dim};
    }
    return status;
  }

  Session* session_ = nullptr;
  bool given_[5] = {};
};

}  // namespace jrt::ggml
