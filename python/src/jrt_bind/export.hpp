// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tvm/ffi/extra/c_env_api.h>

#include <cstdint>
#include <optional>
#include <string>

#include "jrt/backward.hpp"
#include "jrt/decode.hpp"
#include "jrt/prefill.hpp"
#include "jrt/status.hpp"
#include "jrt/version.hpp"
#include "jrt/workspace.hpp"
#include "jrt_bind/arguments.hpp"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include "jrt/execution/cuda.cuh"
#else
#include "jrt/execution/cpu.hpp"
#include "jrt/thread_pool.hpp"
#endif

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

#if defined(__CUDACC__)
inline constexpr DLDeviceType device_type = kDLCUDA;

/// Makes the tensors' device current for a call.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess || (before_ != device && cudaSetDevice(device) != cudaSuccess)) {
      throw tvm::ffi::Error("RuntimeError", std::string("jrt: ") + cudaGetErrorString(cudaGetLastError()), "");
    }
    changed_ = before_ != device;
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  ~DeviceScope() {
    if (changed_) {
      static_cast<void>(cudaSetDevice(before_));
    }
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <class Function>
auto on_device(int device, int /*threads*/, const Function& function) {
  const DeviceScope scope(device);
  const Cuda on{static_cast<cudaStream_t>(TVMFFIEnvGetStream(kDLCUDA, device))};
  return function(on);
}
#else
inline constexpr DLDeviceType device_type = kDLCPU;

/// On the threads of a pool that belongs to the calling thread, so that calls from several threads do not meet.
template <class Function>
auto on_device(int /*device*/, int threads, const Function& function) {
  if (threads <= 1) {
    return function(Cpu{});
  }
  thread_local std::optional<ThreadPool> pool;
  if (!pool || pool->concurrency() != threads) {
    pool.emplace(threads);
  }
  return function(Cpu{*pool});
}
#endif

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
  BoundCall(const TVMFFIAny* arguments, std::int32_t count)
      : reader_(Operation::name, {reinterpret_cast<const tvm::ffi::AnyView*>(arguments), count}, device_type) {
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
    workspace_ = reader_.next_tensor_of_bytes("workspace");
    reader_("threads", threads_);
    if (workspace_ && !workspace_->IsContiguous()) {
      refuse("%s: argument 'workspace' must be contiguous.", Operation::name);
    }
  }

  [[nodiscard]] std::int64_t workspace_bytes() const {
    return on_device(device(), threads(),
                     [this](const auto& on) { return static_cast<std::int64_t>(Operation::workspace_bytes(args_, on)); });
  }

  void run() const {
    const Workspace memory{workspace_ ? data_of<void>(*workspace_) : nullptr,
                           workspace_ ? static_cast<std::size_t>(workspace_->numel()) : 0};
    const Status status = on_device(device(), threads(), [&](const auto& on) { return Operation::run(args_, memory, on); });
    if (!status.ok()) {
      const bool argument = status.code() == StatusCode::invalid_argument;
      throw tvm::ffi::Error(argument ? "ValueError" : "RuntimeError", std::string(status.message()), "");
    }
  }

 private:
  [[nodiscard]] int device() const { return reader_.device_id() < 0 ? 0 : reader_.device_id(); }
  [[nodiscard]] int threads() const { return threads_ < 1 ? 1 : static_cast<int>(threads_); }

  typename Operation::Args args_{};
  Reader reader_;
  std::optional<Tensor> workspace_;
  std::int64_t threads_ = 1;
};

template <class Operation>
std::string fields() {
  typename Operation::Args args{};
  NameList list;
  visit_fields(args, list);
  return list.names();
}

}  // namespace jrt::bind

/// Exports an operation of an operator under the names that the Python package looks up.
#define JRT_BIND_EXPORT(Config, operation)                                                                           \
  extern "C" {                                                                                                       \
  TVM_FFI_DLL_EXPORT int __tvm_ffi_run(void*, const TVMFFIAny* args, int32_t count, TVMFFIAny*) {                    \
    TVM_FFI_SAFE_CALL_BEGIN();                                                                                       \
    jrt::bind::BoundCall<jrt::bind::operation##_operation<Config>>(args, count).run();                               \
    TVM_FFI_SAFE_CALL_END();                                                                                         \
  }                                                                                                                  \
  TVM_FFI_DLL_EXPORT int __tvm_ffi_workspace_bytes(void*, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) { \
    TVM_FFI_SAFE_CALL_BEGIN();                                                                                       \
    *reinterpret_cast<tvm::ffi::Any*>(result) =                                                                      \
        jrt::bind::BoundCall<jrt::bind::operation##_operation<Config>>(args, count).workspace_bytes();               \
    TVM_FFI_SAFE_CALL_END();                                                                                         \
  }                                                                                                                  \
  TVM_FFI_DLL_EXPORT int __tvm_ffi_describe(void*, const TVMFFIAny*, int32_t, TVMFFIAny* result) {                   \
    TVM_FFI_SAFE_CALL_BEGIN();                                                                                       \
    const std::string text = jrt::bind::fields<jrt::bind::operation##_operation<Config>>() + ";" +                   \
                             std::to_string(jrt::StateFormatOf<Config>::head_elements);                              \
    *reinterpret_cast<tvm::ffi::Any*>(result) = tvm::ffi::String(text);                                              \
    TVM_FFI_SAFE_CALL_END();                                                                                         \
  }                                                                                                                  \
  }
