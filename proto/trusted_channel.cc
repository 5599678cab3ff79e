#include "proto/trusted_channel.h"

#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>

#include <utility>

#include "base/status.h"
#include "proto/endpoint.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<TrustedChannel>> TrustedChannel::Open(
    std::string server, std::string ca_file, const grpc::ChannelArguments& arguments) {
  ASSIGN_OR_RETURN(const Endpoint endpoint, EndpointOf(server, ca_file));
  std::unique_ptr<TrustedChannel> opened(
      new TrustedChannel(std::move(server), std::move(ca_file), arguments));
  opened->trusted_ = endpoint.trusted;
  opened->channel_ = grpc::CreateCustomChannel(endpoint.target, endpoint.credentials, arguments);
  return opened;
}

std::shared_ptr<grpc::Channel> TrustedChannel::Get() const {
  std::lock_guard lock(mutex_);
  return channel_;
}

bool TrustedChannel::Renew() {
  if (ca_file_.empty()) return false;
  const absl::StatusOr<Endpoint> endpoint = EndpointOf(server_, ca_file_);
  if (!endpoint.ok()) return false;
  std::lock_guard lock(mutex_);
  if (endpoint->trusted == trusted_) return false;
  trusted_ = endpoint->trusted;
  channel_ = grpc::CreateCustomChannel(endpoint->target, endpoint->credentials, arguments_);
  return true;
}

}  // namespace nibble
