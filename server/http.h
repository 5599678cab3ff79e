// The plain-text door for machines: /metrics, /healthz (the process lives), /readyz (it takes work).
//
// Two threads of its own; read-only; serves nothing from disk. Meant for loopback or a private network:
// it tells no text of users, only ids, counts and sizes.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace nibble::server {

class HttpServer {
 public:
  virtual ~HttpServer() = default;   // stops serving
  virtual int port() const = 0;
};

struct HttpHandlers {
  std::function<std::string()> metrics;
  std::function<bool()> ready;
};
// `listen` is "host:port"; port 0 takes a free one.
absl::StatusOr<std::unique_ptr<HttpServer>> StartHttp(const std::string& listen, HttpHandlers handlers);

}  // namespace nibble::server
