// What this program is, as it says in metrics and to --version.
#pragma once

namespace nibble::server {

inline constexpr char kVersion[] = "0.1.0";
#ifdef NDEBUG
inline constexpr char kBuildType[] = "release";
#else
inline constexpr char kBuildType[] = "checked";
#endif

}  // namespace nibble::server
