# The three ways a room declares what it builds, and the flags everything shares.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
# CHECK stays on in release; assert() is not used.
set(CMAKE_CXX_FLAGS_RELEASE "-O2")

find_program(NIBBLE_CCACHE ccache)
if(NIBBLE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Paths below the source folder count as relative: a second clone finds what the first one compiled.
  set(CMAKE_C_COMPILER_LAUNCHER env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} ${NIBBLE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_C_COMPILER_LAUNCHER})
endif()
find_program(NIBBLE_MOLD mold)
if(NIBBLE_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

# -ffp-contract=off: every fused multiply-add is one we wrote, so that bodies agree bit for bit where
# they promise to.
add_library(nibble_options INTERFACE)
target_compile_options(nibble_options INTERFACE -ffp-contract=off)
target_include_directories(nibble_options INTERFACE ${PROJECT_SOURCE_DIR})
add_library(nibble_warnings INTERFACE)
target_compile_options(nibble_warnings INTERFACE -Wall -Wextra -Wno-missing-field-initializers)
if(NIBBLE_WERROR)
  target_compile_options(nibble_warnings INTERFACE -Werror)
endif()
# What the kernels are optimized with. The checks a sanitizer puts in cost far more than optimization gains,
# and take longer to optimize than the code they are in.
set(NIBBLE_O3 -O3)
# Behind a test's TIMEOUT: a zero where a sanitizer slows it down.
set(TENFOLD "")
if(NOT NIBBLE_SANITIZE STREQUAL "none")
  set(NIBBLE_O3 -O1)
  set(TENFOLD 0)
  set(CMAKE_CXX_FLAGS_RELEASE "-O1")
  set(sanitizers ${NIBBLE_SANITIZE})
  if(sanitizers STREQUAL "address")
    set(sanitizers address,undefined)
  endif()
  # What the undefined-behaviour sanitizer finds ends the process, as what the others find does. Its checks of
  # every pointer double the time a file takes to compile: they are for kernels/ (whose CMakeLists.txt adds
  # them), where all the pointer arithmetic is; elsewhere the address sanitizer sees a bad pointer when it is used.
  add_compile_options(-fsanitize=${sanitizers} -fno-sanitize=vptr,null,object-size,alignment
                      -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${sanitizers})
endif()
set(seen_locks)
if(NIBBLE_SANITIZE STREQUAL "thread")
  add_library(nibble_tsan_grpc OBJECT ${CMAKE_CURRENT_LIST_DIR}/tsan_grpc.cc)
  # Shared libraries have to find what it defines, too.
  target_link_options(nibble_tsan_grpc INTERFACE -rdynamic)
  set(seen_locks nibble_tsan_grpc)
endif()

# nibble_joined(NAME): compiles its sources four at a time. The headers of most targets (gRPC, protobuf, JSON)
# cost more than their own code, so this halves what they take of a first build. A file whose names collide
# with its neighbours' has the property NIBBLE_APART; the targets that are not joined have many such, or are
# large files anyway. CMake's own unity build writes absolute paths, with which one clone's compiler cache is of
# no use to another.
function(nibble_joined name)
  if(NOT name MATCHES "kernel|bench|fuzz|server_core_test")
    cmake_language(EVAL CODE "cmake_language(DEFER CALL nibble_join_sources [[${name}]])")
  endif()
endfunction()

# At the end of a directory, when the properties of its sources are known.
function(nibble_join_sources name)
  get_target_property(sources ${name} SOURCES)
  set(kept)
  set(together)
  foreach(source IN LISTS sources)
    get_source_file_property(apart ${source} NIBBLE_APART)
    get_source_file_property(flags ${source} COMPILE_OPTIONS)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} NORMALIZE OUTPUT_VARIABLE path)
    if(apart OR flags OR NOT path MATCHES "\\.cc$" OR NOT EXISTS ${path})
      list(APPEND kept ${source})
    else()
      file(RELATIVE_PATH path ${PROJECT_SOURCE_DIR} ${path})
      list(APPEND together ${path})
    endif()
  endforeach()
  list(LENGTH together count)
  if(count LESS 2)
    return()
  endif()
  set(begin 0)
  while(begin LESS count)
    list(SUBLIST together ${begin} 4 four)
    list(TRANSFORM four REPLACE "(.+)" "#include \"\\1\"\n")
    list(JOIN four "" text)
    set(joined ${CMAKE_CURRENT_BINARY_DIR}/joined/${name}_${begin}.cc)
    file(CONFIGURE OUTPUT ${joined} CONTENT "${text}" @ONLY)
    list(APPEND kept ${joined})
    math(EXPR begin "${begin} + 4")
  endwhile()
  set_target_properties(${name} PROPERTIES SOURCES "${kept}")
endfunction()

# nibble_library(NAME SRCS a.cc b.cc DEPS x y): a static library of one room or one part of it.
function(nibble_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(${name} STATIC ${ARG_SRCS})
    target_link_libraries(${name} PUBLIC nibble_options ${ARG_DEPS} PRIVATE nibble_warnings)
    nibble_joined(${name})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE nibble_options ${ARG_DEPS})
  endif()
endfunction()

function(nibble_binary name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  if(NIBBLE_STATIC)
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/cmake/old_glibc.cc)
  endif()
  target_link_libraries(${name} PRIVATE nibble_options nibble_warnings ${seen_locks} ${ARG_DEPS})
  nibble_joined(${name})
  if(name MATCHES "^nibble(-server|-worker|-engine|-planted)?$")
    add_dependencies(threaded ${name})
  endif()
endfunction()

# Tests in which the thread sanitizer has nothing to see: of one thread, or, cuda_training_test, whole jobs on emulated
# kernels, which cuda_parity_test shows it one by one.
set(no_races
  adam8_oracle_test adapter_test agent_test auth_test commands_test cuda_training_test dataset_check_test dataset_test
  draw_test endpoint_test
  engine_oracle_test fleet_test jinja_test kernel_gradient_test model_check_test nf4_oracle_test phases_test
  plan_exact_test recipe_test reference_models_test repeat_recipe_test safetensors_test schedule_property_test
  server_convert_test server_core_test spec_test tokenizer_test worker_convert_test)
# What `./dev test --full thread` builds.
add_custom_target(threaded)

# nibble_test(NAME SRCS x_test.cc DEPS ...): one GoogleTest binary, one ctest entry. LABELS: "slow".
function(nibble_test name)
  if(NOT NIBBLE_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE nibble_options nibble_warnings ${seen_locks} ${ARG_DEPS}
                                        GTest::gmock GTest::gtest_main)
  nibble_joined(${name})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(name IN_LIST no_races)
    list(APPEND ARG_LABELS no-races)
  else()
    add_dependencies(threaded ${name})
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT}${TENFOLD} LABELS "${ARG_LABELS}"
                       ENVIRONMENT "NIBBLE_SOURCE_DIR=${PROJECT_SOURCE_DIR};NIBBLE_BIN_DIR=${CMAKE_BINARY_DIR}/bin;GTEST_OUTPUT=json:${CMAKE_BINARY_DIR}/test-results/${name}.json")
endfunction()
if(NIBBLE_BUILD_TESTS)
  enable_testing()
endif()
