# How every target of the project is compiled, and gradclip_library(), by which each folder becomes
# one target.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_program(GRADCLIP_CCACHE ccache)
if(GRADCLIP_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${GRADCLIP_CCACHE})
endif()

include(GNUInstallDirs)

# What every line of ours is compiled with. A fused multiply-add rounds once where two operations
# round twice, so contraction would make the bits depend on the instruction set.
add_library(gradclip_flags INTERFACE)
target_compile_options(gradclip_flags INTERFACE -Wall -Wextra -Werror -ffp-contract=off)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 warns about std::string's own operator+ (its bug 105651).
  target_compile_options(gradclip_flags INTERFACE -Wno-restrict)
endif()
target_include_directories(gradclip_flags INTERFACE ${PROJECT_SOURCE_DIR})

set(GRADCLIP_SANITIZE "" CACHE STRING "Sanitizers for all code of ours: address,undefined or thread")
if(GRADCLIP_SANITIZE)
  target_compile_options(gradclip_flags INTERFACE
    -fsanitize=${GRADCLIP_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(gradclip_flags INTERFACE -fsanitize=${GRADCLIP_SANITIZE})
endif()

option(GRADCLIP_COVERAGE "Count executed lines, for gcovr" OFF)
if(GRADCLIP_COVERAGE)
  # With -pthread GCC counts atomically by itself; ccache does not know -fprofile-update=atomic.
  target_compile_options(gradclip_flags INTERFACE --coverage -pthread)
  target_link_options(gradclip_flags INTERFACE --coverage)
endif()

option(GRADCLIP_FUZZ "Build the libFuzzer targets of tests/fuzz (needs clang and GRADCLIP_SANITIZE)" OFF)
if(GRADCLIP_FUZZ)
  # libFuzzer keeps an input where it reaches new code: all code of ours says what it reaches.
  target_compile_options(gradclip_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# gradclip_library(NAME SOURCES file... [DEPENDS target...])
function(gradclip_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC ${ARG_DEPENDS} PRIVATE $<BUILD_INTERFACE:gradclip_flags>)
endfunction()

# gradclip_executable(NAME SOURCES file... [DEPENDS target...])
function(gradclip_executable name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} gradclip_flags)
  if(GRADCLIP_SANITIZE MATCHES "thread")
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/sanitizers/grpc_order.cc)
    target_link_libraries(${name} PRIVATE gRPC::grpc++)
  endif()
endfunction()
