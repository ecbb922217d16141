# How the engine's arithmetic is compiled: for engine/CMakeLists.txt and tests/aarch64.
#
# The specification and what it shares round every operation by itself, as everything else does (root
# CMakeLists.txt), and are to be quick besides.
set(engine_dir ${CMAKE_CURRENT_LIST_DIR})
set(specification cpu/cpu.c cpu/pages.c cpu/scalar.c quantize.c)
list(TRANSFORM specification PREPEND ${engine_dir}/)
set_source_files_properties(${specification} PROPERTIES COMPILE_OPTIONS -O3)

set_source_files_properties(${engine_dir}/cpu/rope.c PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")

# Except for these, once for each instruction set (cpu/isa.h); ops.c picks at run time.
set(kernel_options -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast)
function(isa_clone isa)
  set(files attention float product rope rows table)
  list(TRANSFORM files REPLACE "(.+)" "${engine_dir}/cpu/\\1.c")
  add_library(engine_${isa} OBJECT ${files})
  target_compile_definitions(engine_${isa} PRIVATE ISA=${isa})
  target_compile_options(engine_${isa} PRIVATE ${kernel_options} ${ARGN})
  target_sources(engine PRIVATE $<TARGET_OBJECTS:engine_${isa}>)
endfunction()
isa_clone(base)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  isa_clone(avx2 -mavx2 -mfma -mf16c)
  set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -mprefer-vector-width=512)
  isa_clone(avx512 ${avx512})
  add_library(engine_amx OBJECT ${engine_dir}/cpu/amx.c)
  target_compile_definitions(engine_amx PRIVATE ISA=amx)
  target_compile_options(engine_amx PRIVATE ${kernel_options} ${avx512} -mamx-tile -mamx-int8)
  target_sources(engine PRIVATE $<TARGET_OBJECTS:engine_amx>)
elseif(CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
  isa_clone(neon -march=armv8.2-a+dotprod)
endif()
