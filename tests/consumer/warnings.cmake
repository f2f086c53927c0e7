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
execute_process(COMMAND "${CMAKE_COMMAND}" --list-presets WORKING_DIRECTORY "${SOURCE}" OUTPUT_VARIABLE presets
                        COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "\"[a-z]+\"" presets "${presets}")
if(NOT presets)
  message(FATAL_ERROR "no presets were found")
endif()
foreach(preset IN LISTS presets)
  string(REPLACE "\"" "" preset "${preset}")
  execute_process(COMMAND "${CMAKE_COMMAND}" --preset "${preset}" -N WORKING_DIRECTORY "${SOURCE}" OUTPUT_VARIABLE variables
                          COMMAND_ERROR_IS_FATAL ANY)
  if(NOT variables MATCHES "JRT_WARNINGS_AS_ERRORS=\"ON\"")
    message(FATAL_ERROR "preset ${preset} does not set JRT_WARNINGS_AS_ERRORS:\n${variables}")
  endif()
endforeach()
