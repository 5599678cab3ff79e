// Where a server is, as people write it: "host:port", with grpc:// or http:// before it or, for
// TLS, grpcs:// or https://; slashes behind it are dropped. Pure but for reading the certificates;
// thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace grpc {
class ChannelCredentials;
}

namespace nibble {

struct Endpoint {
  std::string target;  // host:port
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  bool tls = false;
  std::string trusted;  // what the file held
};

// TLS by the prefix or because a file of certificates to trust (PEM, at most 1 MiB) is named;
// without one the system's are trusted. Errors: SPEC_INVALID without a port, or when the file cannot be read,
// holds no certificate or one that is cut off.
absl::StatusOr<Endpoint> EndpointOf(const std::string& server, const std::string& ca_file);

// For the start of main, before anything else touches gRPC. While a channel is cut, calls on it fail at once
// and nobody polls; the library itself then looks at its connections every 5 s only, and a TLS handshake,
// which needs several looks, is given up before it is done: the channel never finds a restarted server.
void PollWhileConnecting();

// An access token can go into a header (or there is none); else gRPC ends the process, showing it. The error
// does not show it.
absl::Status CheckToken(const std::string& token);

}  // namespace nibble
