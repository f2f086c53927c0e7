// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tvm/ffi/any.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <cstdint>
#include <optional>
#include <string>

#include "jrt/backward.hpp"
#include "jrt/decode.hpp"
#include "jrt/kernels.hpp"
#include "jrt/prefill.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"
#include "jrt_bind/arguments.hpp"
#include "jrt_bind/device.hpp"
#include "jrt_bind/fields.hpp"

/// What a module exports: one operation of one operator. Arguments are the operation's fields in the order that `fields`
/// tells, then the workspace and the number of threads.
namespace jrt::bind {

/// An operation's name, arguments and function.
#define JRT_BIND_OPERATION(name_, Args_, bytes_)                                        \
  template <class Config>                                                               \
  struct name_##_operation {                                                            \
    using Operator = Config;                                                            \
    using Args = Args_<Config>;                                                         \
    static constexpr const char* name = #name_;                                         \
    template <class Execution>                                                          \
    static std::size_t workspace_bytes(const Args& args, const Execution& on) {         \
      return jrt::bytes_(args, on);                                                     \
    }                                                                                   \
    template <class Execution>                                                          \
    static Status run(const Args& args, const Workspace& memory, const Execution& on) { \
      return jrt::name_(args, memory, on);                                              \
    }                                                                                   \
  };
JRT_BIND_OPERATION(prefill, PrefillArgs, prefill_workspace_bytes)
JRT_BIND_OPERATION(backward, BackwardArgs, backward_workspace_bytes)
JRT_BIND_OPERATION(accumulate, AccumulateArgs, accumulate_workspace_bytes)
JRT_BIND_OPERATION(decode_step, DecodeArgs, decode_workspace_bytes)
JRT_BIND_OPERATION(staged_step, StagedStepArgs, staged_workspace_bytes)
JRT_BIND_OPERATION(commit, CommitArgs, commit_workspace_bytes)
#undef JRT_BIND_OPERATION

/// The sequences that a call's arrays must have an element for.
template <class Args>
std::int64_t sequences_of(const Args& args) {
  if constexpr (requires { args.sequences; }) {
    if (args.sequences.cu_seqlens != nullptr) {
      return args.sequences.count;
    }
  }
  if constexpr (requires { args.query; }) {
    return args.query.batch;
  } else if constexpr (requires { args.input; }) {
    return args.input.batch;
  } else if constexpr (requires { args.staging; }) {
    return args.staging.sequences;
  } else {
    return args.key.batch;
  }
}

template <class Operation>
class BoundCall {
 public:
  explicit BoundCall(const tvm::ffi::PackedArgs& arguments) : reader_(Operation::name, arguments, device_type) {
    visit_fields(args_, reader_);
    std::int64_t channels = 0;
    std::int64_t taps = 0;
    if constexpr (requires {
                    Operation::Operator::kernel_width;
                    args_.input;
                  }) {
      channels = args_.input.dim;
      taps = Operation::Operator::kernel_width;
    }
    reader_.check_lengths(sequences_of(args_), channels, taps);
    workspace_ = reader_.next_workspace();
    threads_ = reader_.next_threads();
  }

  [[nodiscard]] std::int64_t workspace_bytes() const {
    return on_device(device(), threads_,
                     [this](const auto& on) { return static_cast<std::int64_t>(Operation::workspace_bytes(args_, on)); });
  }

  void run() const {
    reader_.check_memory();
    const Workspace memory{workspace_ ? data_of<void>(*workspace_) : nullptr,
                           workspace_ ? static_cast<std::size_t>(workspace_->numel()) : 0};
    raise_if_failed(on_device(device(), threads_, [&](const auto& on) { return Operation::run(args_, memory, on); }));
  }

  [[nodiscard]] tvm::ffi::String kernels() const {
    return on_device(device(), threads_, [this]<class Execution>(const Execution& on) {
      const KernelKinds kinds = kernels_of(args_, on);
      if (!kinds.any()) {
        raise_if_failed(jrt::detail::MixerBackend<typename Operation::Operator, Execution>::check(args_));
      }
      return tvm::ffi::String(name_of(kinds));
    });
  }

 private:
  [[nodiscard]] int device() const { return reader_.device_id() < 0 ? 0 : reader_.device_id(); }

  typename Operation::Args args_{};
  Reader reader_;
  std::optional<Tensor> workspace_;
  int threads_ = 1;
};

/// "name:kind,…;elements of a head's state;elements of a staged row".
template <class Operation>
tvm::ffi::String describe() {
  using Config = typename Operation::Operator;
  typename Operation::Args args{};
  NameList list;
  visit_fields(args, list);
  return list.names() + ";" + std::to_string(StateFormatOf<Config>::head_elements) + ";" +
         std::to_string(jrt::detail::staged_row_elements<Config>);
}

}  // namespace jrt::bind

/// Exports an operation of an operator under the names that the Python package looks up.
#define JRT_BIND_EXPORT(Config, operation)                                                                          \
  using BoundOperation = jrt::bind::operation##_operation<Config>;                                                  \
  JRT_BIND_FUNCTION(run, [](const auto& args) {                                                                     \
    jrt::bind::BoundCall<BoundOperation>(args).run();                                                               \
    return nullptr;                                                                                                 \
  })                                                                                                                \
  JRT_BIND_FUNCTION(workspace_bytes,                                                                                \
                    [](const auto& args) { return jrt::bind::BoundCall<BoundOperation>(args).workspace_bytes(); })  \
  JRT_BIND_FUNCTION(kernels, [](const auto& args) { return jrt::bind::BoundCall<BoundOperation>(args).kernels(); }) \
  JRT_BIND_FUNCTION(describe, [](const auto& /*args*/) { return jrt::bind::describe<BoundOperation>(); })
