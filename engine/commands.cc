#include "engine/commands.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/spec/words.h"

namespace nibble::engine {

std::vector<std::string> DeviceFlagNames() {
  return {"base", "model-dir", "cache-dir", "quant", "double-quant", "device", "threads"};
}

absl::StatusOr<DeviceOptions> DeviceOptionsFrom(const Flags& flags) {
  DeviceOptions options;
  options.device = flags.Text("device", "cpu");
  ASSIGN_OR_RETURN(const int64_t threads, flags.Integer("threads", 0));
  if (threads < 0 || threads > 1024) {
    return WrongWords(absl::StrCat("--threads is ", threads, "; use 0 (all cores) to 1024"));
  }
  options.threads = static_cast<int>(threads);
  options.base.model_dir = flags.Text("model-dir", flags.Text("base"));
  if (options.base.model_dir.empty()) {
    return WrongWords(
        "--base is missing; give the directory of the base model (--model-dir is the same flag)");
  }
  const char* const cache = std::getenv("XDG_CACHE_HOME");
  const char* const home = std::getenv("HOME");
  const std::string caches =
      cache != nullptr ? cache : JoinPath(home != nullptr ? home : "/tmp", ".cache");
  options.base.cache_dir = flags.Text("cache-dir", JoinPath(caches, "nibble"));
  RETURN_IF_ERROR(MakeDirs(options.base.cache_dir));
  const std::string quant = flags.Text("quant", "nf4");
  const auto kind = FromWord(spec::kQuantWords, quant);
  if (!kind.has_value()) {
    return WrongWords(absl::StrCat("--quant is ", quant, "; use one of ", AllWords(spec::kQuantWords)));
  }
  options.base.quant = *kind;
  ASSIGN_OR_RETURN(options.base.double_quant, flags.Bool("double-quant", true));
  return options;
}

}  // namespace nibble::engine
