# SPDX-License-Identifier: Apache-2.0
# Flags of the project's own programs. Users of jrt::jrt see none of them.

add_library(jrt_developer INTERFACE)
target_link_libraries(jrt_developer INTERFACE jrt::jrt $<$<BOOL:${JRT_NATIVE}>:jrt::native>)
set(JRT_CXX_OPTIONS
    -Wall
    -Wextra
    -Wpedantic
    -Wshadow
    -Wconversion
    -Wno-sign-conversion
    -Wold-style-cast
    -Wnon-virtual-dtor
    $<$<BOOL:${JRT_WARNINGS_AS_ERRORS}>:-Werror>
    # GCC before 13 warns inside its own AVX-512 header (GCC bug 105593).
    $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-maybe-uninitialized;-Wno-uninitialized>)
set(JRT_CUDA_OPTIONS -Xcompiler=-Wall,-Wextra,-Wshadow
                     $<$<BOOL:${JRT_WARNINGS_AS_ERRORS}>:-Werror=all-warnings -Xcompiler=-Werror>)
target_compile_options(jrt_developer INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${JRT_CXX_OPTIONS}>
                                               $<$<COMPILE_LANGUAGE:CUDA>:${JRT_CUDA_OPTIONS}>)

# The project's own CUDA programs are built where there is a CUDA compiler. jrt_cuda_developer exists then.
include(CheckLanguage)
check_language(CUDA)
if(CUDAToolkit_FOUND AND CMAKE_CUDA_COMPILER AND JRT_CUDA)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    # The oldest that works; newer GPUs compile its PTX when a program starts.
    set(CMAKE_CUDA_ARCHITECTURES 80 CACHE STRING "Architectures of the project's own CUDA programs")
  endif()
  enable_language(CUDA)
  add_library(jrt_cuda_developer INTERFACE)
  target_link_libraries(jrt_cuda_developer INTERFACE jrt_developer jrt::cuda)
  # For machines that cannot run kernels: whether everything compiles shows without the assembler, in half the time.
  if(JRT_CUDA_COMPILE_ONLY)
    message(STATUS "JRT_CUDA_COMPILE_ONLY: CUDA programs, benchmarks too, become slow PTX, not code for ${CMAKE_CUDA_ARCHITECTURES}")
    set(CMAKE_CUDA_ARCHITECTURES 80-virtual)
    target_compile_options(jrt_cuda_developer INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcicc -O1>")
  endif()
endif()
