// Recipes and their plans: nibble plan, recipe, schema.
#include <google/protobuf/util/json_util.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/plan_figure.h"
#include "client/plan_report.h"
#include "client/recipe_text.h"

namespace nibble::client {
namespace {

// config.json itself, or the directory it lies in.
absl::StatusOr<std::string> ReadModelConfig(const std::string& path) {
  const std::string file = IsDirectory(path) ? JoinPath(path, "config.json") : path;
  if (!FileExists(file)) {
    return Error::Field(Reason::kSpecInvalid, "--model-config",
                        absl::StrCat("names ", file, ", which does not exist; give a model's config.json "
                                     "or its directory"))
        .ToStatus();
  }
  return ReadFile(file, int64_t{1} << 20);
}

bool IsOverride(const std::string& word) {
  return word.find('=') != std::string::npos && !FileExists(word);
}

// A recipe, or overrides alone: then everything else is as usual.
absl::StatusOr<Recipe> RecipeOf(const std::string& recipe, const std::vector<std::string>& overrides,
                                const std::string& instead) {
  std::vector<std::string> words = overrides;
  if (!recipe.empty() && !IsOverride(recipe)) return LoadRecipe(recipe, overrides);
  if (!recipe.empty()) words.insert(words.begin(), recipe);
  return ReadRecipe(instead, "command line", "", words);
}

absl::StatusOr<v1::JobSpec> SpecOnly(const Recipe& recipe) {
  v1::JobSpec spec;
  const auto parsed = google::protobuf::util::JsonStringToMessage(recipe.spec_json, &spec);
  if (!parsed.ok()) {
    return Error(Reason::kInternal, absl::StrCat("the recipe does not fit JobSpec: ", parsed.ToString()))
        .ToStatus();
  }
  return spec;
}

// The same recipe, wherever it is kept.
Recipe Absolute(Recipe recipe) {
  for (std::string* path : {&recipe.base_model, &recipe.dataset, &recipe.eval_dataset}) {
    if (path->empty() || !FileExists(*path)) continue;
    if (auto real = RealPath(*path); real.ok()) *path = *std::move(real);
  }
  return recipe;
}

// Errors name the option or the recipe's key rather than the request's field.
template <typename Answer>
absl::StatusOr<Answer> InOurWords(absl::StatusOr<Answer> answer) {
  if (answer.ok()) return answer;
  if (!absl::StrContains(answer.status().message(), "layout_worker")) return InRecipeWords(answer.status());
  return Error(StatusReason(answer.status()),
               absl::StrReplaceAll(answer.status().message(), {{"layout_worker", "--device"}}))
      .ToStatus();
}

// What the figure is of.
std::string Title(const Recipe& recipe, const PlanArgs& args) {
  std::string model = args.model_config.empty() ? recipe.base_model : args.model_config;
  if (BaseName(model) == "config.json") model = DirName(model);
  std::string name = BaseName(model);
  if (absl::EndsWith(name, ".json")) name.resize(name.size() - 5);
  return absl::StrCat("Memory over one training step: ", name);
}

std::string Subtitle(const v1::PlanJobResponse& plan) {
  const v1::JobSpec& spec = plan.effective_spec();
  return absl::StrCat(spec.quantization().type(),
                      spec.quantization().double_quant() ? " with double quantization" : "", ", LoRA r ",
                      spec.lora().r(), ", ", spec.training().micro_batch_size(), " x ",
                      spec.data().sequence_len(), " tokens, ", spec.optimizer().type(),
                      ", recompute ", spec.training().recompute(),
                      spec.training().keep_blocks() == 0
                          ? ""
                          : absl::StrCat(" but for ", spec.training().keep_blocks() + 1, " blocks"),
                      ", on ", plan.layout().worker(), "/",
                      plan.layout().device());
}

absl::Status Draw(const Globals& g, const Recipe& recipe, const PlanArgs& args,
                  const v1::PlanJobResponse& plan) {
  if (args.plot) {
    const PlanCurve curve = CurveOf(plan.layout());
    for (const std::string& line :
         PlotPlan(curve, std::clamp(g.terminal.columns, 60, 120), 18, g.terminal.style)) {
      PrintOut(line + "\n");
    }
  }
  if (args.svg.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(
      WriteFileAtomic(args.svg, PlanSvg(plan.layout(), Title(recipe, args), Subtitle(plan))));
  PrintNote(g.terminal, absl::StrCat("wrote ", args.svg));
  return absl::OkStatus();
}

absl::StatusOr<int> Plan(Client& client, const Globals& g, const PlanArgs& args) {
  const bool inline_config = !args.model_config.empty();
  if (args.recipe.empty() && !inline_config) {
    return Error(Reason::kSpecInvalid,
                 "nibble plan needs a recipe, or --model-config config.json")
        .ToStatus();
  }
  ASSIGN_OR_RETURN(const Recipe recipe,
                   RecipeOf(args.recipe, args.overrides,
                            inline_config ? "base_model: /model\ndatasets: /data.jsonl\n" : ""));
  for (const std::string& notice : recipe.notices) {
    if (inline_config) PrintNote(g.terminal, absl::StrCat("note: ", notice));
  }
  v1::PlanJobRequest request;
  if (inline_config) {
    ASSIGN_OR_RETURN(*request.mutable_model_config_json(), ReadModelConfig(args.model_config));
    ASSIGN_OR_RETURN(*request.mutable_spec(), SpecOnly(recipe));
  } else {
    ASSIGN_OR_RETURN(*request.mutable_spec(), PrepareSpec(client, g.terminal, recipe));
  }
  request.set_methods(args.methods);
  request.set_layout(args.plot || !args.svg.empty());
  request.set_layout_worker(args.device);
  ASSIGN_OR_RETURN(const v1::PlanJobResponse plan, InOurWords(client.PlanJob(request)));
  if (!PrintMessage(g.terminal, plan)) {
    PrintOut(PlanText(plan, args.device, RealClock::Get().NowUnixUs(), g.terminal.style));
    PrintOut(MethodsText(plan, g.terminal.style));
    RETURN_IF_ERROR(Draw(g, recipe, args, plan));
  }
  // Cards are no devices of this server: what fits only them does not fit.
  const bool any_worker = std::any_of(plan.fits().begin(), plan.fits().end(), [](const auto& f) {
    return absl::StartsWith(f.worker(), "workers/");
  });
  const bool fits = std::any_of(plan.fits().begin(), plan.fits().end(), [&](const auto& f) {
    return f.verdict() != v1::DeviceFit::NEVER && (!any_worker || absl::StartsWith(f.worker(), "workers/"));
  });
  return fits || inline_config ? kExitOk : kExitInvalid;
}

}  // namespace

int PlanCommand(const Globals& g, const PlanArgs& args) {
  return WithClient(g, [&](Client& client) { return Plan(client, g, args); });
}

int RecipeCommand(const Globals& g, const std::string& path, const std::vector<std::string>& overrides) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const Recipe recipe, RecipeOf(path, overrides, ""));
    v1::PlanJobRequest request;
    ASSIGN_OR_RETURN(*request.mutable_spec(), SpecOnly(recipe));
    std::string directory = recipe.base_model;
    if (absl::StartsWith(directory, "models/") && !IsDirectory(directory)) {
      request.mutable_spec()->set_base_model(directory);
    } else {
      if (!IsDirectory(directory)) {
        ASSIGN_OR_RETURN(directory, FindInHubCache(recipe.base_model, recipe.base_revision));
      }
      ASSIGN_OR_RETURN(*request.mutable_model_config_json(), ReadModelConfig(directory));
    }
    ASSIGN_OR_RETURN(const v1::PlanJobResponse plan, InOurWords(client.PlanJob(request)));
    if (!PrintMessage(g.terminal, plan.effective_spec())) {
      PrintOut(RecipeText(Absolute(recipe), plan.effective_spec()));
      for (const std::string& notice : recipe.notices) PrintNote(g.terminal, absl::StrCat("note: ", notice));
    }
    return kExitOk;
  });
}

int SchemaCommand(const Globals&) {
  PrintOut(RecipeSchema());
  return kExitOk;
}

}  // namespace nibble::client
