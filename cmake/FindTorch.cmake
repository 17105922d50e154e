# LibTorch as one imported target, Torch::Torch, from Torch_ROOT (a LibTorch folder or the torch package of a Python
# environment) or else from the Python of .venv. The configuration that torch ships is not used: it hunts for MKL,
# sets flags globally and, in CUDA builds, changes the language settings of the project that includes it.
if(NOT Torch_ROOT AND DEFINED ENV{Torch_ROOT})
  set(Torch_ROOT $ENV{Torch_ROOT})
endif()
if(NOT Torch_ROOT)
  find_program(MOH_PYTHON NAMES python3 HINTS ${PROJECT_SOURCE_DIR}/.venv/bin NO_CMAKE_SYSTEM_PATH)
  execute_process(
    COMMAND ${MOH_PYTHON} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE Torch_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()

find_path(Torch_INCLUDE_DIR ATen/ATen.h PATHS ${Torch_ROOT}/include NO_DEFAULT_PATH)
find_library(Torch_LIBRARY torch PATHS ${Torch_ROOT}/lib NO_DEFAULT_PATH)
find_library(Torch_CPU_LIBRARY torch_cpu PATHS ${Torch_ROOT}/lib NO_DEFAULT_PATH)
find_library(Torch_C10_LIBRARY c10 PATHS ${Torch_ROOT}/lib NO_DEFAULT_PATH)
find_library(Torch_CUDA_LIBRARY torch_cuda PATHS ${Torch_ROOT}/lib NO_DEFAULT_PATH)
find_library(Torch_C10_CUDA_LIBRARY c10_cuda PATHS ${Torch_ROOT}/lib NO_DEFAULT_PATH)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Torch
  REQUIRED_VARS Torch_LIBRARY Torch_CPU_LIBRARY Torch_C10_LIBRARY Torch_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "run `make build`, which installs it, or set Torch_ROOT to a LibTorch folder")

if(Torch_FOUND AND NOT TARGET Torch::Torch)
  add_library(Torch::Torch INTERFACE IMPORTED)
  target_include_directories(Torch::Torch SYSTEM INTERFACE
    ${Torch_INCLUDE_DIR} ${Torch_INCLUDE_DIR}/torch/csrc/api/include)
  target_link_libraries(Torch::Torch INTERFACE ${Torch_LIBRARY} ${Torch_CPU_LIBRARY} ${Torch_C10_LIBRARY})
  # at::parallel_for is compiled into its callers. They must use the OpenMP library that torch brings, or two thread pools
  # would compete for the cores.
  file(GLOB Torch_OPENMP_LIBRARY ${Torch_ROOT}/lib/libgomp*.so* ${Torch_ROOT}/lib/libiomp5.so)
  add_library(Torch::OpenMP INTERFACE IMPORTED)
  if(Torch_OPENMP_LIBRARY)
    target_compile_options(Torch::OpenMP INTERFACE -fopenmp)
    target_link_libraries(Torch::OpenMP INTERFACE ${Torch_OPENMP_LIBRARY})
  else()
    find_package(OpenMP REQUIRED)
    target_link_libraries(Torch::OpenMP INTERFACE OpenMP::OpenMP_CXX)
  endif()
  if(Torch_CUDA_LIBRARY AND Torch_C10_CUDA_LIBRARY)
    # Nothing of ours refers to these directly; --no-as-needed keeps their registrations.
    target_link_libraries(Torch::Torch INTERFACE
      "-Wl,--push-state,--no-as-needed" ${Torch_CUDA_LIBRARY} ${Torch_C10_CUDA_LIBRARY} "-Wl,--pop-state")
    # Libraries of CUDA that these need lie in folders that only they know; they find them when the program starts.
    target_link_options(Torch::Torch INTERFACE -Wl,--allow-shlib-undefined)
  endif()
endif()
