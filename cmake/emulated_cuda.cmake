# gradclip_emulated_cuda(NAME SOURCES file.cu file.cc... [DEPENDS target...]): a library of CUDA
# sources, compiled as C++ for the emulated device of tests/cuda/emulated. Fibers are switched by
# instructions of x86-64; elsewhere GRADCLIP_EMULATED_CUDA is off and the function is not to be
# called.
set(GRADCLIP_EMULATED_CUDA OFF)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(GRADCLIP_EMULATED_CUDA ON)
endif()

function(gradclip_emulated_cuda name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  set(kernels ${ARG_SOURCES})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  # Of this folder's targets only: a GPU's library of the same sources is built by another.
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  gradclip_library(${name} SOURCES ${ARG_SOURCES}
    DEPENDS gradclip_emulated_cuda_runtime ${ARG_DEPENDS})
  # `#pragma unroll` is nvcc's.
  target_compile_options(${name} PRIVATE -Wno-unknown-pragmas)
endfunction()
