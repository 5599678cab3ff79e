// The command `nibble`: how its flags are spelled. What commands do is in commands.h.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/commands.h"
#include "client/completion.h"
#include "client/recipe_keys.h"
#include "proto/endpoint.h"

namespace nibble::client {
namespace {

struct Commands {
  Globals g;
  SubmitArgs submit;
  bool detach = false;
  ListArgs list;
  PlanArgs plan;
  bool follow = false;
  int rows = 5;
  bool all_workers = false;
  int wait_timeout_s = 0;
  std::string wait_for;
  MetricsArgs metrics;
  UpArgs up;
  std::string job;
  UpdateArgs update;
  int max_devices = 20;
  std::string name;
  std::string file;
  std::string directory;
  bool on_server = false;
  std::string model;
  std::string shell;
  std::vector<std::string> names;
  std::string base;
  std::string adapter;
  std::function<int()> chosen;
};

// A whole number from `low` on: CLI11 itself takes negative ones without a word.
CLI::Validator AtLeast(int low) {
  return CLI::Validator(
      [low](const std::string& text) -> std::string {
        int value = 0;
        const bool good = absl::SimpleAtoi(text, &value) && value >= low;
        return good ? "" : absl::StrCat("must be a whole number, at least ", low, ", got ", text);
      },
      "");
}

// A subcommand that runs `body` when it was the one asked for.
CLI::App* Add(CLI::App* parent, const std::string& name, const std::string& description,
              Commands& c, std::function<int()> body) {
  CLI::App* command = parent->add_subcommand(name, description);
  if (body) command->callback([&c, body = std::move(body)] { c.chosen = body; });
  return command;
}

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

CLI::App* AddGroup(CLI::App& app, const std::string& name, const std::string& description) {
  return app.add_subcommand(name, description);
}

void AddNamed(CLI::App* group, const std::string& name, const std::string& description, Commands& c,
              int (*body)(const Globals&, const std::string&)) {
  Add(group, name, description, c, [&c, body] { return body(c.g, c.name); })
      ->add_option("name", c.name, "its name")
      ->required();
}

void AddRemove(CLI::App* group, Commands& c,
               int (*body)(const Globals&, const std::vector<std::string>&),
               const char* description = "Remove") {
  Add(group, "rm", description, c, [&c, body] { return body(c.g, c.names); })
      ->add_option("names", c.names, "their names")
      ->required();
}

void AddThings(CLI::App& app, Commands& c) {
  CLI::App* dataset = AddGroup(app, "dataset", "Data sets on the server");
  auto* push = Add(dataset, "push", "Upload a JSONL file and check it", c,
                   [&c] { return DatasetPush(c.g, c.file, c.name); });
  push->add_option("file", c.file, "JSONL file")->required();
  push->add_option("--name", c.name, "its name (default: chosen by the server)");
  Add(dataset, "ls", "List", c, [&c] { return DatasetList(c.g); })->alias("list");
  AddNamed(dataset, "get", "Show one", c, DatasetGet);
  auto* preview = Add(dataset, "preview", "Show the first rows", c,
                      [&c] { return DatasetPreview(c.g, c.name, c.rows); });
  preview->add_option("name", c.name, "its name")->required();
  preview->add_option("--rows", c.rows, "how many")->check(AtLeast(1))->capture_default_str();
  auto* validate = Add(dataset, "validate", "Count tokens with a model's tokenizer", c,
                       [&c] { return DatasetValidate(c.g, c.name, c.model); });
  validate->add_option("name", c.name, "its name")->required();
  validate->add_option("--model", c.model, "models/{id}")->required();
  AddRemove(dataset, c, DatasetRemove);

  CLI::App* model = AddGroup(app, "model", "Base models on the server");
  auto* reg = Add(model, "register", "Register a directory in Hugging Face layout", c,
                  [&c] { return ModelRegister(c.g, c.directory, c.name, c.on_server); });
  reg->alias("add");
  reg->add_option("directory", c.directory, "with config.json, *.safetensors, tokenizer.json")
      ->required();
  reg->add_option("--name", c.name, "its name (default: chosen by the server)");
  reg->add_flag("--on-server", c.on_server,
                "the directory is on the server's machine, below its --model-root: nothing is sent");
  Add(model, "ls", "List", c, [&c] { return ModelList(c.g); })->alias("list");
  AddNamed(model, "get", "Show one", c, ModelGet);
  AddNamed(model, "inspect", "Show one", c, ModelGet);
  AddRemove(model, c, ModelRemove);

  CLI::App* adapter = AddGroup(app, "adapter", "Adapters on the server");
  Add(adapter, "ls", "List", c, [&c] { return AdapterList(c.g); })->alias("list");
  AddNamed(adapter, "get", "Show one", c, AdapterGet);
  AddRemove(adapter, c, AdapterRemove);

  CLI::App* worker = AddGroup(app, "worker", "Workers");
  Add(worker, "ls", "List", c, [&c] { return WorkerList(c.g, c.all_workers); })
      ->alias("list")
      ->add_flag("-a,--all", c.all_workers, "those lost for more than a day too");
  for (const bool drain : {true, false}) {
    Add(worker, drain ? "drain" : "undrain",
        drain ? "Let its jobs move elsewhere" : "Give it jobs again", c,
        [&c, drain] { return WorkerDrain(c.g, c.name, drain); })
        ->add_option("name", c.name, "its name")
        ->required();
  }
  AddRemove(worker, c, WorkerRemove, "Forget workers that are lost for good");
}

CommandShape ShapeOf(const CLI::App& app) {
  CommandShape shape{app.get_name(), app.get_description(), {}, {}};
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) shape.flags.push_back("--" + name);
    for (const std::string& name : option->get_snames()) shape.flags.push_back("-" + name);
  }
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    shape.commands.push_back(ShapeOf(*command));
  }
  return shape;
}

