// The flags of recipes and jobs.
#include <string>

#include "client/command_line.h"

namespace nibble::client {
namespace {

void AddRecipeFlags(CLI::App* command, Commands& c) {
  command->add_option("recipe", c.submit.recipe, "recipe in YAML")->required();
  command->add_option("override", c.submit.overrides,
                      "key=value, e.g. learning_rate=1e-4 base_model=DIR datasets=FILE");
}

void AddSubmitFlags(CLI::App* command, Commands& c) {
  AddRecipeFlags(command, c);
  command->add_option("--name", c.submit.name,
                      "the job's name (default: nibble.name of the recipe)");
  command->add_option("--label", c.submit.labels, "key=value; may be repeated")
      ->allow_extra_args(false);
  command->add_option("--priority", c.submit.priority, "higher runs first");
  command->add_option("--request-id", c.submit.request_id,
                      "a UUID; submitting it again gives the first job");
  command->add_flag("-n,--dry-run", c.submit.dry_run, "check everything, create nothing");
}

void AddPlanCommands(CLI::App& app, Commands& c) {
  auto* plan = Add(&app, "plan", "Show what a recipe would need and where it would fit", c,
                   [&c] { return PlanCommand(c.g, c.plan); });
  plan->add_option("recipe", c.plan.recipe, "recipe in YAML; may be left out with --model-config");
  plan->add_option("override", c.plan.overrides, "key=value");
  plan->add_option("--model-config", c.plan.model_config,
                   "a config.json or its directory: plans for that model without registering it");
  plan->add_option("--device", c.plan.device,
                   "worker or card to show in full, e.g. card-24gb (default: the first that fits)");
  plan->add_flag("--methods", c.plan.methods,
                 "QLoRA, 16-bit LoRA and full fine-tuning side by side");
  plan->add_flag("--plot", c.plan.plot, "draw memory over one step");
  plan->add_option("--svg", c.plan.svg, "write that figure to a file");
  auto* recipe = Add(&app, "recipe", "Print a recipe with every default written out", c,
                     [&c] { return RecipeCommand(c.g, c.file, c.names); });
  recipe->add_option("recipe", c.file, "recipe in YAML, or overrides alone: base_model=DIR datasets=FILE")
      ->required();
  recipe->add_option("override", c.names, "key=value");
  Add(&app, "schema", "Print the JSON Schema of recipes, for editors", c,
      [&c] { return SchemaCommand(c.g); });
}

}  // namespace

void AddJobCommands(CLI::App& app, Commands& c) {
  auto* run = Add(&app, "run", "Submit a recipe and follow the job", c,
                  [&c] { return RunCommand(c.g, c.submit, c.detach); });
  AddSubmitFlags(run, c);
  run->add_flag("-d,--detach", c.detach, "do not follow");
  AddSubmitFlags(Add(&app, "submit", "Submit a recipe and print the job's name", c,
                     [&c] { return SubmitCommand(c.g, c.submit); }),
                 c);
  AddRecipeFlags(Add(&app, "validate", "Check a recipe, its data and its memory plan", c,
                     [&c] { return ValidateCommand(c.g, c.submit); }),
                 c);
  AddPlanCommands(app, c);
  auto* list = Add(&app, "ps", "List jobs that are not finished", c,
                   [&c] { return ListCommand(c.g, c.list); });
  list->alias("list")->alias("ls");
  list->add_flag("-a,--all", c.list.all, "finished ones too");
  list->add_flag("-w,--watch", c.list.watch, "again and again, until Ctrl-C");
  list->add_option("--state", c.list.states, "only jobs in these states");
  list->add_option("--label", c.list.labels, "only jobs with this key=value; may be repeated")
      ->allow_extra_args(false);
  list->add_option("--limit", c.list.limit, "at most so many; 0 = all")
      ->check(AtLeast(0))->capture_default_str();
  const auto one = [&](const std::string& name, const std::string& description,
                       int (*body)(const Globals&, const std::string&)) {
    CLI::App* command = Add(&app, name, description, c, [&c, body] { return body(c.g, c.job); });
    command->add_option("job", c.job, "the job's name")->required();
    return command;
  };
  one("get", "Show one job", GetCommand);
  auto* why = Add(&app, "why", "Say why a job waits, device by device, and what would let it start", c,
                  [&c] { return WhyCommand(c.g, c.job, c.max_devices); });
  why->add_option("job", c.job, "the job's name")->required();
  why->add_option("--devices", c.max_devices, "show at most so many, where it starts soonest first")
      ->check(AtLeast(1))->capture_default_str();
  one("describe", "Show everything about a job", DescribeCommand);
  one("watch", "Follow a job live", WatchCommand);
  one("checkpoints", "List a job's checkpoints", CheckpointsCommand);
  auto* events = Add(&app, "events", "List what happened to a job", c,
                     [&c] { return EventsCommand(c.g, c.job, c.follow); });
  events->alias("logs");
  events->add_option("job", c.job, "the job's name")->required();
  events->add_flag("-f,-w,--follow,--watch", c.follow, "go on until the job ends");
  auto* metrics = Add(&app, "metrics", "Show a job's loss and other series", c,
                      [&c] { return MetricsCommand(c.g, c.metrics); });
  metrics->add_option("job", c.metrics.job, "the job's name")->required();
  metrics
      ->add_option("--name", c.metrics.names,
                   "loss,eval_loss,grad_norm,learning_rate,tokens,tokens_per_second,used_bytes")
      ->capture_default_str();
  metrics->add_flag("--plot", c.metrics.plot, "draw it");
  metrics->add_flag("--csv", c.metrics.csv, "comma separated");
  metrics->add_flag("--phases", c.metrics.phases, "where the time of the steps went (on CPUs)");
  metrics
      ->add_option("--points", c.metrics.max_points, "thin out to about so many, and as many evaluations")
      ->check(AtLeast(2))->capture_default_str();
}

void AddJobVerbs(CLI::App& app, Commands& c) {
  const auto verb = [&](const std::string& name, const std::string& description, Verb which) {
    Add(&app, name, description, c, [&c, which] { return VerbCommand(c.g, which, c.names); })
        ->add_option("jobs", c.names, "names of jobs")
        ->required();
  };
  verb("cancel", "Stop jobs for good", Verb::kCancel);
  verb("pause", "Checkpoint jobs and free their memory", Verb::kPause);
  verb("resume", "Queue paused jobs again", Verb::kResume);
  verb("rm", "Remove finished jobs", Verb::kRemove);
  auto* update = Add(&app, "update", "Change a job that waits or runs", c,
                     [&c] { return UpdateCommand(c.g, c.update); });
  update->add_option("job", c.update.job, "the job's name")->required();
  update->add_option("--priority", c.update.priority, "higher runs first");
  update->add_flag("--allow-numerics-change", c.update.allow_numerics_change,
                   "let it go on under another version of Nibble or on another kind of processor, with "
                   "other rounding; not taken back");
  auto* wait = Add(&app, "wait", "Wait until jobs have ended", c,
                   [&c] { return WaitCommand(c.g, c.names, c.wait_for, c.wait_timeout_s); });
  wait->add_option("jobs", c.names, "names of jobs")->required();
  wait->add_option("--for", c.wait_for, "state=STATE instead of the end");
  wait->add_option("--timeout", c.wait_timeout_s, "seconds; 0 = no limit")
      ->check(AtLeast(0));
  auto* download = Add(&app, "download", "Fetch a job's adapter, verified; resumes when cut", c,
                       [&c] { return DownloadCommand(c.g, c.job, c.directory); });
  download->add_option("job", c.job, "the job's name, or adapters/{id}")->required();
  download->add_option("-o,--out", c.directory, "directory (default: JOB-adapter)");
}

}  // namespace nibble::client
