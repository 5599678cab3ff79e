#include "engine/commands.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"

namespace nibble::engine {

absl::StatusOr<spec::QuantKind> QuantFromName(const std::string& name) {
  if (name == "nf4") return spec::QuantKind::kNF4;
  if (name == "fp4") return spec::QuantKind::kFP4;
  if (name == "int4") return spec::QuantKind::kINT4;
  if (name == "int8") return spec::QuantKind::kINT8;
  if (name == "bf16") return spec::QuantKind::kBF16;
  return Error(Reason::kSpecInvalid, "--quant is " + name + "; use nf4, fp4, int4, int8 or bf16");
}

std::vector<std::string> DeviceFlagNames() {
  return {"base", "model-dir", "cache-dir", "quant", "double-quant", "device", "threads"};
}

absl::StatusOr<DeviceOptions> DeviceOptionsFrom(const Flags& flags) {
  DeviceOptions options;
  options.device = flags.Text("device", "cpu");
  ASSIGN_OR_RETURN(const int64_t threads, flags.Integer("threads", 0));
  if (threads < 0 || threads > 1024) {
    return Error(Reason::kSpecInvalid,
                 absl::StrCat("--threads is ", threads, "; use 0 (all cores) to 1024"));
  }
  options.threads = static_cast<int>(threads);
  options.base.model_dir = flags.Text("model-dir", flags.Text("base"));
  if (options.base.model_dir.empty()) {
    return Error(Reason::kSpecInvalid, "--model-dir is missing");
  }
  const char* const cache = std::getenv("XDG_CACHE_HOME");
  const char* const home = std::getenv("HOME");
  const std::string caches =
      cache != nullptr ? cache : JoinPath(home != nullptr ? home : "/tmp", ".cache");
  options.base.cache_dir = flags.Text("cache-dir", JoinPath(caches, "nibble"));
  RETURN_IF_ERROR(MakeDirs(options.base.cache_dir));
  ASSIGN_OR_RETURN(options.base.quant, QuantFromName(flags.Text("quant", "nf4")));
  ASSIGN_OR_RETURN(options.base.double_quant, flags.Bool("double-quant", true));
  return options;
}

}  // namespace nibble::engine
