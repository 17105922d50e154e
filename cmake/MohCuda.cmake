# The CUDA kernels: MOH_CUDA is on where an nvcc is found that compiles C++20 for sm_80 and sm_90a (12 or newer) with this
# compiler. Neither a GPU nor a torch with CUDA is needed to build them. Where it is off, the configuration says why.
find_program(MOH_NVCC nvcc HINTS ${CUDAToolkit_ROOT}/bin ENV CUDA_HOME PATH_SUFFIXES bin PATHS /usr/local/cuda/bin)

# Sets `reason` to why MOH_NVCC cannot compile the kernels; empty: it can.
function(moh_nvcc_trouble reason)
  set(${reason} "" PARENT_SCOPE)
  if(MOH_NVCC AND MOH_NVCC_WORKS STREQUAL MOH_NVCC)
    return()
  endif()
  if(NOT MOH_NVCC)
    set(${reason} "nvcc was not found; put it on PATH or name its folder in CUDA_HOME" PARENT_SCOPE)
    return()
  endif()
  set(probe ${PROJECT_BINARY_DIR}/cuda_probe)
  file(WRITE ${probe}.cu "#include <cuda_bf16.h>
template <class T> requires(sizeof(T) == 2) __global__ void probe(T* p) { *p = T(1.0F); }
template __global__ void probe(__nv_bfloat16* p);\n")
  execute_process(COMMAND ${MOH_NVCC} -std=c++20 -ccbin ${CMAKE_CXX_COMPILER} -gencode arch=compute_80,code=sm_80
    -gencode arch=compute_90a,code=sm_90a -c ${probe}.cu -o ${probe}.o
    RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(status EQUAL 0)
    set(MOH_NVCC_WORKS ${MOH_NVCC} CACHE INTERNAL "the nvcc that compiled the probe")
  else()
    string(REGEX MATCH "[^\n]+" line "${text}")
    if(NOT line)
      set(line "${status}")
    endif()
    set(${reason} "${MOH_NVCC} does not compile C++20 for sm_80 and sm_90a here: ${line}" PARENT_SCOPE)
  endif()
endfunction()

set(moh_usable OFF)
if(NOT DEFINED MOH_CUDA)
  moh_nvcc_trouble(moh_trouble)
  if(NOT moh_trouble)
    set(moh_usable ON)
  endif()
  set(MOH_CUDA_OFF_REASON "${moh_trouble}" CACHE INTERNAL "why MOH_CUDA is off by default")
endif()
option(MOH_CUDA "Build the CUDA kernels for sm_80 and sm_90a (needs nvcc 12 or newer)" ${moh_usable})

macro(moh_enable_cuda)
  if(MOH_CUDA)
    moh_nvcc_trouble(moh_trouble)
    if(moh_trouble)
      message(FATAL_ERROR "MOH_CUDA is on, but ${moh_trouble}")
    endif()
    set(CMAKE_CUDA_COMPILER ${MOH_NVCC})
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
    set(CMAKE_CUDA_ARCHITECTURES 80)  # for CMake's check of the compiler; the kernels name theirs
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has it
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    find_package(CUDAToolkit REQUIRED)
  else()
    if(NOT MOH_CUDA_OFF_REASON)
      set(MOH_CUDA_OFF_REASON "MOH_CUDA is off")
    endif()
    message(STATUS "CUDA kernels are not built: ${MOH_CUDA_OFF_REASON}")
  endif()
endmacro()

# moh_add_cuda_kernels(target sources...): adds them to a library of kernels. Where torch brings a CUDA runtime, that one is
# shared; elsewhere it is linked statically, so that nothing of CUDA need be there to run the program.
function(moh_add_cuda_kernels target)
  add_library(${target}_cuda OBJECT ${ARGN})
  target_include_directories(${target}_cuda PRIVATE ${PROJECT_SOURCE_DIR})
  set_target_properties(${target}_cuda PROPERTIES CUDA_ARCHITECTURES "80-real;90a-real" POSITION_INDEPENDENT_CODE ON)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_cuda>)
  if(Torch_C10_CUDA_LIBRARY)
    target_link_libraries(${target} PRIVATE CUDA::cudart)
  else()
    target_link_libraries(${target} PRIVATE CUDA::cudart_static)
  endif()
endfunction()