void AddMachine(CLI::App& app, Commands& c) {
  auto* up = Add(&app, "up", "Start a server and a worker on this machine", c,
                 [&c] { return UpCommand(c.g, c.up); });
  up->add_option("--listen", c.up.listen, "gRPC address; port 0 chooses one")
      ->capture_default_str();
  up->add_option("--http", c.up.http, "address of /metrics and health")->capture_default_str();
  up->add_option("--threads", c.up.threads, "of the engine (default: all)")->check(AtLeast(1));
  up->add_option("--memory", c.up.memory,
                 "what the worker offers, e.g. 8GiB (default: what is free less 1 GiB)");
  up->add_flag("--no-worker", c.up.no_worker, "the server alone");
  up->add_flag("-d,--detach", c.up.detach, "in the background; nibble down stops it");
  Add(&app, "down", "Stop a nibble up in the background", c, [&c] { return DownCommand(c.g); });
  Add(&app, "doctor", "Check what nibble needs here", c, [&c] { return DoctorCommand(c.g); });
  Add(&app, "version", "Show the version", c, [&c] {
    PrintOut(c.g.output == "json" ? "{\"version\": \"" NIBBLE_VERSION "\"}\n"
                                  : "nibble " NIBBLE_VERSION "\n");
    return static_cast<int>(kExitOk);
  });
  // They take words of their own, which Main hands on; here they are named for help and completion.
  auto* generate =
      app.add_subcommand("generate", "Generate text on this machine, with or without an adapter");
  generate->add_option("--base", c.base, "base model directory")->required();
  generate->add_option("--adapter", c.adapter, "adapter directory");
  generate->add_option("prompt", c.file, "the text to go on from");
  const std::pair<const char*, const char*> valued[] = {
      {"--max-tokens", "at most so many tokens an answer (128)"},
      {"--temperature", "0 takes the likeliest token; above it draws (0)"},
      {"--top-p", "draw from the likeliest tokens that make up this share (1)"},
      {"--seed", "of the draws (42)"},
      {"--prompts", "file of JSON lines, each with a prompt; with a completion too for --score"},
      {"--limit", "only the first so many of them"},
      {"--chat-template", "as --chat, in the template that a recipe's chat_template names, e.g. chatml"},
      {"--quant", "how the base is held: nf4, fp4, int4, int8, bf16 (as the adapter was trained on; nf4)"},
      {"--device", "cpu, or cuda:0 and so on (cpu)"},
      {"--threads", "of the engine (all cores)"}};
  for (const auto& [flag, what] : valued) generate->add_option(flag, what);
  generate->add_flag("--chat")->description(
      "the prompt is what a user says, in the model's chat template");
  generate->add_flag("--json")->description(
      "a line of JSON per answer, with token counts");
  generate->add_flag("--score")->description(
      "count the answers against the completions in --prompts");
  auto* merge = app.add_subcommand("merge", "Add an adapter into its base: a model that needs none");
  merge->add_option("--base", c.base, "base model directory")->required();
  merge->add_option("--adapter", c.adapter, "adapter directory")->required();
  merge->add_option("--out", c.directory, "folder to make")->required();
  const std::pair<const char*, const char*> merge_valued[] = {
      {"--onto", "original: weights as the base has them; quantized: as it was trained on (original)"},
      {"--threads", "(all cores)"}};
  for (const auto& [flag, what] : merge_valued) merge->add_option(flag, what);
  merge->add_flag("--any-base")->description("also onto weights the adapter was not trained on");
  merge->add_flag("--json")->description("the result as a line of JSON");
  auto* token = AddGroup(app, "token", "Access tokens of the server on this machine");
  auto* create = token->add_subcommand("create", "Make a token and show it, this once");
  create->add_option("--name", c.name, "whose it is: NAME or PROJECT/NAME")->required();
  create->add_option("--role")->description("client (default), worker or admin");
  create->add_option("--expires-days")->description("after so many days it is refused (default: never)");
  token->add_subcommand("ls", "List");
  token->add_subcommand("revoke", "Refuse a token from now on")
      ->add_option("id", c.name, "as nibble token ls shows it")
      ->required();
  auto* completion = Add(&app, "completion", "Print a completion script", c, [&c, &app] {
    PrintOut(CompletionScript(ShapeOf(app), c.shell));
    return static_cast<int>(kExitOk);
  });
  completion->add_option("shell", c.shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
}

// What to say about a first word that is no command; "" when it is one.
std::string UnknownCommand(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return "";
  std::vector<std::string_view> known;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (command->check_name(argv[1])) return "";
    known.push_back(command->get_name());
  }
  const std::string close = ClosestKey(argv[1], known);
  return absl::StrCat(
      "nibble has no command ", argv[1],
      close.empty() ? "; see nibble --help" : absl::StrCat("; did you mean nibble ", close, "?"));
}

