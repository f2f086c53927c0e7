# SPDX-License-Identifier: Apache-2.0
# Flags of the project's own programs. Users of jrt::jrt see none of them.

add_library(jrt_developer INTERFACE)
target_link_libraries(jrt_developer INTERFACE jrt::jrt)
target_compile_options(
  jrt_developer
  INTERFACE -Wall
            -Wextra
            -Wpedantic
            -Wshadow
            -Wconversion
            -Wno-sign-conversion
            -Wold-style-cast
            -Wnon-virtual-dtor
            $<$<BOOL:${JRT_WARNINGS_AS_ERRORS}>:-Werror>
            $<$<BOOL:${JRT_NATIVE}>:-march=native>
            # GCC before 13 warns inside its own AVX-512 header (GCC bug 105593).
            $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-maybe-uninitialized>)
