// The command `nibble`: reads the command line (command_line.h) and runs what was asked for (commands.h).
#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/keep_openssl.h"
#include "client/command_line.h"
#include "client/recipe_keys.h"
#include "proto/endpoint.h"

namespace nibble::client {
namespace {

// What to say about a first word that is no command; "" when it is one. `name`: what was typed before it.
std::string UnknownCommand(const CLI::App& app, const std::string& name, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return "";
  std::vector<std::string_view> known;
  const auto all = [](const CLI::App*) { return true; };
  for (const CLI::App* command : app.get_subcommands(all)) {
    // Of a group, like nibble model, the second word is one of its own.
    if (command->check_name(argv[1]))
      return command->get_subcommands(all).empty()
                 ? ""
                 : UnknownCommand(*command, absl::StrCat(name, " ", command->get_name()), argc - 1, argv + 1);
    known.push_back(command->get_name());
  }
  const std::string close = ClosestKey(argv[1], known);
  return absl::StrCat(name, " has no command ", argv[1],
                      close.empty() ? absl::StrCat("; see ", name, " --help")
                                    : absl::StrCat("; did you mean ", name, " ", close, "?"));
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
  KeepOpenSsl();
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
    if (const std::string unknown = UnknownCommand(app, app.get_name(), argc, argv); !unknown.empty()) {
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
