# The library of the CUDA backend, by nvcc or emulated: the target ccamerge_cuda, or nothing where no
# CUDA compiler works. Kernels are compiled by nvcc, all else by the host compiler. EMULATED compiles
# the same files against an emulation of the CUDA runtime (see csrc/emulation).
set(_kernels
  csrc/cuda/moments/centres.cu
  csrc/cuda/moments/look.cu
  csrc/cuda/moments/pack.cu
  csrc/cuda/moments/small.cu
  csrc/cuda/moments/small_add.cu
  csrc/cuda/moments/totals.cu
  csrc/cuda/solve/cholesky_block.cu
  csrc/cuda/solve/elementwise.cu
  csrc/cuda/solve/reductions.cu)
set(_sources
  csrc/cuda/device.cpp
  csrc/cuda/libraries.cpp
  csrc/cuda/moments/moments.cpp
  csrc/cuda/moments/product_jobs.cpp
  csrc/cuda/moments/small_layout.cpp
  csrc/cuda/moments/update.cpp
  csrc/cuda/moments/update_input.cpp
  csrc/cuda/moments/update_products.cpp
  csrc/cuda/moments/update_small.cpp
  csrc/cuda/runtime.cpp
  csrc/cuda/solve/backend.cpp
  csrc/cuda/solve/instances.cpp)
if(CCAMERGE_CUDA STREQUAL "EMULATED")
  set_source_files_properties(${_kernels} PROPERTIES
    LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")
  add_library(ccamerge_cuda STATIC ${_kernels} ${_sources}
    csrc/emulation/cuda_runtime.cpp csrc/emulation/libraries.cpp)
  if(CCAMERGE_SANITIZE MATCHES "thread")
    set_source_files_properties(csrc/emulation/cuda_runtime.cpp PROPERTIES
      COMPILE_OPTIONS -fno-sanitize=thread COMPILE_DEFINITIONS CCAMERGE_RACES)
  endif()
  target_include_directories(ccamerge_cuda BEFORE PUBLIC csrc/emulation)
  target_compile_definitions(ccamerge_cuda PUBLIC CCAMERGE_EMULATED)
else()
  include(CheckLanguage)
  check_language(CUDA)  # a trial configuration: finds broken compilers too
  if(NOT CMAKE_CUDA_COMPILER)
    return()
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    # Matrix units that take bfloat16 begin with 8.0; "native" fails on a machine without a GPU.
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
  endif()
  enable_language(CUDA)
  add_library(ccamerge_cuda STATIC ${_kernels} ${_sources} csrc/cuda/loading.cpp)
  target_include_directories(ccamerge_cuda SYSTEM PUBLIC ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  set_target_properties(ccamerge_cuda PROPERTIES
    CUDA_STANDARD 20 CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
endif()
target_link_libraries(ccamerge_cuda PUBLIC ccamerge_core ${CMAKE_DL_LIBS})
