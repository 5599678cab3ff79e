// `nibble-server init-tls`: a certificate authority of one's own, and certificates from it.
//
// EC P-256 keys, files in PEM, keys readable by the owner only. A server certificate names the hosts it is
// for; a client certificate has the common name "<role>:<name>" (see auth.h). Not thread-safe over one
// directory.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/auth.h"

namespace nibble::server {

// ca.crt, ca.key, server.crt, server.key in `directory`. An authority that is there is kept, so that
// clients that trust it go on doing so; the server's certificate is made anew. `hosts` are DNS names or
// addresses.
absl::Status InitTls(const std::string& directory, const std::vector<std::string>& hosts);
// For NAME or PROJECT/NAME, as with tokens: <role>-<name>.crt and .key in `directory`, an underscore for the
// slash, signed by its authority. What the two files are called, without .crt.
absl::StatusOr<std::string> IssueClientCertificate(const std::string& directory, Role role,
                                                   const std::string& name);

// Those of ca.crt, ca.key, server.crt and server.key that `directory` has: what a server goes on with
// elsewhere, under the name and authority that its callers trust.
std::vector<std::string> ServerTlsFiles(const std::string& directory);
// What is wrong with them, in words: a key that is not its certificate's or that others can read, a server's
// certificate of another authority.
std::vector<std::string> TlsProblems(const std::string& directory);

// When the certificate ends, in microseconds of Unix time. Refused (SPEC_INVALID, naming the flag)
// is what no client could speak to: no certificate or key in PEM, a key of another certificate, one
// that has ended or not yet begun.
absl::StatusOr<int64_t> CheckServerCertificate(const std::string& certificate_pem,
                                               const std::string& key_pem, int64_t now_unix_us);

// Likewise of what callers' certificates are to be signed by.
absl::Status CheckClientAuthority(const std::string& pem);

}  // namespace nibble::server
