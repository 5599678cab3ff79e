# Every third-party package in one place; all are Debian 12's own. Slow headers (nlohmann, spdlog,
# gRPC) are included in .cc files only.

find_package(Threads REQUIRED)
find_package(absl REQUIRED)          # the one gRPC links, so there is only one in a process
find_package(OpenSSL REQUIRED)       # SHA-256, HMAC
find_package(nlohmann_json REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)

if(NIBBLE_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()

if(NIBBLE_BUILD_ENGINE)
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
  find_package(simdjson REQUIRED)
endif()

if(NIBBLE_BUILD_SERVER OR NIBBLE_BUILD_WORKER OR NIBBLE_BUILD_CLIENT)
  find_package(Protobuf REQUIRED)
  find_package(gRPC CONFIG REQUIRED)  # pkg-config takes ten seconds over its libraries
  find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
endif()
if(NIBBLE_BUILD_SERVER)
  find_package(SQLite3 REQUIRED)
  find_package(prometheus-cpp REQUIRED)
endif()
if(NIBBLE_BUILD_WORKER AND NOT NIBBLE_BUILD_SERVER)
  find_package(prometheus-cpp REQUIRED)
endif()
if(NIBBLE_BUILD_CLIENT)
  find_package(yaml-cpp REQUIRED)
  find_package(CLI11 REQUIRED)
endif()
if(NIBBLE_STATIC)
  include(static)
endif()
