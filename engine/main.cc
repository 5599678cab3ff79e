// nibble-engine: trains adapters on a frozen base. See docs/engine-protocol.md.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"
#include "engine/commands.h"
#include "engine/crash_line.h"
#include "engine/data/dataset.h"
#include "engine/line.h"
#include "engine/serve.h"
#include "engine/speed.h"

namespace nibble::engine {

namespace {

constexpr char kUsage[] =
    "nibble-engine: trains LoRA adapters on a frozen, quantized base model\n"
    "\n"
    "  serve     --model-dir DIR --cache-dir DIR [--fd 3] [--quant nf4] [--double-quant true]\n"
    "            [--device cpu] [--threads N] [--lock FILE] [--fuse true]      jobs of a worker, see "
    "docs/engine-protocol.md\n"
    "  profile   [--device cpu] [--threads N]                    what this machine's device is, as "
    "JSON\n"
    "  devices                                                   GPUs of this machine, as JSON\n"
    "  validate  --model-dir DIR --dataset FILE [--eval-dataset FILE] --spec FILE --out FILE\n"
    "  generate  --model-dir DIR [--adapter DIR] [--prompt TEXT | --prompts FILE | TEXT...] "
    "[--json]\n"
    "            [--max-tokens 128] [--temperature 0] [--top-p 1] [--seed 42] [--limit N] "
    "[--score]\n"
    "            [--chat] [--chat-template tokenizer_default]\n"
    "  merge     --model-dir DIR --adapter DIR --out DIR [--onto original|quantized] [--any-base]\n"
    "            [--json]                                              the adapter added into its base\n"
    "  train     --model-dir DIR --dataset FILE --out DIR [--spec FILE] [--eval-dataset FILE]\n"
    "            [--resume DIR|latest] [--init-adapter DIR] [--stop-after STEP]    one job, here "
    "and now\n"
    "  version\n";

absl::Status ServeCommand(const Arguments& arguments) {
  std::vector<std::string> valued = DeviceFlagNames();
  valued.insert(valued.end(), {"fd", "lock", "fuse"});
  ASSIGN_OR_RETURN(const Flags flags, Flags::Parse(arguments, valued));
  ServeOptions options;
  ASSIGN_OR_RETURN(const int64_t fd, flags.Integer("fd", 3));
  options.fd = static_cast<int>(fd);
  options.lock_path = flags.Text("lock");
  ASSIGN_OR_RETURN(options.fuse, flags.Bool("fuse", true));
  ASSIGN_OR_RETURN(options.device, DeviceOptionsFrom(flags));
  SendCrashLinesTo(options.fd);
  return Serve(options);
}

absl::Status ProfileCommand(const Arguments& arguments) {
  ASSIGN_OR_RETURN(const Flags flags, Flags::Parse(arguments, {"device", "threads"}));
  ASSIGN_OR_RETURN(const int64_t threads, flags.Integer("threads", 0));
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Backend> backend,
                   OpenBackend(flags.Text("device", "cpu"), static_cast<int>(threads)));
  spec::DeviceProfile profile = MeasureProfile(*backend);
  profile.linear_mflop_per_s = MeasureLinearMflopPerS(*backend, profile);
  std::printf("%s\n", spec::DeviceProfileToJson(profile).c_str());
  return absl::OkStatus();
}

// {"devices":[...],"why":"..."}; why: what is missing when there are none.
absl::Status DevicesCommand() {
  std::string why, list;
  for (const kernels::DeviceInfo& device : kernels::CudaDevices(&why)) {
    Line line;
    line.Integer("index", device.index)
        .Text("device", absl::StrCat(kernels::CudaName(), ":", device.index))
        .Text("uuid", device.uuid)
        .Text("name", device.name)
        .Integer("memory_bytes", device.memory_bytes);
    if (device.free_bytes >= 0) line.Integer("free_bytes", device.free_bytes);
    line.Text("capability", absl::StrCat(device.capability_major, ".", device.capability_minor))
        .Text("driver", device.driver);
    absl::StrAppend(&list, list.empty() ? "" : ",", line.Take());
  }
  std::printf("%s\n", Line().Raw("devices", absl::StrCat("[", list, "]")).Text("why", why).Take().c_str());
  return absl::OkStatus();
}

absl::Status ValidateCommand(const Arguments& arguments) {
  ASSIGN_OR_RETURN(const Flags flags, Flags::Parse(arguments, {"model-dir", "dataset",
                                                               "eval-dataset", "spec", "out"}));
  ValidateOptions options;
  ASSIGN_OR_RETURN(options.model_dir, flags.Needed("model-dir"));
  ASSIGN_OR_RETURN(options.dataset, flags.Needed("dataset"));
  ASSIGN_OR_RETURN(options.spec_path, flags.Needed("spec"));
  ASSIGN_OR_RETURN(options.out_path, flags.Needed("out"));
  options.eval_dataset = flags.Text("eval-dataset");
  return RunValidate(options);
}

absl::Status Run(const std::string& command, const Arguments& arguments) {
  if (command == "serve") return ServeCommand(arguments);
  if (command == "profile") return ProfileCommand(arguments);
  if (command == "devices") return DevicesCommand();
  if (command == "validate") return ValidateCommand(arguments);
  if (command == "generate") return GenerateCommand(arguments);
  if (command == "merge") return MergeCommand(arguments);
  if (command == "train") return TrainCommand(arguments);
  if (command == "version" || command == "--version") {
    std::printf("nibble-engine %s\n", NIBBLE_VERSION);
    return absl::OkStatus();
  }
  return WrongWords(absl::StrCat("unknown command ", command, "; see nibble-engine help"));
}

}  // namespace
}  // namespace nibble::engine

int main(int argc, char** argv) {
  nibble::InitLog("nibble-engine");
  const bool asks = argc > 1 && (std::string(argv[1]) == "help" ||
                                 std::any_of(argv + 1, argv + argc, [](const std::string& word) {
                                   return word == "--help" || word == "-h";
                                 }));
  if (argc < 2 || asks) {
    std::fputs(nibble::engine::kUsage, argc < 2 ? stderr : stdout);
    return argc < 2 ? 2 : 0;
  }
  const absl::Status status =
      nibble::engine::Run(argv[1], std::vector<std::string>(argv + 2, argv + argc));
  if (status.ok()) return 0;
  const nibble::Reason reason = nibble::StatusReason(status);
  // What the system says of a file has none.
  const std::string named =
      reason == nibble::Reason::kUnspecified ? "" : " (" + std::string(nibble::ReasonName(reason)) + ")";
  std::fprintf(stderr, "nibble-engine: %s%s\n", std::string(status.message()).c_str(), named.c_str());
  return nibble::engine::ExitCodeOf(status);
}
