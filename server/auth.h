// Who may call what.
//
// A server on a loopback address without TLS takes every caller for its owner. Everywhere else a call
// needs a bearer token or a client certificate, and the method must be open to its role: one table maps
// every method to roles, and what is not in it is denied. Tokens are 256 random bits shown once; the file
// holds their SHA-256, so reading it gives nobody a token. (Guessing is hopeless at that length, so
// failed attempts are counted, not throttled.)
//
// TokenFile and Authorizer are thread-safe. `nibble-server token` changes the file while a server runs;
// the server calls Refresh now and then. Several processes may change it at a time: each change is made
// under a lock beside it (<path>.lock), to what is there then.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"

namespace nibble::server {

enum class Role { kClient = 1, kWorker = 2, kAdmin = 4 };
std::string_view RoleName(Role role);   // "client", "worker", "admin"
absl::StatusOr<Role> RoleFromName(std::string_view name);

// Roles a method is open to, as a set of bits; 0 = nobody. `method` is "/nibble.v1.JobService/GetJob".
int RolesOf(std::string_view method);

// NAME or PROJECT/NAME, of tokens and client certificates.
bool IsCallerName(std::string_view name);

struct TokenRecord {
  std::string id;             // public part, 8 hex digits
  std::string name;           // for people
  Role role = Role::kClient;
  std::string sha256;         // of the whole token
  int64_t create_unix_us = 0;
  int64_t expire_unix_us = 0; // 0 = never
};

class TokenFile {
 public:
  explicit TokenFile(std::string path) : path_(std::move(path)) {}
  // Reads the file again when it has changed; a file that is not there holds no tokens.
  absl::Status Refresh();
  // Makes a token and stores its hash; the token itself is returned and never seen again.
  absl::StatusOr<std::string> Create(std::string name, Role role, int64_t expire_unix_us,
                                     int64_t now_unix_us);
  absl::Status Revoke(std::string_view id);
  std::vector<TokenRecord> List() const;
  // The record the token belongs to; TOKEN_INVALID when unknown or expired.
  absl::StatusOr<TokenRecord> Find(std::string_view token, int64_t now_unix_us) const;

 private:
  absl::Status Save(const std::vector<TokenRecord>& records);

  const std::string path_;
  mutable std::mutex mutex_;
  std::vector<TokenRecord> records_;
  std::string content_;       // of the file, as last read
};

struct Caller {
  std::string tenant = "default";
  Role role = Role::kAdmin;
  std::string identity;       // token id or certificate name; "local"
  // The project it is confined to; "" = none. Jobs, data and adapters of others do not exist for it.
  std::string Scope() const { return role == Role::kAdmin ? "" : tenant; }
};

class Authorizer {
 public:
  // `tokens` may be nullptr when `required` is false; both must outlive it.
  Authorizer(bool required, const TokenFile* tokens, const Clock* clock)
      : required_(required), tokens_(tokens), clock_(clock) {}
  // `authorization` is the header's value; `certificate_name` the common name of a client certificate
  // that the TLS layer has verified, "<role>:<name>". Either may be empty.
  absl::StatusOr<Caller> Check(std::string_view method, std::string_view authorization,
                               std::string_view certificate_name) const;
  // Only who it is, without a method.
  absl::StatusOr<Caller> Identify(std::string_view authorization,
                                  std::string_view certificate_name) const;
  bool required() const { return required_; }
  int64_t refusals() const { return refusals_.load(); }

 private:
  const bool required_;
  const TokenFile* tokens_;
  const Clock* clock_;
  mutable std::atomic<int64_t> refusals_{0};
};

// True for 127.0.0.0/8, ::1, localhost and unix sockets: "host:port", "[::1]:port", "unix:/path".
bool IsLoopback(std::string_view address);

}  // namespace nibble::server
