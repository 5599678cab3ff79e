#include "client/plan_report.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "client/output.h"
#include "client/recipe_keys.h"
#include "client/report.h"
#include "client/report_lines.h"

namespace nibble::client {
namespace {

std::string Parts(const std::vector<std::pair<const char*, int64_t>>& parts) {
  std::vector<std::string> texts;
  for (const auto& [name, bytes] : parts) {
    if (bytes > 0) texts.push_back(absl::StrCat(name, " ", FormatBytes(bytes)));
  }
  return texts.empty() ? "" : absl::StrCat(": ", absl::StrJoin(texts, ", "));
}

std::string ShortText(const v1::DeviceFit& fit) {
  if (!fit.refusal().empty()) return "cannot take it";
  if (fit.shortfall_bytes() > 0) return absl::StrCat(FormatBytes(fit.shortfall_bytes()), " short");
  if (fit.pinned_shortfall_bytes() > 0)
    return absl::StrCat(FormatBytes(fit.pinned_shortfall_bytes()), " page-locked short");
  return absl::StrCat(FormatBytes(fit.host_shortfall_bytes()), " of the host short");
}

std::string Verdict(const v1::DeviceFit& fit, const Style& style) {
  switch (fit.verdict()) {
    case v1::DeviceFit::FITS_NOW:
      return Paint(style, Ink::kGreen, "now");
    case v1::DeviceFit::FITS_ALONE:
      return Paint(style, Ink::kYellow, "alone");
    case v1::DeviceFit::NEVER:
      return Paint(style, Ink::kRed, absl::StrCat("never, ", ShortText(fit)));
    default:
      return "unknown";
  }
}

std::string DevicesTable(const v1::PlanJobResponse& plan, int64_t now_unix_us, const Style& style) {
  const bool starts = std::any_of(plan.fits().begin(), plan.fits().end(),
                                  [](const auto& f) { return f.has_expected_start_time(); });
  const bool ends = std::any_of(plan.fits().begin(), plan.fits().end(),
                                [](const auto& f) { return f.has_expected_end_time(); });
  std::vector<std::vector<std::string>> rows = {
      {"DEVICE", "FITS", "NEEDS", "CAPACITY", "FREE", "LARGEST BATCH", "LONGEST SEQUENCE"}};
  if (starts) rows[0].push_back("STARTS");
  if (ends) rows[0].push_back("ENDS");
  rows[0].push_back("WITH");
  for (const auto& f : plan.fits()) {
    std::vector<std::string> row = {
        PlaceText(f), Verdict(f, style), f.has_plan() ? FormatBytes(f.plan().total_bytes()) : "-",
        FormatBytes(f.capacity_bytes()), FormatBytes(f.free_bytes()),
        f.largest_micro_batch_size() ? absl::StrCat(f.largest_micro_batch_size()) : "-",
        f.largest_sequence_len() ? absl::StrCat(f.largest_sequence_len()) : "-"};
    if (starts) {
      row.push_back(f.has_expected_start_time() ? WhenText(f.expected_start_time(), now_unix_us) : "-");
    }
    if (ends) {
      row.push_back(f.has_expected_end_time() ? WhenText(f.expected_end_time(), now_unix_us) : "-");
    }
    const std::string choices = ChoicesText(f.plan());
    row.push_back(choices.empty() ? "-" : choices);
    rows.push_back(std::move(row));
  }
  return Table(rows, style, {2, 3, 4, 5, 6});
}

std::string ChangesTable(const v1::DeviceFit& fit, const Style& style) {
  std::vector<std::vector<std::string>> rows = {{"  CHANGE", "NEEDS", "SAVES", "COST"}};
  for (const auto& s : fit.suggestions()) {
    rows.push_back({absl::StrCat("  ", OverridesText(s)), FormatBytes(s.total_bytes()),
                    FormatBytes(s.saved_bytes()), s.cost()});
  }
  return Table(rows, style, {1, 2});
}

// Devices that are refused for one reason are told together.
void Refusals(const v1::PlanJobResponse& plan, const Style& style, std::string& out) {
  std::vector<std::pair<std::string, std::string>> told;  // reason, devices
  for (const auto& f : plan.fits()) {
    if (f.refusal().empty()) continue;
    const auto same = std::find_if(told.begin(), told.end(), [&](auto& t) { return t.first == f.refusal(); });
    if (same == told.end()) {
      told.emplace_back(f.refusal(), PlaceText(f));
    } else {
      absl::StrAppend(&same->second, ", ", PlaceText(f));
    }
  }
  for (const auto& [reason, devices] : told) {
    Heading(out, style, absl::StrCat("why it cannot be taken by ", devices));
    absl::StrAppend(&out, "  ", InRecipeWords(reason), "\n");
  }
}

const v1::DeviceFit* Shown(const v1::PlanJobResponse& plan, const std::string& worker) {
  const auto rank = [](const v1::DeviceFit& f) {
    return f.verdict() != v1::DeviceFit::NEVER ? 0 : f.refusal().empty() ? 1 : 2;
  };
  const v1::DeviceFit* chosen = nullptr;
  for (const auto& f : plan.fits()) {
    if (!worker.empty()) {
      if (ShortName(f.worker()) == ShortName(worker)) return &f;
    } else if (chosen == nullptr || rank(f) < rank(*chosen)) {
      chosen = &f;
    }
  }
  return chosen;
}

// "training.micro_batch_size" -> "training.microBatchSize", as the table of keys has it.
std::string CamelCase(const std::string& path) {
  std::string out;
  for (size_t i = 0; i < path.size(); ++i) {
    if (path[i] == '_' && i + 1 < path.size()) {
      out += absl::ascii_toupper(static_cast<unsigned char>(path[++i]));
    } else {
      out += path[i];
    }
  }
  return out;
}

std::string RecipeKey(const std::string& path) {
  if (path == "optimizer.type") return "optimizer";
  const std::string wanted = CamelCase(path);
  for (const KeyRule& rule : KeyRules()) {
    const bool honoured = rule.action != KeyAction::kIgnored && rule.action != KeyAction::kRefused;
    if (honoured && rule.path == wanted) return std::string(rule.key);
  }
  return path;
}

// Nothing for a path that no key stands for.
std::optional<std::string> KeyOf(const std::string& path, bool of_spec) {
  if (path == "data.format") return "datasets[0].type";
  if (of_spec && path == "base_model") return path;
  if (of_spec && path == "dataset") return "datasets";
  if (of_spec && path == "eval_dataset") return "test_datasets";
  const std::string key = absl::StrContains(path, ".") ? RecipeKey(path) : path;
  return key == path ? std::nullopt : std::optional<std::string>(key);
}

std::string Decimal(int64_t bytes, double unit) {
  return absl::StrFormat("%.2f", static_cast<double>(bytes) / unit);
}

}  // namespace

std::string OverridesText(const v1::Suggestion& suggestion) {
  std::vector<std::string> overrides;
  for (const auto& change : suggestion.changes()) {
    overrides.push_back(absl::StrCat(RecipeKey(change.field()), "=", change.value()));
  }
  return absl::StrJoin(overrides, " ");
}

// Each word that is the path of a field, with or without "spec." before it, becomes the recipe's key.
std::string InRecipeWords(absl::string_view text) {
  constexpr absl::string_view kLetters = "abcdefghijklmnopqrstuvwxyz0123456789_.";
  std::string out;
  while (!text.empty()) {
    size_t length = text.find_first_not_of(kLetters);
    if (length == absl::string_view::npos) length = text.size();
    if (length == 0) {
      out += text[0];
      text.remove_prefix(1);
      continue;
    }
    std::string word(text.substr(0, length));
    text.remove_prefix(length);
    std::string end;
    while (absl::EndsWith(word, ".")) {
      word.pop_back();
      end += '.';
    }
    std::string path = word;
    const bool of_spec = absl::StartsWith(path, "spec.");
    if (of_spec) path.erase(0, 5);
    absl::StrAppend(&out, KeyOf(path, of_spec).value_or(word), end);
  }
  return out;
}

absl::Status InRecipeWords(const absl::Status& status) {
  const Reason reason = StatusReason(status);
  if (status.ok() || reason == Reason::kUnspecified) return status;
  Error error(reason, InRecipeWords(status.message()));
  for (const auto& [key, value] : StatusMetadata(status)) error.With(key, value);
  for (const FieldViolation& v : StatusViolations(status))
    error.Violation(InRecipeWords(v.field), InRecipeWords(v.description));
  return error.ToStatus();
}

std::string ChoicesText(const v1::MemoryPlan& plan) {
  std::vector<std::string> words;
  const auto say = [&](bool so, const char* word) {
    if (so) words.emplace_back(word);
  };
  if (!plan.recompute().empty()) words.push_back(absl::StrCat("recompute=", plan.recompute()));
  if (plan.keep_blocks() != 0) words.push_back(absl::StrCat("keep_blocks=", plan.keep_blocks()));
  if (!plan.base_cache().empty() && plan.base_cache() != "off") {
    words.push_back(absl::StrCat("base_cache=", plan.base_cache()));
  }
  say(plan.paged_optimizer(), "optimizer paged");
  say(plan.offload_activations(), "activations offloaded");
  say(plan.cuda_graphs(), "CUDA graphs");
  return absl::StrJoin(words, ", ");
}

// Every line says what its figure is worth: to the byte, or what was measured or allowed for.
std::string MemoryText(const v1::MemoryPlan& plan) {
  constexpr const char* kExact = "; exact";
  std::string out;
  const auto& c = plan.by_category();
  Line(out, "total", Exact(plan.total_bytes()));
  Line(out, "frozen base",
       absl::StrCat(FormatBytes(plan.base_bytes()),
                    Parts({{"codes", c.base_codes()},
                           {"scales", c.base_scales()},
                           {"unquantized", c.base_unquantized()}}),
                    kExact));
  // Of a job that may step together with others the activations are persistent, too (docs/memory.md).
  const int64_t kept = c.adapters() + c.gradients() + c.optimizer();
  const bool keeps_activations =
      !plan.host_apart() && plan.persistent_bytes() - kept > c.activations() / 2;
  const int64_t of_persistent = keeps_activations ? c.activations() : 0;
  Line(out, "persistent",
       absl::StrCat(FormatBytes(plan.persistent_bytes()), Parts({{"adapters", c.adapters()},
                                                                 {"gradients", c.gradients()},
                                                                 {"optimizer", c.optimizer()},
                                                                 {"activations", of_persistent}}),
                    kExact));
  Line(out, "step",
       absl::StrCat(FormatBytes(plan.step_bytes()), Parts({{"activations", c.activations() - of_persistent},
                                                           {"workspace", c.workspace()}}),
                    kExact));
  Line(out, "process",
       absl::StrCat(FormatBytes(plan.fixed_bytes()), "; measured by the worker, assumed for a card"));
  if (plan.host_bytes()) {
    const char* beside = plan.host_apart() ? ", beside the device's" : "";
    Line(out, "host", absl::StrCat(FormatBytes(plan.host_bytes()), beside, "; at most"));
  }
  if (plan.pinned_bytes()) {
    Line(out, "page-locked",
         absl::StrCat(FormatBytes(plan.pinned_bytes()), ", beside the device's", kExact));
  }
  Line(out, "planned with", ChoicesText(plan));
  Line(out, "peak", plan.peak_phase().empty() ? "" : absl::StrCat("in ", plan.peak_phase()));
  if (plan.lower_bound_bytes() > 0 && plan.total_bytes() > 0) {
    const int64_t waste = plan.total_bytes() - plan.lower_bound_bytes();
    Line(out, "lower bound",
         absl::StrCat(FormatBytes(plan.lower_bound_bytes()), "; the plan is ", FormatBytes(waste), " (",
                      absl::StrFormat("%.2f", 100.0 * static_cast<double>(waste) /
                                                  static_cast<double>(plan.total_bytes())),
                      " %) above it"));
  }
  return out;
}

std::string PlanText(const v1::PlanJobResponse& plan, const std::string& worker, int64_t now_unix_us,
                     const Style& style) {
  std::string out;
  Heading(out, style, "spec");
  out += SpecText(plan.effective_spec());
  if (plan.planned_steps() > 0) Line(out, "steps", absl::StrCat(plan.planned_steps()));
  Line(out, "warning", WarmUpText(plan.effective_spec(), plan.planned_steps()));
  if (const v1::DeviceFit* shown = Shown(plan, worker)) {
    Heading(out, style, absl::StrCat("memory on ", PlaceText(*shown)));
    out += shown->refusal().empty() ? MemoryText(shown->plan())
                                    : absl::StrCat("  ", InRecipeWords(shown->refusal()), "\n");
  }
  Heading(out, style, "devices");
  out += DevicesTable(plan, now_unix_us, style);
  Refusals(plan, style, out);
  std::vector<std::string> told;
  for (const auto& f : plan.fits()) {
    if (!f.refusal().empty()) continue;
    if (f.suggestions_size() == 0) {
      if (f.verdict() == v1::DeviceFit::NEVER) {
        Heading(out, style, absl::StrCat("nothing we know of would make it fit ", PlaceText(f)));
      }
      continue;
    }
    const std::string table = ChangesTable(f, style);
    if (std::find(told.begin(), told.end(), table) != told.end()) continue;  // a device like another
    Heading(out, style, absl::StrCat("what would make it fit ", PlaceText(f)));
    out += table;
    told.push_back(table);
  }
  for (const std::string& notice : plan.notices()) {
    absl::StrAppend(&out, Paint(style, Ink::kDim, absl::StrCat("note: ", notice)), "\n");
  }
  return out;
}

const v1::DeviceFit* ShownFit(const v1::PlanJobResponse& plan) { return Shown(plan, ""); }

std::string PlaceText(const v1::DeviceFit& fit) {
  return absl::StrCat(ShortName(fit.worker()), "/", fit.device());
}

std::string FitsText(const v1::PlanJobResponse& plan, const Style& style) {
  constexpr int kMostLines = 8;
  const auto of_worker = [](const v1::DeviceFit& f) { return absl::StartsWith(f.worker(), "workers/"); };
  const bool workers = std::any_of(plan.fits().begin(), plan.fits().end(), of_worker);
  std::string out;
  int lines = 0, more = 0;
  for (const v1::DeviceFit& f : plan.fits()) {
    if (of_worker(f) != workers) continue;
    if (lines == 0) Heading(out, style, "fits");
    if (lines >= kMostLines) {
      ++more;
      continue;
    }
    ++lines;
    const std::string rest = f.refusal().empty()
                                 ? absl::StrCat("; ", FormatBytes(f.plan().total_bytes()), " of ",
                                                FormatBytes(f.capacity_bytes()))
                                 : absl::StrCat(": ", InRecipeWords(f.refusal()));
    Line(out, PlaceText(f), absl::StrCat(Verdict(f, style), rest));
  }
  if (more > 0) Line(out, "", absl::StrCat("and ", more, " more: nibble plan"));
  return out;
}

std::string MethodsText(const v1::PlanJobResponse& plan, const Style& style) {
  std::string out;
  if (plan.methods_size() == 0) return out;
  const auto& spec = plan.effective_spec();
  const bool giga = std::any_of(plan.methods().begin(), plan.methods().end(),
                                [](const auto& m) { return m.total_bytes() >= 1'000'000'000; });
  const auto in = [giga](int64_t bytes) { return Decimal(bytes, giga ? 1e9 : 1e6); };
  Heading(out, style,
          absl::StrCat("methods side by side on ", plan.methods_at(), ": ",
                       spec.training().micro_batch_size(), " x ", spec.data().sequence_len(),
                       " tokens, r ", spec.lora().r(),
                       giga ? ", in GB (10^9 bytes)" : ", in MB (10^6 bytes)"));
  std::vector<std::vector<std::string>> rows = {{"METHOD", "TRAINED", "WEIGHTS", "ADAPTERS", "GRADIENTS",
                                                 "OPTIMIZER", "ACTIVATIONS", "PROCESS", "TOTAL"}};
  for (const auto& m : plan.methods()) {
    rows.push_back({m.name(), FormatCount(static_cast<double>(m.trained_parameters())),
                    in(m.weights_bytes()), in(m.adapters_bytes()), in(m.gradients_bytes()),
                    in(m.optimizer_bytes()), in(m.activations_bytes()),
                    in(m.process_bytes()), in(m.total_bytes())});
  }
  out += Table(rows, style, {1, 2, 3, 4, 5, 6, 7, 8});
  for (const auto& m : plan.methods()) {
    absl::StrAppend(&out, Paint(style, Ink::kDim, absl::StrCat("  ", m.name(), ": ", m.description())), "\n");
  }
  return out;
}

}  // namespace nibble::client
