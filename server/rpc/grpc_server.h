// The gRPC server: credentials, limits, services, health, reflection.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/edge.h"
#include "server/meter.h"
#include "server/server_certificate.h"

namespace nibble::server {

struct GrpcOptions {
  std::string listen;
  const ServerCertificate* certificate = nullptr;  // nullptr = no TLS; must outlive the server
  bool reflection = false;
};

class GrpcServer {
 public:
  virtual ~GrpcServer() = default;
  virtual int port() const = 0;
  // What health checks hear.
  virtual void SetServing(bool serving) = 0;
  virtual void Shutdown(int64_t grace_us) = 0;
};

// `edge` and `meter` must outlive it.
absl::StatusOr<std::unique_ptr<GrpcServer>> StartGrpc(const GrpcOptions& options, Edge& edge, Meter* meter);

}  // namespace nibble::server
