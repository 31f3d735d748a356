# Whether the CUDA backend is built, and how: sets GRADCLIP_HAS_CUDA. It is linked statically with the
# CUDA runtime; a machine without GPU, driver or CUDA libraries runs the same program.
set(GRADCLIP_CUDA AUTO CACHE STRING "The CUDA backend: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE GRADCLIP_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT GRADCLIP_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "GRADCLIP_CUDA is \"${GRADCLIP_CUDA}\"; it must be AUTO, ON or OFF")
endif()

set(GRADCLIP_HAS_CUDA OFF)
if(GRADCLIP_CUDA STREQUAL ON)
  set(GRADCLIP_HAS_CUDA ON)
elseif(GRADCLIP_CUDA STREQUAL AUTO AND NOT CMAKE_CROSSCOMPILING AND NOT GRADCLIP_SANITIZE
       AND NOT GRADCLIP_COVERAGE AND NOT GRADCLIP_FUZZ)
  # Builds with instruments run the kernels on the emulated device of the tests.
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE architectures)
    if(architectures MATCHES "compute_120")
      set(GRADCLIP_HAS_CUDA ON)
    else()
      message(STATUS "${CMAKE_CUDA_COMPILER} is older than 12.8, which the CUDA backend needs")
    endif()
  endif()
endif()

if(GRADCLIP_HAS_CUDA)
  if(GRADCLIP_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${GRADCLIP_CCACHE})
  endif()
  # Machine code for servers' and desktops' GPUs from Turing to Blackwell, and PTX for what comes after.
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100-real 120)
  endif()
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  # (CMake 3.25's FindCUDAToolkit stumbles over CUDA 13.)
  find_library(GRADCLIP_CUDART cudart_static REQUIRED
    HINTS ${CMAKE_CUDA_HOST_IMPLICIT_LINK_DIRECTORIES})
  add_library(gradclip_cudart INTERFACE)
  target_include_directories(gradclip_cudart SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_link_libraries(gradclip_cudart INTERFACE ${GRADCLIP_CUDART} pthread dl rt)
endif()
message(STATUS "CUDA backend: ${GRADCLIP_HAS_CUDA} (GRADCLIP_CUDA=${GRADCLIP_CUDA})")

# What every line of ours that nvcc compiles is compiled with. Contraction and flushing would change
# bits, as on the host; registers that spill would cost speed.
add_library(gradclip_cuda_flags INTERFACE)
target_compile_options(gradclip_cuda_flags INTERFACE
  -fmad=false -ftz=false --expt-relaxed-constexpr -Werror=all-warnings
  -Xptxas=-warn-spills,-warn-lmem-usage -Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off)
target_include_directories(gradclip_cuda_flags INTERFACE ${PROJECT_SOURCE_DIR})
