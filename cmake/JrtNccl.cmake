# SPDX-License-Identifier: Apache-2.0
# jrt::nccl: jrt::cuda and NCCL, where nccl.h and the library are found: in the system, in NCCL_ROOT, or in the wheel
# nvidia-nccl-cu13 (or -cu12) of the Python that CMake finds. Installed with the library's own package.
if(TARGET jrt::cuda AND NOT TARGET jrt::nccl)
  if(NOT JRT_NCCL_INCLUDE_DIR OR NOT JRT_NCCL_LIBRARY)
    set(nccl_of_wheel "")
    find_package(Python3 QUIET COMPONENTS Interpreter)
    if(Python3_FOUND)
      execute_process(COMMAND "${Python3_EXECUTABLE}" -c "import nvidia.nccl as n; print(list(n.__path__)[0], end='')"
                      OUTPUT_VARIABLE nccl_of_wheel ERROR_QUIET)
    endif()
    # Header and library of one place: the wheel's headers do not fit another version's library.
    find_library(JRT_NCCL_LIBRARY NAMES nccl libnccl.so.2 NAMES_PER_DIR HINTS "${NCCL_ROOT}" ENV NCCL_ROOT "${nccl_of_wheel}" PATH_SUFFIXES lib lib64
                 DOC "NCCL's library, for jrt::nccl")
    if(JRT_NCCL_LIBRARY)
      get_filename_component(nccl_lib_dir "${JRT_NCCL_LIBRARY}" DIRECTORY)
      find_path(JRT_NCCL_INCLUDE_DIR nccl.h HINTS "${nccl_lib_dir}/../include" "${NCCL_ROOT}/include" DOC "Folder of nccl.h")
    endif()
  endif()
  if(JRT_NCCL_INCLUDE_DIR AND JRT_NCCL_LIBRARY)
    add_library(jrt::nccl INTERFACE IMPORTED GLOBAL)
    target_include_directories(jrt::nccl SYSTEM INTERFACE "${JRT_NCCL_INCLUDE_DIR}")
    target_link_libraries(jrt::nccl INTERFACE jrt::cuda "${JRT_NCCL_LIBRARY}")
  endif()
endif()
