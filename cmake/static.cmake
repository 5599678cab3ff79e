# NIBBLE_STATIC: a binary that starts on another Linux with glibc 2.35 or later (old_glibc.cc). Abseil, OpenSSL, libstdc++
# and utf8proc from their archives, fmt and spdlog from their headers. What Debian has as a shared library
# only (simdjson) travels beside the binary.

get_property(imported DIRECTORY PROPERTY IMPORTED_TARGETS)
foreach(target ${imported})
  if(target MATCHES "^absl::")
    get_target_property(location ${target} IMPORTED_LOCATION_NONE)
    string(REGEX REPLACE "\\.so\\..*$" ".a" archive "${location}")
    if(EXISTS "${archive}")
      set_target_properties(${target} PROPERTIES IMPORTED_LOCATION_NONE "${archive}" IMPORTED_SONAME_NONE "")
    endif()
  endif()
endforeach()
find_library(NIBBLE_CRYPTO_ARCHIVE libcrypto.a REQUIRED)
set_target_properties(OpenSSL::Crypto PROPERTIES IMPORTED_LOCATION "${NIBBLE_CRYPTO_ARCHIVE}")
set_target_properties(spdlog::spdlog_header_only PROPERTIES
                      INTERFACE_LINK_LIBRARIES "fmt::fmt-header-only;Threads::Threads")
if(TARGET PkgConfig::UTF8PROC)
  find_library(NIBBLE_UTF8PROC_ARCHIVE libutf8proc.a REQUIRED)
  set_target_properties(PkgConfig::UTF8PROC PROPERTIES INTERFACE_LINK_LIBRARIES "${NIBBLE_UTF8PROC_ARCHIVE}")
endif()
add_link_options(-static-libstdc++ -static-libgcc -Wl,-s)
set(CMAKE_BUILD_RPATH "$ORIGIN")
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN")
