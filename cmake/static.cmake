# NIBBLE_STATIC: a binary that starts on another Linux of the same age or younger. Abseil, OpenSSL, libstdc++
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
foreach(pair "OpenSSL::Crypto;libcrypto.a")
  list(GET pair 0 target)
  list(GET pair 1 name)
  find_library(archive_${name} ${name} REQUIRED)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION "${archive_${name}}")
endforeach()
add_link_options(-static-libstdc++ -static-libgcc -Wl,-s)
set(CMAKE_BUILD_RPATH "$ORIGIN")
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN")
