// nibble-engine merge: an adapter added into its base, as a model directory of its own.
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/human_bytes.h"
#include "base/status.h"
#include "engine/commands.h"
#include "engine/line.h"
#include "engine/model/merge.h"
#include "engine/spec/words.h"
#include "engine/text/text.h"

namespace nibble::engine {
namespace {

absl::StatusOr<MergeOptions> OptionsFrom(const Flags& flags) {
  MergeOptions options;
  ASSIGN_OR_RETURN(DeviceOptions device, DeviceOptionsFrom(flags));
  options.base = std::move(device.base);
  options.base.threads = device.threads > 0
                             ? device.threads
                             : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  ASSIGN_OR_RETURN(options.adapter_dir, flags.Needed("adapter"));
  ASSIGN_OR_RETURN(options.out_dir, flags.Needed("out"));
  while (options.out_dir.size() > 1 && options.out_dir.back() == '/') options.out_dir.pop_back();
  const std::string onto = flags.Text("onto", "original");
  if (onto != "original" && onto != "quantized") {
    return WrongWords(absl::StrCat("--onto is ", onto,
                                   "; use original (the base's weights as their files have them) or "
                                   "quantized (as the adapter was trained on them)"));
  }
  options.onto = onto == "quantized" ? MergeOnto::kQuantized : MergeOnto::kOriginal;
  options.any_base = flags.Has("any-base");
  options.progress = [](int64_t done, int64_t all) {
    if (done == 0 || all == 1) return;
    std::fprintf(stderr, "shard %lld of %lld written\n", static_cast<long long>(done),
                 static_cast<long long>(all));
  };
  return options;
}

std::string Said(const MergeOptions& options, const MergeReport& report) {
  std::string base = "the original weights";
  if (options.onto == MergeOnto::kQuantized) {
    base = absl::StrCat("weights as ", View(WordOf(spec::kQuantWords, report.base.quant)),
                        report.base.double_quant ? " with double quantization" : "", " holds them");
  }
  std::string text =
      absl::StrCat("merged ", report.matrices, " matrices of r ", report.config.r, " onto ", base, "\n",
                   options.out_dir, "\n", report.files, " files, ",
                   HumanBytes(report.size_bytes), "\n");
  if (!report.end_of_turn.empty()) {
    absl::StrAppend(&text, "note: generation_config.json says that answers end with ", report.end_of_turn,
                    ", too, which the adapter has learned\n");
  }
  if (!report.base_known) {
    absl::StrAppend(&text,
                    "note: the adapter does not say which base it was trained on; its shapes fit this one\n");
  } else if (options.onto == MergeOnto::kOriginal && report.base.quant != spec::QuantKind::kBF16) {
    absl::StrAppend(&text, "note: it was trained on the ", View(WordOf(spec::kQuantWords, report.base.quant)),
                    " form of these weights; --onto quantized merges into exactly that\n");
  }
  return text;
}

}  // namespace

absl::Status MergeCommand(const Arguments& arguments) {
  std::vector<std::string> valued = DeviceFlagNames();
  for (const char* name : {"adapter", "out", "onto"}) valued.emplace_back(name);
  ASSIGN_OR_RETURN(const Flags flags, Flags::Parse(arguments, valued, {"any-base", "json"}));
  ASSIGN_OR_RETURN(const MergeOptions options, OptionsFrom(flags));
  ASSIGN_OR_RETURN(const MergeReport report, MergeAdapter(options));
  if (flags.Has("json")) {
    std::printf("%s\n", Line()
                            .Text("directory", options.out_dir)
                            .Text("onto", options.onto == MergeOnto::kQuantized ? "quantized" : "original")
                            .Integer("matrices", report.matrices)
                            .Integer("files", report.files)
                            .Integer("size_bytes", report.size_bytes)
                            .Take()
                            .c_str());
  } else {
    std::printf("%s", Said(options, report).c_str());
  }
  return absl::OkStatus();
}

}  // namespace nibble::engine
