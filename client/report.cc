#include "client/report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "client/output.h"
#include "client/plan_report.h"
#include "client/report_lines.h"
#include "google/rpc/error_details.pb.h"

namespace nibble::client {
namespace {

std::string OnOff(bool flag) { return flag ? "yes" : "no"; }
std::string Rows(int64_t rows) { return absl::StrCat(rows, rows == 1 ? " row" : " rows"); }

using Json = nlohmann::ordered_json;

int64_t Count(const Json& o, const char* key) {
  const auto it = o.find(key);
  return it != o.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
}

double Share(const Json& o, const char* key) {
  const auto it = o.find(key);
  return it != o.end() && it->is_number() ? it->get<double>() : 0;
}

std::string Text(const Json& o, const char* key) {
  const auto it = o.find(key);
  return it != o.end() && it->is_string() ? it->get<std::string>() : "";
}

bool Flag(const Json& o, const char* key) {
  const auto it = o.find(key);
  return it != o.end() && it->is_boolean() && it->get<bool>();
}

const Json& Items(const Json& o, const char* key) {
  static const Json* const kNone = new Json(Json::array());
  const auto it = o.find(key);
  return it != o.end() && it->is_array() ? *it : *kNone;
}

// The first rows a model would see, what is trained on set apart.
void Samples(std::string& out, const Json& report, const Style& style) {
  for (const Json& sample : Items(report, "samples")) {
    if (!sample.is_object()) continue;
    absl::StrAppend(&out, Paint(style, Ink::kBold, absl::StrCat("row ", Count(sample, "row"))),
                    ", ", Count(sample, "tokens"), " tokens, ", Count(sample, "trained_tokens"),
                    " trained on (", style.color ? "green" : "between >> and <<", ")\n");
    for (const Json& piece : Items(sample, "pieces")) {
      const bool trained = Flag(piece, "trained");
      const std::string text = piece.is_object() ? Text(piece, "text") : "";
      out += !trained      ? text
             : style.color ? Paint(style, Ink::kGreen, text)
                           : absl::StrCat(">>", text, "<<");
    }
    out += "\n";
  }
}

// "too long": why rows were left out, a word of the engine's report.
std::string InWords(const Json& rejected) {
  return absl::StrReplaceAll(Text(rejected, "reason"), {{"_", " "}});
}

void Troubles(std::string& out, const Json& report) {
  for (const Json& rejected : Items(report, "rejected")) {
    if (!rejected.is_object()) continue;
    std::vector<std::string> first;
    for (const Json& row : Items(rejected, "first_rows")) first.push_back(row.dump());
    const int64_t rows = Count(rejected, "rows");
    Line(
        out, "left out",
        absl::StrCat(Rows(rows), ": ", InWords(rejected), rows == 1 ? " (row " : " (rows ",
                     absl::StrJoin(first, ", "), rows > static_cast<int64_t>(first.size()) ? ", ...)" : ")"));
  }
  if (const int64_t rows = Count(report, "truncated_rows"); rows > 0) {
    Line(out, "truncated",
         absl::StrCat(Rows(rows), rows == 1 ? " loses " : " lose ", Count(report, "truncated_tokens"),
                      " tokens"));
  }
  if (const int64_t rows = Count(report, "duplicate_rows"); rows > 0) {
    Line(out, "duplicates", Rows(rows));
  }
  if (const int64_t rows = Count(report, "rows_without_eos"); rows > 0) {
    Line(out, "without an end", Rows(rows));
  }
  for (const Json& warning : Items(report, "warnings")) {
    if (warning.is_string()) Line(out, "warning", warning.get<std::string>());
  }
}

}  // namespace

std::string SpecText(const v1::JobSpec& spec) {
  std::string out;
  Line(out, "base model", spec.base_model());
  Line(out, "data set", spec.dataset());
  Line(out, "held-out set", spec.eval_dataset());
  const auto& lora = spec.lora();
  Line(out, "lora",
       absl::StrCat("r ", lora.r(), ", alpha ", lora.alpha(), ", dropout ", lora.dropout(),
                    lora.use_rslora() ? ", rsLoRA" : ""));
  Line(out, "modules", absl::StrJoin(lora.target_modules(), " "));
  Line(out, "base held as",
       absl::StrCat(spec.quantization().type(),
                    spec.quantization().double_quant() ? ", double quantization" : ""));
  const auto& data = spec.data();
  Line(out, "data",
       absl::StrCat(data.format(), ", ", data.sequence_len(), " tokens, packing ",
                    OnOff(data.sample_packing()),
                    ", over-length rows: ", data.excess_length_strategy()));
  const auto& o = spec.optimizer();
  Line(out, "optimizer",
       absl::StrCat(o.type() == "adamw8bit" ? "AdamW (8-bit moments)" : "AdamW",
                    o.paged() ? ", paged" : "", ", lr ", FormatRate(o.learning_rate()), " ",
                    o.lr_scheduler(), ", warm-up ",
                    o.has_warmup_steps() ? absl::StrCat(o.warmup_steps(), " steps")
                                         : absl::StrCat(o.warmup_ratio()),
                    ", decay ", o.weight_decay(), ", clip ", o.max_grad_norm()));
  const auto& t = spec.training();
  Line(out, "batch",
       absl::StrCat(t.micro_batch_size(), " x ", t.gradient_accumulation_steps(),
                    " sequences a step"));
  Line(out, "length",
       t.max_steps() > 0
           ? absl::StrCat(t.max_steps(), " steps")
           : absl::StrCat(t.num_epochs(), t.num_epochs() == 1 ? " epoch" : " epochs"));
  Line(out, "recomputation",
       absl::StrCat(t.recompute().empty() ? OnOff(t.gradient_checkpointing()) : t.recompute(),
                    t.keep_blocks() == 0 ? "" : absl::StrCat(", keep_blocks ", t.keep_blocks()),
                    t.offload_activations() ? ", inputs of blocks offloaded" : ""));
  Line(out, "decoded base", t.base_cache() == "off" ? "" : t.base_cache());
  Line(out, "seed", absl::StrCat(t.seed()));
  return out;
}

namespace {

// An attempt that ended with steps behind its last checkpoint may have left them to the next one.
bool MayHaveRepeated(const v1::Job& job) {
  bool broke = false;
  for (const auto& attempt : job.attempts()) {
    if (attempt.kind() == "CHECK") continue;
    if (broke && attempt.continues_epoch() == 0) return true;
    broke = attempt.state() == "LOST" || attempt.state() == "FAILED";
  }
  return false;
}

}  // namespace

std::string JobText(const v1::Job& job, const Style& style, const std::string& planned_for) {
  std::string out;
  Heading(out, style, job.has_create_time() ? ShortName(job.name()) : "job (not created)");
  if (job.has_create_time()) {
    Line(out, "state", StateText(style, job.state()));
    Line(out, "why", job.state_reason());
    if (job.queue_position() > 0)
      Line(out, "place in the queue", absl::StrCat(job.queue_position()));
    Line(out, "worker", job.worker());
    Line(out, "adapter", job.adapter());
    Line(out, "priority", absl::StrCat(job.priority()));
    for (const auto& [key, value] : job.labels()) Line(out, "label " + key, value);
    Line(out, "created", TimeText(ToUnixUs(job.create_time())));
    if (job.has_start_time()) Line(out, "started", TimeText(ToUnixUs(job.start_time())));
    if (job.has_end_time()) Line(out, "ended", TimeText(ToUnixUs(job.end_time())));
    Line(out, "numerics", job.numerics_id());
    if (job.has_error()) Line(out, "error", job.error().message());
    Line(out, "stopped because", job.stop_reason());
  }
  const auto& p = job.progress();
  if (p.completed_steps() > 0 || p.planned_steps() > 0) {
    Heading(out, style, "progress");
    Line(out, "steps", absl::StrCat(p.completed_steps(), " of ", p.planned_steps()));
    Line(out, "warning", WarmUpText(job.effective_spec(), p.planned_steps()));
    if (p.completed_steps() > 0)
      Line(out, "tokens",
           absl::StrCat(FormatCount(static_cast<double>(p.trained_tokens())),
                        MayHaveRepeated(job) ? "; steps that were repeated count again" : ""));
    if (p.has_loss()) Line(out, "loss", FormatLoss(p.loss()));
    if (p.has_eval_loss()) Line(out, "held-out loss", FormatLoss(p.eval_loss()));
    if (p.tokens_per_second() > 0)
      Line(out, "speed", absl::StrCat(FormatCount(p.tokens_per_second()), " tokens/s"));
  }
  Heading(out, style, "spec");
  out += SpecText(job.has_effective_spec() ? job.effective_spec() : job.spec());
  if (job.has_plan()) {
    Heading(out, style, planned_for.empty() ? "memory" : "memory on " + planned_for);
    out += MemoryText(job.plan());
    if (job.used_bytes() > 0) Line(out, "used", Exact(job.used_bytes()));
  }
  if (job.attempts_size() > 0) Heading(out, style, "attempts");
  for (const auto& a : job.attempts()) {
    absl::StrAppend(
        &out, "  #", a.epoch(), " ", a.state(),
        a.worker().empty() ? "" : " on " + ShortName(a.worker()),
        a.start_step() > 0 ? absl::StrCat(" from step ", a.start_step()) : "",
        a.continues_epoch() > 0 ? absl::StrCat(", in the memory of #", a.continues_epoch()) : "",
        a.reason().empty() ? "" : absl::StrCat(": ", a.reason()), "\n");
  }
  return out;
}

std::string ReasonText(const v1::Job& job) {
  google::rpc::ErrorInfo info;
  for (const auto& detail : job.error().details()) {
    if (detail.Is<google::rpc::ErrorInfo>()) detail.UnpackTo(&info);
  }
  return info.reason().empty() ? job.state_reason() : absl::StrCat(info.reason(), ": ", job.state_reason());
}

std::string WarmUpText(const v1::JobSpec& spec, int64_t steps) {
  const auto& o = spec.optimizer();
  // As engine/spec has it: of a ratio, the share of the steps, rounded up.
  const int64_t warm_up = o.has_warmup_steps()
                              ? o.warmup_steps()
                              : std::llround(std::ceil(static_cast<double>(steps) * o.warmup_ratio()));
  if (steps <= 0 || warm_up <= steps / 2) return "";
  if (steps == 1)
    return "the only step is warm-up, with learning rate 0: nothing is learned; set warmup_steps: 0";
  const int64_t of_them = std::min(warm_up, steps);
  return absl::StrCat(of_them == steps ? "all" : absl::StrCat(of_them, " of"), " ", steps,
                      " steps are warm-up, the first of them with learning rate 0; set warmup_steps lower");
}

std::vector<std::string> DataWarnings(const v1::Job& job) {
  std::vector<std::string> lines;
  const Json report = Json::parse(job.dataset_report_json(), nullptr, false);
  if (report.is_object()) {
    for (const Json& rejected : Items(report, "rejected")) {
      if (!rejected.is_object()) continue;
      lines.push_back(absl::StrCat("left out: ", Count(rejected, "rows"), " of ", Rows(Count(report, "rows")),
                                   ", ", InWords(rejected)));
    }
    for (const Json& warning : Items(report, "warnings")) {
      if (warning.is_string()) lines.push_back("warning: " + warning.get<std::string>());
    }
  }
  const std::string warm_up = WarmUpText(job.effective_spec(), job.progress().planned_steps());
  if (!warm_up.empty()) lines.push_back("warning: " + warm_up);
  return lines;
}

std::string DataReportText(const std::string& json, const Style& style, const v1::JobSpec* spec) {
  const Json report = Json::parse(json, nullptr, false);
  std::string out;
  if (!report.is_object()) return out;
  Heading(out, style, "data");
  Line(out, "rows",
       absl::StrCat(Count(report, "usable_rows"), " usable of ", Count(report, "rows"), "; ",
                    Count(report, "train_rows"), " to train on, ", Count(report, "eval_rows"),
                    " held out"));
  Line(out, "format", Text(report, "format"));
  const int64_t tokens = Count(report, "tokens");
  const int64_t trained = Count(report, "trained_tokens");
  const double share = tokens > 0 ? static_cast<double>(trained) * 100 / static_cast<double>(tokens) : 0;
  const int percent = static_cast<int>(std::clamp(share, 0.0, 100.0));
  Line(out, "tokens",
       absl::StrCat(tokens, ", of which ", trained, " are trained on (",
                    percent, " %)"));
  if (const auto it = report.find("length"); it != report.end() && it->is_object()) {
    Line(out, "tokens a row",
         absl::StrCat("min ", Count(*it, "min"), ", p5 ", Count(*it, "p5"), ", median ",
                      Count(*it, "p50"), ", p95 ", Count(*it, "p95"), ", max ", Count(*it, "max")));
  }
  const auto fill = [&](const char* key) {
    return static_cast<int>(std::clamp(Share(report, key), 0.0, 1.0) * 100 + 0.5);
  };
  Line(out, "steps",
       absl::StrCat(Count(report, "steps_packed"), " packed (", fill("fill_packed"), " % full), ",
                    Count(report, "steps_unpacked"), " unpacked (", fill("fill_unpacked"),
                    " % full)"));
  if (spec != nullptr)
    Line(out, "warning",
         WarmUpText(*spec, Count(report, spec->data().sample_packing() ? "steps_packed" : "steps_unpacked")));
  Troubles(out, report);
  Samples(out, report, style);
  return out;
}

std::string AdapterUses(const std::string& directory, const std::string& name,
                        const std::string& adapter_config) {
  const Json config = Json::parse(adapter_config, nullptr, /*allow_exceptions=*/false);
  const int64_t rank = config.is_object() ? Count(config, "r") : 0;
  // vLLM serves ranks to 16 unless told, and takes these values (vllm/config/lora.py,
  // MaxLoRARanks).
  std::string longer;
  if (rank > 16) {
    for (const int64_t allowed : {32, 64, 128, 256, 320, 512}) {
      if (allowed < rank) continue;
      longer = absl::StrCat(" --max-lora-rank ", allowed);
      break;
    }
  }
  return absl::StrCat("nibble generate --base BASE_DIR --adapter ", directory, " \"prompt\"\n",
                      "vllm serve BASE_DIR --enable-lora", longer, " --lora-modules ", name, "=",
                      directory, "\n", "python convert_lora_to_gguf.py --base BASE_DIR ", directory,
                      "    (llama.cpp)\n", "nibble merge --base BASE_DIR --adapter ", directory,
                      " --out MODEL_DIR    (a model that needs no adapter)\n");
}

}  // namespace nibble::client
