# The kernels for GPUs: MOH_TRITON is on where a Python with triton is found. Neither a GPU, a CUDA toolkit nor a torch with
# CUDA is needed to build them. Where it is off, the configuration and the table of backends (`moh info`) say why.
find_program(MOH_TRITON_PYTHON NAMES python3 HINTS ${PROJECT_SOURCE_DIR}/.venv/bin NO_CMAKE_SYSTEM_PATH
  DOC "the Python with triton that compiles the kernels for GPUs")
set(MOH_TRITON_ARCHS 80,90,100 CACHE STRING "the GPUs to compile for, by compute capability")

set(moh_triton_version "")
if(MOH_TRITON_PYTHON)
  execute_process(COMMAND ${MOH_TRITON_PYTHON} -c "import importlib.metadata as m; print(m.version('triton'))"
    OUTPUT_VARIABLE moh_triton_version OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
set(moh_has_triton OFF)
set(MOH_TRITON_OFF_REASON "MOH_TRITON is off")
if(moh_triton_version)
  set(moh_has_triton ON)
else()
  set(MOH_TRITON_OFF_REASON "no python3 with the package triton was found (pip install triton, or name one in MOH_TRITON_PYTHON)")
endif()
if(NOT DEFINED MOH_TRITON)  # not kept: a triton that is installed later is found
  set(MOH_TRITON ${moh_has_triton})
endif()

if(NOT MOH_TRITON)
  message(STATUS "GPU kernels are not built: ${MOH_TRITON_OFF_REASON}")
elseif(NOT moh_triton_version)
  message(FATAL_ERROR "MOH_TRITON is on, but ${MOH_TRITON_OFF_REASON}")
else()
  set(MOH_TRITON_OFF_REASON "builds with sanitizers are without")
  message(STATUS "GPU kernels: for ${MOH_TRITON_ARCHS} by triton ${moh_triton_version}")
endif()

# moh_gpu_kernels(variable): the source with the compiled kernels, or with the reason why there are none. Triton compiles
# in some minutes the first time and keeps the results in ~/.triton/cache, where other build folders find them.
function(moh_gpu_kernels variable)
  set(none ${PROJECT_SOURCE_DIR}/moh/kernels/gpu/not_built.cpp)
  set_source_files_properties(${none} PROPERTIES COMPILE_DEFINITIONS "MOH_GPU_NOT_BUILT=\"${MOH_TRITON_OFF_REASON}\"")
  if(NOT MOH_TRITON)
    set(${variable} ${none} PARENT_SCOPE)
    return()
  endif()
  set(folder ${PROJECT_BINARY_DIR}/gpu_kernels)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/moh/kernels/triton/*.py)
  add_custom_command(OUTPUT ${folder}/kernels.cpp ${folder}/kernels.bin ${folder}/kernels.json
    COMMAND ${MOH_TRITON_PYTHON} ${PROJECT_SOURCE_DIR}/moh/kernels/triton/archive.py ${folder} --arch ${MOH_TRITON_ARCHS}
    DEPENDS ${sources} COMMENT "Compiling the kernels for GPUs" VERBATIM)
  set_source_files_properties(${folder}/kernels.cpp PROPERTIES OBJECT_DEPENDS ${folder}/kernels.bin)
  set(${variable} ${folder}/kernels.cpp PARENT_SCOPE)
endfunction()
