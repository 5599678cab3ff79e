#include <unistd.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "client/commands.h"

namespace nibble::client {
namespace {

std::string Env(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

std::string DataDir(const Globals& globals) {
  if (!globals.data_dir.empty()) return globals.data_dir;
  if (!Env("NIBBLE_DATA_DIR").empty()) return Env("NIBBLE_DATA_DIR");
  if (!Env("XDG_DATA_HOME").empty()) return JoinPath(Env("XDG_DATA_HOME"), "nibble");
  return JoinPath(Env("HOME").empty() ? "/var/lib" : Env("HOME") + "/.local/share", "nibble");
}

ServerAddress ReadAddress(const std::string& data_dir) {
  const auto text = ReadFile(AddressFile(data_dir), 64 << 10);
  if (!text.ok()) return {};
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object()) return {};
  const auto text_at = [&](const char* key) {
    return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : "";
  };
  if (!text_at("listen").empty()) return {text_at("listen"), text_at("http_listen")};
  if (!json.contains("port") || !json["port"].is_number_integer()) return {};
  const auto with_port = [&](const char* key) {
    const int64_t port =
        json.contains(key) && json[key].is_number_integer() ? json[key].get<int64_t>() : 0;
    const bool named = json.contains("host") && json["host"].is_string();
    return port > 0 ? absl::StrCat(named ? json["host"].get<std::string>() : "127.0.0.1", ":", port)
                    : "";
  };
  return {with_port("port"), with_port("http_port")};
}

std::string ServerDir(const std::string& data_dir) { return JoinPath(data_dir, "server"); }
std::string AddressFile(const std::string& data_dir) {
  return JoinPath(ServerDir(data_dir), "run/server.json");
}

std::string FindServer(const Globals& globals) {
  if (!globals.server.empty()) return globals.server;
  if (!Env("NIBBLE_SERVER").empty()) return Env("NIBBLE_SERVER");
  const ServerAddress running = ReadAddress(DataDir(globals));
  return running.grpc.empty() ? "127.0.0.1:7070" : running.grpc;
}

void NoteWarning(const Terminal& terminal, const Client& client) {
  if (const std::string warning = client.warning(); !warning.empty())
    PrintNote(terminal, absl::StrCat("warning: ", Printable(warning)));
}

absl::StatusOr<std::unique_ptr<Client>> Open(const Globals& globals) {
  ClientOptions options;
  options.server = FindServer(globals);
  options.ca_file = globals.ca_file.empty() ? Env("NIBBLE_CA_FILE") : globals.ca_file;
  options.call_timeout_ms = int64_t{globals.timeout_s} * 1000;
  options.on_away = [terminal = globals.terminal](const absl::Status& why) {
    PrintNote(terminal, absl::StrCat("the server does not answer (", std::string(why.message()),
                                     "); trying again"));
  };
  options.token = Env("NIBBLE_TOKEN");
  const std::string token_file =
      globals.token_file.empty() ? Env("NIBBLE_TOKEN_FILE") : globals.token_file;
  if (!token_file.empty()) {
    const auto token = ReadFile(token_file, 4096);
    if (!token.ok()) {
      return Error(Reason::kSpecInvalid, absl::StrCat("--token-file (or NIBBLE_TOKEN_FILE): ",
                                                      std::string(token.status().message())))
          .ToStatus();
    }
    options.token = std::string(absl::StripAsciiWhitespace(*token));
  }
  return Client::Connect(std::move(options));
}

}  // namespace nibble::client
