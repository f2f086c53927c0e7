# SPDX-License-Identifier: Apache-2.0
# What users do with the library and its build: projects of theirs, with rules of their own.
set(here "${CMAKE_CURRENT_SOURCE_DIR}/consumer")

# A user's project builds against the installed package, as a subdirectory, and through FetchContent.
add_test(NAME consumer/install COMMAND ${CMAKE_COMMAND} --install "${PROJECT_BINARY_DIR}" --prefix
                                       "${CMAKE_CURRENT_BINARY_DIR}/prefix")
set_tests_properties(consumer/install PROPERTIES FIXTURES_SETUP installed)
foreach(from IN ITEMS package subdirectory fetch)
  add_test(NAME consumer/${from}
           COMMAND ${CMAKE_CTEST_COMMAND} --build-and-test "${here}"
                   "${CMAKE_CURRENT_BINARY_DIR}/consumer_${from}" --build-generator "${CMAKE_GENERATOR}" --build-options
                   "-DJRT_FROM=${from}" "-DJRT_SOURCE=${PROJECT_SOURCE_DIR}"
                   "-DCMAKE_PREFIX_PATH=${CMAKE_CURRENT_BINARY_DIR}/prefix;${CMAKE_PREFIX_PATH}"
                   "-DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}" --test-command consumer)
  set_tests_properties(consumer/${from} PROPERTIES FIXTURES_REQUIRED installed)
endforeach()

# Without exceptions and run-time type information.
add_executable(consumer_no_exceptions consumer/no_exceptions.cpp)
target_link_libraries(consumer_no_exceptions PRIVATE jrt_developer)
target_compile_options(consumer_no_exceptions PRIVATE -O1 -fno-exceptions -fno-rtti)
add_test(NAME consumer/no_exceptions COMMAND consumer_no_exceptions)

# An operator that one file compiles and others call, through headers without a backend.
add_executable(consumer_compiled_once consumer/compiled_once/main.cpp consumer/compiled_once/operator.cpp)
target_link_libraries(consumer_compiled_once PRIVATE jrt_developer)
add_test(NAME consumer/compiled_once COMMAND consumer_compiled_once)

# Whatever public header comes first: in C++17 it says once what is missing. version.hpp serves any language.
add_test(NAME consumer/older_language
         COMMAND ${CMAKE_COMMAND} "-DCOMPILER=${CMAKE_CXX_COMPILER}"
                 "-DCUDA_COMPILER=$<$<TARGET_EXISTS:jrt_cuda_developer>:${CMAKE_CUDA_COMPILER}>"
                 "-DINCLUDE=${PROJECT_SOURCE_DIR}/include" "-DEIGEN=${eigen_includes}"
                 "-DBINARY=${CMAKE_CURRENT_BINARY_DIR}/older_language" -P "${here}/older_language.cmake")

# Eigen: the versions that will do, by the rules of their own version files, the one that will not, and a target of the
# engine's; for whoever builds the library as a part and for whoever finds it installed.
foreach(from IN ITEMS package subdirectory)
  foreach(eigen IN ITEMS 3.3.9 3.4.0 5.0.1 own)
    set(name consumer/eigen_${eigen}/${from})
    add_test(NAME ${name}
             COMMAND ${CMAKE_COMMAND} -S "${here}/eigen" -B "${CMAKE_CURRENT_BINARY_DIR}/consumer_eigen_${eigen}_${from}" -G
                     "${CMAKE_GENERATOR}" "-DJRT_FROM=${from}" "-DJRT_SOURCE=${PROJECT_SOURCE_DIR}" "-DJRT_EIGEN=${eigen}"
                     "-DCMAKE_PREFIX_PATH=${CMAKE_CURRENT_BINARY_DIR}/prefix" "-DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}")
    set_tests_properties(${name} PROPERTIES FIXTURES_REQUIRED installed)
    if(eigen STREQUAL "3.3.9")
      set_tests_properties(${name} PROPERTIES PASS_REGULAR_EXPRESSION
                                              "jrt needs Eigen 3.4 or newer, but[^:]*has[ \n]+3\\.3\\.9")
    endif()
  endforeach()
endforeach()

# Warnings are errors in the presets and nowhere else.
add_test(NAME consumer/warnings
         COMMAND ${CMAKE_COMMAND} "-DSOURCE=${PROJECT_SOURCE_DIR}" "-DBINARY=${CMAKE_CURRENT_BINARY_DIR}/consumer_warnings"
                 "-DGENERATOR=${CMAKE_GENERATOR}" "-DCOMPILER=${CMAKE_CXX_COMPILER}" "-DPREFIX=${CMAKE_PREFIX_PATH}" -P
                 "${here}/warnings.cmake")

# With what a user's templates do first.
add_library(consumer_constants_in_templates OBJECT consumer/constants_in_templates.cpp)
target_link_libraries(consumer_constants_in_templates PRIVATE jrt_developer)
