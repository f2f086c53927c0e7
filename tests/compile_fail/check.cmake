# SPDX-License-Identifier: Apache-2.0
# Compiles SOURCE and wants both: failure, and the sentence of its "// expect:" line. Quotes differ between compilers and
# are ignored.
file(STRINGS "${SOURCE}" lines REGEX "^// expect: ")
list(GET lines 0 expected)
string(REPLACE "// expect: " "" expected "${expected}")
separate_arguments(flags UNIX_COMMAND "${FLAGS}")
execute_process(COMMAND ${COMPILER} ${flags} -fsyntax-only "${SOURCE}" RESULT_VARIABLE failed OUTPUT_VARIABLE out ERROR_VARIABLE out)
if(failed EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiles, but must not.")
endif()
string(REGEX REPLACE "‘|’|'" "" out "${out}")
string(REGEX REPLACE "'" "" expected "${expected}")
string(FIND "${out}" "${expected}" found)
if(found EQUAL -1)
  message(FATAL_ERROR "${SOURCE} does not say: ${expected}\n${out}")
endif()
