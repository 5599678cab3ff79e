// What the gRPC server's port takes for TLS: the certificate as it is when a connection begins, and who may
// call what is not ours.
#pragma once

#include <memory>

#include "grpcpp/security/server_credentials.h"
#include "server/auth.h"
#include "server/server_certificate.h"

namespace nibble::server {

// Both must outlive every server that uses them; `certificate` has one by then.
std::shared_ptr<grpc::ServerCredentials> NewTlsCredentials(const ServerCertificate* certificate,
                                                           const Authorizer* authorizer);

}  // namespace nibble::server
