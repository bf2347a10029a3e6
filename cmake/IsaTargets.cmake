# esp_add_kernel(<target> <source>): compiles one source once per instruction set into <target>.
#
# Contraction is off and fma explicit: otherwise GCC fuses a*b+c where the variant has FMA and results differ in the last
# bit. The sources hold no std templates: a weak symbol compiled for AVX-512 must never be the copy that the linker keeps.
set(ESP_ISAS scalar)
set(ESP_ISA_FLAGS_scalar "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND ESP_ISAS avx2 avx512)
  set(ESP_ISA_FLAGS_scalar "-march=x86-64")
  set(ESP_ISA_FLAGS_avx2 "-mavx2;-mfma;-mf16c;-mbmi;-mbmi2;-mpopcnt")
  set(ESP_ISA_FLAGS_avx512
      "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mfma;-mf16c;-mbmi;-mbmi2;-mpopcnt;-mprefer-vector-width=512")
endif()

# Under sanitizers optimized kernels take the compiler longer than they save the tests. fma of the scalar variant is one
# instruction there, not a call a lane: half of the tests' time.
set(ESP_ISA_OPTIMIZATION -O3)
if(ESP_SANITIZE)
  set(ESP_ISA_OPTIMIZATION -O0)
  if(ESP_ISA_FLAGS_scalar)
    list(APPEND ESP_ISA_FLAGS_scalar -mfma)
  endif()
endif()

function(esp_add_kernel target source)
  get_filename_component(stem ${source} NAME_WE)
  foreach(isa ${ESP_ISAS})
    set(object ${stem}_${isa})
    add_library(${object} OBJECT ${source})
    set_target_properties(${object} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
    target_compile_options(${object} PRIVATE ${ESP_ISA_FLAGS_${isa}} ${ESP_ISA_OPTIMIZATION}
                                             -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-exceptions -fno-rtti
                                             -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized)  # GCC 12 warns in its own header
    target_compile_definitions(${object} PRIVATE ESP_ISA=${isa} ESP_ISA_${isa}=1)
    target_include_directories(${object} PRIVATE ${ESP_NATIVE_DIR}/include ${ESP_NATIVE_DIR}/src)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${object}>)
  endforeach()
endfunction()
