# SPDX-License-Identifier: Apache-2.0
# Configures the project as someone does who builds it from source, and reads the presets.
file(REMOVE_RECURSE "${BINARY}")  # what an earlier run left says nothing of the default
execute_process(COMMAND "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${BINARY}" -G "${GENERATOR}" "-DCMAKE_CXX_COMPILER=${COMPILER}"
                        "-DCMAKE_PREFIX_PATH=${PREFIX}" -DJRT_BUILD_TESTS=OFF -DJRT_BUILD_EXAMPLES=OFF -DJRT_BUILD_BENCH=OFF
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
load_cache("${BINARY}" READ_WITH_PREFIX plain_ JRT_WARNINGS_AS_ERRORS)
if(NOT "${plain_JRT_WARNINGS_AS_ERRORS}" STREQUAL OFF)
  message(FATAL_ERROR "without a preset JRT_WARNINGS_AS_ERRORS is '${plain_JRT_WARNINGS_AS_ERRORS}', but must be OFF")
endif()

# Every preset has it, or inherits it from one before.
file(READ "${SOURCE}/CMakePresets.json" presets)
string(JSON count LENGTH "${presets}" configurePresets)
math(EXPR last "${count} - 1")
foreach(i RANGE ${last})
  string(JSON name GET "${presets}" configurePresets ${i} name)
  string(JSON value ERROR_VARIABLE none GET "${presets}" configurePresets ${i} cacheVariables JRT_WARNINGS_AS_ERRORS)
  if(none)
    string(JSON parent ERROR_VARIABLE none GET "${presets}" configurePresets ${i} inherits)
    set(value "${value_of_${parent}}")
  endif()
  set(value_of_${name} "${value}")
  if(NOT value STREQUAL "ON")
    message(FATAL_ERROR "preset ${name} has JRT_WARNINGS_AS_ERRORS = '${value}', but must have ON")
  endif()
endforeach()
