// `--name value` pairs of a benchmark's command line. Unknown names are kept and never asked for.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "absl/status/status.h"

namespace nibble::bench {

using Flags = std::map<std::string, std::string>;

inline Flags ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name.rfind("--", 0) == 0) flags[name.substr(2)] = argv[i + 1];
  }
  return flags;
}

inline std::string Text(const Flags& flags, const std::string& name, const std::string& otherwise) {
  const auto found = flags.find(name);
  return found == flags.end() ? otherwise : found->second;
}

inline int64_t Number(const Flags& flags, const std::string& name, int64_t otherwise) {
  const auto found = flags.find(name);
  return found == flags.end() ? otherwise : std::atoll(found->second.c_str());
}

// The whole of a benchmark's main.
inline int RunMain(const char* program, int argc, char** argv, absl::Status (*run)(const Flags&)) {
  const absl::Status status = run(ParseFlags(argc, argv));
  if (!status.ok()) std::fprintf(stderr, "%s: %s\n", program, status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace nibble::bench
