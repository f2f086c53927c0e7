// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tvm/ffi/any.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>

#include <cstdint>
#include <memory>
#include <string>

#include "jrt/kernels.hpp"
#include "jrt_bind/tensors.hpp"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include "jrt/execution/cuda.cuh"
#else
#include <sys/types.h>
#include <unistd.h>

#include "jrt/execution/cpu.hpp"
#include "jrt/thread_pool.hpp"
#endif

/// Where a call runs: the device that a module is compiled for, and how its functions are exported.
namespace jrt::bind {

#if defined(__CUDACC__)
inline constexpr DLDeviceType device_type = kDLCUDA;

inline void raise_if_failed(cudaError_t error) {
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw tvm::ffi::Error("RuntimeError", std::string("jrt: ") + cudaGetErrorString(error), "");
  }
}

/// Makes the tensors' device current for a call.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    raise_if_failed(cudaGetDevice(&before_));
    if (before_ != device) {
      raise_if_failed(cudaSetDevice(device));
      changed_ = true;
    }
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

/// Waits until the device has done what was enqueued.
inline void wait_for(const Cuda& on) {
  raise_if_failed(cudaStreamSynchronize(on.stream()));
}
#else
inline constexpr DLDeviceType device_type = kDLCPU;

/// A pool of threads that belongs to the calling thread, so that calls from several threads do not meet.
class OwnPool {
 public:
  OwnPool() = default;
  OwnPool(const OwnPool&) = delete;
  OwnPool& operator=(const OwnPool&) = delete;
  ~OwnPool() { forget_threads_of_parent(); }

  ThreadPool& of(int threads) {
    forget_threads_of_parent();
    if (!pool_ || threads_ != threads) {
      pool_ = nullptr;
      pool_ = std::make_unique<ThreadPool>(threads);
      threads_ = threads;
      process_ = getpid();
    }
    return *pool_;
  }

 private:
  /// After a fork the threads are there no more, and waiting for them would never end: what is left of the pool stays.
  void forget_threads_of_parent() {
    if (pool_ && process_ != getpid()) {
      static_cast<void>(pool_.release());
    }
  }

  std::unique_ptr<ThreadPool> pool_;
  int threads_ = 0;
  pid_t process_ = 0;
};

template <class Function>
auto on_device(int /*device*/, int threads, const Function& function) {
  if (threads <= 1) {
    return function(Cpu{});
  }
  thread_local OwnPool pool;
  return function(Cpu{pool.of(threads)});
}

template <class Execution>
void wait_for(const Execution& /*on*/) {}
#endif

/// Names of kernels, separated by "; ".
inline std::string name_of(const KernelKinds& kinds) {
  std::string names;
  const auto add = [&](bool has, const char* name) { names += has ? (names.empty() ? "" : "; ") + std::string(name) : ""; };
  add(kinds.hopper, "Hopper (sm_90a)");
  add(kinds.matrix_units, "portable, matrix units");
  add(kinds.ordinary_units, "portable, ordinary units");
#if defined(__AVX512F__)
  add(kinds.cpu, "CPU, AVX-512");
#elif defined(__AVX2__)
  add(kinds.cpu, "CPU, AVX2");
#elif defined(__AVX__)
  add(kinds.cpu, "CPU, AVX");
#elif defined(__SSE2__)
  add(kinds.cpu, "CPU, SSE2");
#elif defined(__ARM_NEON)
  add(kinds.cpu, "CPU, NEON");
#else
  add(kinds.cpu, "CPU");
#endif
  return names;
}

/// Body of an exported function: `function(arguments, count)`, whose errors reach Python.
template <class Function>
int exported(const TVMFFIAny* arguments, std::int32_t count, TVMFFIAny* result, const Function& function) {
  TVM_FFI_SAFE_CALL_BEGIN();
  const tvm::ffi::PackedArgs packed(reinterpret_cast<const tvm::ffi::AnyView*>(arguments), count);
  *reinterpret_cast<tvm::ffi::Any*>(result) = function(packed);
  TVM_FFI_SAFE_CALL_END();
}

}  // namespace jrt::bind

/// Exports a function of `tvm::ffi::PackedArgs` that returns what `tvm::ffi::Any` can hold, under the name that Python asks
/// for.
#define JRT_BIND_FUNCTION(name, ...)                                                                                   \
  extern "C" TVM_FFI_DLL_EXPORT int __tvm_ffi_##name(void*, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) { \
    return jrt::bind::exported(args, count, result, __VA_ARGS__);                                                      \
  }
