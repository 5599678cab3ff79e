#include "server/rpc/credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>

#include <string>
#include <string_view>

#include "grpcpp/support/status.h"
#include "server/rpc/status.h"

namespace nibble::server {
namespace {

// Lives as long as gRPC's part of the credentials, which outlive ours.
struct Shown {
  const ServerCertificate* certificate;
  const Authorizer* authorizer;
  // What connections are shown. gRPC asks under a lock of its own.
  std::shared_ptr<const ServerCertificate::Pem> pem;
};

// For every connection, before its handshake. What gRPC does not take it says in its log, and goes on with
// what it had.
grpc_ssl_certificate_config_reload_status Fetch(void* state, grpc_ssl_server_certificate_config** config) {
  auto& shown = *static_cast<Shown*>(state);
  auto current = shown.certificate->Current();
  if (current == nullptr) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_FAIL;
  if (current == shown.pem) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
  shown.pem = std::move(current);
  const grpc_ssl_pem_key_cert_pair pair = {shown.pem->key.c_str(), shown.pem->certificate.c_str()};
  // It wants roots in any case. Where callers are not asked for certificates it uses them for nothing.
  const std::string& roots = shown.pem->client_ca.empty() ? shown.pem->certificate : shown.pem->client_ca;
  *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
  return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
}

std::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

std::string_view Value(const grpc_metadata* metadata, size_t count, std::string_view key) {
  for (size_t i = 0; i < count; ++i) {
    if (View(metadata[i].key) == key) return View(metadata[i].value);
  }
  return {};
}

// Guards what is not ours to check: services other than nibble's. Ours check for themselves (Authorize),
// because only they can answer with details. Health is open: load balancers have no token.
grpc::Status CheckForeign(const Authorizer& authorizer, grpc_auth_context* context,
                          const grpc_metadata* metadata, size_t count) {
  const std::string_view path = Value(metadata, count, ":path");
  if (path.starts_with("/nibble.") || path.starts_with("/grpc.health.v1.Health/")) return grpc::Status::OK;
  std::string certificate;
  if (grpc_auth_context_peer_is_authenticated(context)) {
    auto names = grpc_auth_context_find_properties_by_name(context, GRPC_X509_CN_PROPERTY_NAME);
    while (const grpc_auth_property* name = grpc_auth_property_iterator_next(&names))
      certificate.assign(name->value, name->value_length);
  }
  return ToGrpcStatus(authorizer.Identify(Value(metadata, count, "authorization"), certificate).status());
}

void Process(void* state, grpc_auth_context* context, const grpc_metadata* metadata, size_t count,
             grpc_process_auth_metadata_done_cb done, void* call) {
  const grpc::Status status =
      CheckForeign(*static_cast<Shown*>(state)->authorizer, context, metadata, count);
  done(call, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(status.error_code()),
       status.error_message().c_str());
}

// grpc::SslServerCredentials takes a certificate once and for all, and a FileWatcherCertificateProvider gives
// up the one it has for a pair that does not hold together. So this is the former with what C has and C++ has
// not: a certificate that is asked for. (A new one takes the place of the old without a lock that beginning
// handshakes hold. They begin one after the other, where connections are accepted, as long as what is
// listened on is one address.)
class TlsCredentials final : public grpc::ServerCredentials {
 public:
  TlsCredentials(const ServerCertificate* certificate, const Authorizer* authorizer) {
    auto* shown = new Shown{certificate, authorizer, nullptr};
    credentials_ = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            certificate->asks_clients() ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
                                        : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            Fetch, shown));
    const auto destroy = [](void* state) { delete static_cast<Shown*>(state); };
    grpc_server_credentials_set_auth_metadata_processor(credentials_, {Process, destroy, shown});
  }
  ~TlsCredentials() override { grpc_server_credentials_release(credentials_); }
  TlsCredentials(const TlsCredentials&) = delete;
  TlsCredentials& operator=(const TlsCredentials&) = delete;

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}  // has one

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  grpc_server_credentials* credentials_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> NewTlsCredentials(const ServerCertificate* certificate,
                                                           const Authorizer* authorizer) {
  return std::make_shared<TlsCredentials>(certificate, authorizer);
}

}  // namespace nibble::server
