#include "proto/endpoint.h"

#include <grpcpp/security/credentials.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"

namespace nibble {
namespace {

bool TakePrefix(std::string& text, std::string_view prefix) {
  if (text.compare(0, prefix.size(), prefix) != 0) return false;
  text.erase(0, prefix.size());
  return true;
}

// gRPC would only say that it cannot connect.
absl::Status CheckCertificates(const std::string& path, const std::string& pem) {
  BIO* text = BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()));
  int count = 0;
  while (X509* certificate = PEM_read_bio_X509(text, nullptr, nullptr, nullptr)) {
    X509_free(certificate);
    ++count;
  }
  // How a text ends that has been read to its end.
  const bool whole = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  BIO_free(text);
  if (count > 0 && whole) return absl::OkStatus();
  return Error(Reason::kSpecInvalid,
               absl::StrCat(path, count == 0 ? " holds no certificate in PEM" : " is cut off or damaged",
                            "; it is to be the authority's that signed the server's certificate (ca.crt)"));
}

}  // namespace

absl::StatusOr<Endpoint> EndpointOf(const std::string& server, const std::string& ca_file) {
  Endpoint endpoint{server, grpc::InsecureChannelCredentials(), !ca_file.empty(), ""};
  std::string& target = endpoint.target;
  if (TakePrefix(target, "https://") || TakePrefix(target, "grpcs://")) {
    endpoint.tls = true;
  } else if (!TakePrefix(target, "http://")) {
    TakePrefix(target, "grpc://");
  }
  while (!target.empty() && target.back() == '/') target.pop_back();
  const size_t colon = target.rfind(':');
  if (colon == std::string::npos || colon + 1 == target.size()) {
    return Error(Reason::kSpecInvalid,
                 absl::StrCat("server address \"", server, "\": expected host:port"))
        .ToStatus();
  }
  int32_t port = 0;  // gRPC takes one too large for another
  if (target.compare(0, 5, "unix:") != 0 &&
      (!absl::SimpleAtoi(target.substr(colon + 1), &port) || port < 1 || port > 65535)) {
    return Error(Reason::kSpecInvalid, absl::StrCat("server address \"", server, "\": the port is ",
                                                    target.substr(colon + 1), ", no number from 1 to 65535"))
        .ToStatus();
  }
  if (endpoint.tls) {
    grpc::SslCredentialsOptions ssl;
    if (!ca_file.empty()) {
      absl::StatusOr<std::string> read = ReadFile(ca_file, int64_t{1} << 20);
      if (!read.ok()) {
        const std::string flag = "--ca-file (or NIBBLE_CA_FILE): ";
        return Error(Reason::kSpecInvalid, absl::StrCat(flag, read.status().message())).ToStatus();
      }
      endpoint.trusted = *std::move(read);
      RETURN_IF_ERROR(CheckCertificates(ca_file, endpoint.trusted));
      ssl.pem_root_certs = endpoint.trusted;
    }
    endpoint.credentials = grpc::SslCredentials(ssl);
  }
  return endpoint;
}

void PollWhileConnecting() {
  setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "200", /*overwrite=*/0);
}

absl::Status CheckToken(const std::string& token) {
  const bool good =
      std::all_of(token.begin(), token.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (good) return absl::OkStatus();
  return Error(Reason::kSpecInvalid,
               "the access token has characters no token has; a token file is one line, as "
               "nibble-server token create prints it")
      .ToStatus();
}

}  // namespace nibble
