# The library of the CUDA backend, by nvcc or emulated: the target ccamerge_cuda, or nothing where no
# CUDA compiler works. Kernels are compiled by nvcc, all else by the host compiler. EMULATED compiles
# the same files against an emulation of the CUDA runtime (see csrc/emulation).
set(_kernels
  csrc/cuda/centres.cu
  csrc/cuda/cholesky_block.cu
  csrc/cuda/elementwise.cu
  csrc/cuda/look.cu
  csrc/cuda/pack.cu
  csrc/cuda/reductions.cu
  csrc/cuda/small.cu
  csrc/cuda/small_add.cu
  csrc/cuda/totals.cu)
set(_sources
  csrc/cuda/backend.cpp
  csrc/cuda/device.cpp
  csrc/cuda/instances.cpp
  csrc/cuda/libraries.cpp
  csrc/cuda/moments.cpp
  csrc/cuda/product_jobs.cpp
  csrc/cuda/runtime.cpp
  csrc/cuda/small_layout.cpp
  csrc/cuda/update.cpp
  csrc/cuda/update_input.cpp
  csrc/cuda/update_products.cpp
  csrc/cuda/update_small.cpp)
if(CCAMERGE_CUDA STREQUAL "EMULATED")
  set_source_files_properties(${_kernels} PROPERTIES
    LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")
  add_library(ccamerge_cuda STATIC ${_kernels} ${_sources}
    csrc/emulation/cuda_runtime.cpp csrc/emulation/libraries.cpp)
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
