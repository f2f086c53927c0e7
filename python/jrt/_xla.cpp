// SPDX-License-Identifier: Apache-2.0
// What stands between XLA's calls and a compiled operation: XLA passes inputs, then outputs; the operation wants a place
// for every argument that it knows, None where there is nothing, and at the end the number of threads.
#include <tvm/ffi/any.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

namespace ffi = tvm::ffi;

constexpr std::size_t most_arguments = 64;

/// Refuses more than there is room for.
void check_count(std::size_t count) {
  if (count > most_arguments) {
    throw ffi::Error("ValueError", "jrt.jax: an operation has more arguments than calls from XLA have room for.", "");
  }
}

/// Calls `function` with the arguments in their places: `places` has for each of them its index in what is given, or -1
/// where `numbers` has it or None.
void call(const ffi::Function& function, const ffi::Shape& places, const std::vector<ffi::Any>& numbers,
          std::int64_t threads, const ffi::AnyView* given, ffi::Any* result) {
  ffi::AnyView arguments[most_arguments + 1];
  std::int32_t count = 0;
  for (const std::int64_t place : places) {
    if (place >= 0) {
      arguments[count] = given[place];
    } else {
      arguments[count] = numbers[static_cast<std::size_t>(count)];
    }
    ++count;
  }
  arguments[count++] = threads;
  function.CallPacked(arguments, count, result);
}

/// A function of inputs and outputs, as XLA passes them.
ffi::Function arranged(ffi::Function function, ffi::Shape places, ffi::Array<ffi::Any> numbers, std::int64_t threads) {
  check_count(places.size());
  std::vector<ffi::Any> kept(numbers.begin(), numbers.end());
  return ffi::Function::FromPacked(
      [function, places, kept = std::move(kept), threads](ffi::PackedArgs given, ffi::Any* result) {
        call(function, places, kept, threads, given.data(), result);
      });
}

/// Bytes of workspace for tensors that do not exist yet.
std::int64_t workspace_bytes(ffi::Function function, ffi::Shape places, ffi::Array<ffi::Any> numbers, std::int64_t threads,
                             std::int64_t device_type, ffi::Array<ffi::Shape> shapes, ffi::Array<DLDataType> types) {
  alignas(64) static char somewhere[64];  // what tensors point to that nobody reads; null would mean that they are left out
  std::vector<DLTensor> tensors(shapes.size());
  std::vector<std::vector<std::int32_t>> lengths(shapes.size());
  std::vector<std::vector<std::int64_t>> strides(shapes.size());
  check_count(places.size());
  check_count(shapes.size());
  ffi::AnyView given[most_arguments];
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const ffi::Shape shape = shapes[static_cast<std::int64_t>(i)];
    strides[i].assign(shape.size(), 1);
    for (std::size_t axis = shape.size(); axis-- > 1;) {
      strides[i][axis - 1] = strides[i][axis] * shape[axis];
    }
    const DLDataType type = types[static_cast<std::int64_t>(i)];
    void* data = somewhere;
    if (type.code == kDLInt && type.bits == 32) {  // lengths and offsets: as if there were no tokens
      lengths[i].assign(static_cast<std::size_t>(shape.Product()) + 1, 0);
      data = lengths[i].data();
    }
    tensors[i] = {data, {static_cast<DLDeviceType>(device_type), 0}, static_cast<std::int32_t>(shape.size()),
                  type, const_cast<std::int64_t*>(shape.data()),     strides[i].data(),
                  0};
    given[i] = &tensors[i];
  }
  ffi::Any result;
  call(function, places, {numbers.begin(), numbers.end()}, threads, given, &result);
  return result.cast<std::int64_t>();
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(arranged, arranged)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(workspace_bytes, workspace_bytes)
