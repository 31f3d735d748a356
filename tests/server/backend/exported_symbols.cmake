# Fails where an object of kernels exports a function: of an inline function that several instruction
# sets export the linker keeps one copy, and any processor may then meet any instruction.
#   cmake -DNM=nm -DOBJECTS=a.o,b.o -P exported_symbols.cmake
string(REPLACE "," ";" objects "${OBJECTS}")
foreach(object IN LISTS objects)
  execute_process(COMMAND ${NM} -C --defined-only --extern-only ${object}
    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  if(NOT symbols MATCHES "gradclip::k[A-Z][a-z0-9]+Kernels")
    message(FATAL_ERROR "${object} exports no table of kernels:\n${symbols}")
  endif()
  # What sanitizers refer to: a pointer, no code.
  string(REGEX REPLACE "[^\n]* V DW\\.ref\\.[^\n]*" "" symbols "${symbols}")
  if(symbols MATCHES " [TWVui] [^\n]*")
    message(FATAL_ERROR "${object} exports code:${CMAKE_MATCH_0}")
  endif()
endforeach()
