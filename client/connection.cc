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

std::string FindServer(const Globals& globals) {
  if (!globals.server.empty()) return globals.server;
  if (!Env("NIBBLE_SERVER").empty()) return Env("NIBBLE_SERVER");
  if (const auto text = ReadFile(JoinPath(DataDir(globals), "run/server.json"), 64 << 10); text.ok()) {
    const auto json = nlohmann::json::parse(*text, nullptr, false);
    if (json.is_object() && json.contains("grpc") && json["grpc"].is_string()) {
      return json["grpc"].get<std::string>();
    }
  }
  return "127.0.0.1:7070";
}

absl::StatusOr<std::unique_ptr<Client>> Open(const Globals& globals) {
  ClientOptions options;
  options.server = FindServer(globals);
  options.ca_file = globals.ca_file.empty() ? Env("NIBBLE_CA_FILE") : globals.ca_file;
  options.call_timeout_ms = int64_t{globals.timeout_s} * 1000;
  options.token = Env("NIBBLE_TOKEN");
  const std::string token_file = globals.token_file.empty() ? Env("NIBBLE_TOKEN_FILE") : globals.token_file;
  if (!token_file.empty()) {
    ASSIGN_OR_RETURN(const std::string token, ReadFile(token_file, 4096));
    options.token = std::string(absl::StripAsciiWhitespace(token));
  }
  return Client::Connect(std::move(options));
}

}  // namespace nibble::client
