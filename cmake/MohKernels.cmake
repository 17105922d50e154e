# Kernel sources that are compiled once per instruction set. Each copy lives in the namespace MOH_ISA and sees vectors of
# MOH_VECTOR_BYTES; which copy runs is decided at run time (moh/kernels/backend.cpp).
set(MOH_ISAS portable)
set(MOH_FLAGS_portable -DMOH_VECTOR_BYTES=16)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND MOH_ISAS avx2 avx512)
  set(MOH_FLAGS_avx2 -DMOH_VECTOR_BYTES=32 -mavx2 -mfma -mf16c)
  set(MOH_FLAGS_avx512 -DMOH_VECTOR_BYTES=64 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c
                       -mprefer-vector-width=512)
endif()

# moh_add_kernels(target sanitizers sources... ISA sources...): the kernels library, ISA sources once per instruction set.
function(moh_add_kernels target sanitizers)
  cmake_parse_arguments(kernels "" "" "ISA" ${ARGN})
  set(sanitize)
  set(optimize -O3)
  if(sanitizers)
    set(sanitize -fsanitize=${sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
    set(optimize -O1)  # a third of the time to compile
  endif()
  add_library(${target} STATIC ${kernels_UNPARSED_ARGUMENTS})
  moh_target(${target})
  target_compile_options(${target} PUBLIC ${sanitize})
  target_link_options(${target} PUBLIC ${sanitize})
  target_link_libraries(${target} PUBLIC Threads::Threads)
  if(NOT MOH_OPERATORS_ONLY)
    target_link_libraries(${target} PUBLIC nlohmann_json::nlohmann_json)
  endif()
  foreach(isa IN LISTS MOH_ISAS)
    add_library(${target}_${isa} OBJECT ${kernels_ISA})
    moh_target(${target}_${isa})
    target_compile_options(${target}_${isa} PRIVATE ${optimize} -ffp-contract=fast -fno-math-errno -Wno-psabi
      ${MOH_FLAGS_${isa}} ${sanitize})
    target_compile_definitions(${target}_${isa} PRIVATE MOH_ISA=${isa})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${isa}>)
    string(TOUPPER ${isa} upper)
    target_compile_definitions(${target} PUBLIC MOH_HAVE_${upper}=1)
  endforeach()
endfunction()
