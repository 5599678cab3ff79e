// A channel to a server whose certificate is signed by what a file holds, and that file may be renewed: an
// authority changes without a restart of those who trust it.
//
// gRPC takes the certificates to trust once for a channel. So who could not reach the server asks for a
// Renew, and where the file has others by then there is a new channel. One that is missing or broken at that
// moment leaves the channel there is. Thread-safe.
#pragma once

#include <grpcpp/support/channel_arguments.h>

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"

namespace grpc {
class Channel;
}

namespace nibble {

class TrustedChannel {
 public:
  // `server` and `ca_file` as EndpointOf takes them, with its errors.
  static absl::StatusOr<std::unique_ptr<TrustedChannel>> Open(std::string server, std::string ca_file,
                                                              const grpc::ChannelArguments& arguments);
  std::shared_ptr<grpc::Channel> Get() const;
  // True when Get gives another than before. What holds the old one goes on with it.
  bool Renew();

 private:
  TrustedChannel(std::string server, std::string ca_file, const grpc::ChannelArguments& arguments)
      : server_(std::move(server)), ca_file_(std::move(ca_file)), arguments_(arguments) {}

  const std::string server_, ca_file_;
  const grpc::ChannelArguments arguments_;
  mutable std::mutex mutex_;  // guards what follows
  std::string trusted_;       // PEM
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace nibble