// `nibble generate`, `nibble merge` and `nibble token` are other binaries' commands under our name.
bool HasItsOwnOptions(const std::string_view command) {
  return command == "generate" || command == "merge" || command == "token";
}

bool IsHandedOn(int argc, char** argv) {
  if (argc < 3 || !HasItsOwnOptions(argv[1])) return false;
  return std::none_of(argv + 2, argv + argc, [](const std::string_view word) {
    return word == "-h" || word == "--help";
  });
}

// Their options are their own and stand behind their name: what stands before it would be lost in silence.
std::string HandedOnTooLate(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (i > 1 && HasItsOwnOptions(word)) {
      return absl::StrCat("nibble ", argv[i], " has options of its own, behind its name; those before it (",
                          argv[1], ") are not for it");
    }
    if (word.empty() || word[0] != '-') return "";
    const bool valued = word.find('=') == std::string_view::npos && word != "-q" && word != "--quiet" &&
                        word != "--no-color";
    if (valued) ++i;
  }
  return "";
}

int Main(int argc, char** argv) {
  // What the library has to say is in the errors we print.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  PollWhileConnecting();
  Commands c;
  const std::string late = argc > 1 && argv[1][0] == '-' ? HandedOnTooLate(argc, argv) : "";
  if (!late.empty()) {
    std::fprintf(stderr, "%s\n", late.c_str());
    return kExitUsage;
  }
  if (IsHandedOn(argc, argv)) {
    c.g.terminal = DetectTerminal(false);
    const std::vector<std::string> words(argv + 2, argv + argc);
    return std::string(argv[1]) == "token" ? TokenCommand(c.g, words) : EngineCommand(c.g, argv[1], words);
  }
  CLI::App app{"Fine-tune language models: QLoRA jobs on a server of your own."};
  app.name("nibble");
  app.fallthrough();
  app.set_version_flag("--version", std::string("nibble " NIBBLE_VERSION));
  app.add_option("--server", c.g.server,
                 "host:port or unix:/path (NIBBLE_SERVER; default: the nibble up on this machine)");
  app.add_option("--data-dir", c.g.data_dir,
                 "of nibble up (NIBBLE_DATA_DIR; default ~/.local/share/nibble)");
  app.add_option("--token-file", c.g.token_file, "access token (NIBBLE_TOKEN_FILE, NIBBLE_TOKEN)");
  app.add_option("--ca-file", c.g.ca_file, "certificates to trust, for TLS (NIBBLE_CA_FILE)");
  app.add_option("-o,--output", c.g.output, "table, json, yaml or name")
      ->check(CLI::IsMember({"table", "json", "yaml", "name"}))
      ->envname("NIBBLE_OUTPUT");
  app.add_flag("-q,--quiet", c.g.quiet, "names and results only");
  app.add_flag("--no-color", c.g.no_color, "plain text (NO_COLOR)");
  app.add_option("--call-timeout", c.g.timeout_s, "seconds a call may take")
      ->check(AtLeast(1))->capture_default_str();
  AddJobCommands(app, c);
  AddJobVerbs(app, c);
  AddThings(app, c);
  AddMachine(app, c);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    if (const std::string unknown = UnknownCommand(app, argc, argv); !unknown.empty()) {
      std::fprintf(stderr, "%s\n", unknown.c_str());
    } else {
      app.exit(e);
    }
    return kExitUsage;
  }
  c.g.terminal = DetectTerminal(c.g.no_color);
  c.g.terminal.quiet = c.g.quiet;
  c.g.terminal.form = c.g.output == "json"   ? Form::kJson
                      : c.g.output == "yaml" ? Form::kYaml
                      : c.g.output == "name" ? Form::kName
                                             : Form::kTable;
  if (c.chosen) return c.chosen();
  // No command, or a group without one: what there is to choose from.
  const CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  std::fputs(at->help(at == &app ? "" : app.get_name()).c_str(), stderr);
  return kExitUsage;
}

}  // namespace
}  // namespace nibble::client

int main(int argc, char** argv) { return nibble::client::Main(argc, argv); }
