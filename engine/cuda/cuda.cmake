# The CUDA back end, where nvcc and the headers of cuBLAS and NCCL are found. The executable is linked to the CUDA
# runtime's static library only: it starts on machines without any of CUDA (load.c opens the rest when needed).
#
# BATON_CUDA: AUTO (built if found), ON (an error if not), OFF.
set(BATON_CUDA AUTO CACHE STRING "the CUDA back end: AUTO (if found), ON or OFF")
set(BATON_CUDA_FOUND OFF)
if(NOT BATON_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "BATON_CUDA=${BATON_CUDA}: expected AUTO, ON or OFF")
endif()
if(NOT BATON_CUDA STREQUAL "OFF")
  find_package(CUDAToolkit 12.8 QUIET) # the first that knows sm_100
  find_path(BATON_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_path(BATON_CUBLAS_INCLUDE cublas_v2.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  if(CUDAToolkit_FOUND AND EXISTS "${CUDAToolkit_NVCC_EXECUTABLE}" AND TARGET CUDA::cudart_static
     AND BATON_NCCL_INCLUDE AND BATON_CUBLAS_INCLUDE)
    set(BATON_CUDA_FOUND ON)
  endif()
endif()
if(BATON_CUDA STREQUAL "OFF")
  message(STATUS "cuda: off")
elseif(NOT BATON_CUDA_FOUND AND BATON_CUDA STREQUAL "ON")
  message(FATAL_ERROR "cuda: not found; expected nvcc 12.8 or newer with cublas_v2.h, and nccl.h (CUDAToolkit_ROOT says where)")
elseif(NOT BATON_CUDA_FOUND)
  message(STATUS "cuda: not found, built without")
endif()
set(BATON_CUDA_FOUND ${BATON_CUDA_FOUND} CACHE INTERNAL "")
if(NOT BATON_CUDA_FOUND)
  return()
endif()
message(STATUS "cuda: found ${CUDAToolkit_VERSION} at ${CUDAToolkit_NVCC_EXECUTABLE}")

set(cuda_host batch context device draws graph load matmul pages ranks table weights)
list(TRANSFORM cuda_host REPLACE "(.+)" "${engine_dir}/cuda/\\1.c")
target_sources(engine PRIVATE ${cuda_host})
target_compile_definitions(engine PRIVATE BATON_CUDA)
target_include_directories(engine SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS} ${BATON_NCCL_INCLUDE} ${BATON_CUBLAS_INCLUDE})
target_link_libraries(engine PRIVATE CUDA::cudart_static)

# Machine code for A100, H100 and B200 and their relatives, and PTX for what comes after. Nothing is contracted but what
# a kernel says itself (fmaf), so that the tests, which run the same source on a CPU, round as the device does. The host's
# half of a .cu file is launches only, compiled so that it needs no C++ library.
set(cuda_architectures -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90
    -gencode=arch=compute_100,code=[sm_100,compute_100])
foreach(kernels attention pages product rows sample)
  set(source ${engine_dir}/cuda/${kernels}.cu)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda_${kernels}.o)
  add_custom_command(OUTPUT ${object}
    COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} -c -std=c++17 -O3 -fmad=false -Werror=all-warnings ${cuda_architectures}
            -Xcompiler=-fPIC,-Wall,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics -I${CMAKE_SOURCE_DIR} -I${BATON_NCCL_INCLUDE} -MD -MF ${object}.d -o ${object} ${source}
    DEPENDS ${source} DEPFILE ${object}.d VERBATIM COMMENT "Building CUDA object ${kernels}.cu")
  target_sources(engine PRIVATE ${object})
  set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
endforeach()
