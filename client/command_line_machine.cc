// The flags of what runs on this machine: nibble up, and commands that other binaries have.
#include <utility>

#include "client/command_line.h"
#include "client/completion.h"

namespace nibble::client {
namespace {

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

}  // namespace

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
  auto* token = app.add_subcommand("token", "Access tokens of the server on this machine");
  auto* create = token->add_subcommand("create", "Make a token and show it, this once");
  create->add_option("--name", c.name, "whose it is: NAME or PROJECT/NAME (default: default)");
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

}  // namespace nibble::client
