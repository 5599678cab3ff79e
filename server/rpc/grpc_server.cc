#include "server/rpc/grpc_server.h"

#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/impl/service_type.h"
#include "server/rpc/credentials.h"
#include "server/rpc/interceptor.h"
#include "server/rpc/services.h"

namespace nibble::server {
namespace {

void SetLimits(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(4 << 20);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 256);
  // Two servers on one port would share the calls between them.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10'000);
  // Compressed requests could unpack to anything.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  grpc::ResourceQuota quota("nibble-server");
  quota.Resize(size_t{256} << 20);
  builder.SetResourceQuota(quota);
}

class GrpcServerImpl : public GrpcServer {
 public:
  absl::Status Start(const GrpcOptions& options, Edge& edge, Meter* meter) {
    if (options.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::EnableDefaultHealthCheckService(true);
    for (auto* make : {NewJobService, NewBlobService, NewDatasetService, NewModelService, NewAdapterService,
                       NewFleetService, NewWorkerService}) {
      services_.push_back(make(edge));
    }
    grpc::ServerBuilder builder;
    SetLimits(builder);
    builder.AddListeningPort(options.listen,
                             options.certificate == nullptr
                                 ? grpc::InsecureServerCredentials()
                                 : NewTlsCredentials(options.certificate, edge.authorizer),
                             &port_);
    for (const auto& service : services_) builder.RegisterService(service.get());
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
    interceptors.push_back(NewMeterInterceptor(meter));
    builder.experimental().SetInterceptorCreators(std::move(interceptors));
    server_ = builder.BuildAndStart();
    if (server_ && port_ != 0) return absl::OkStatus();
    return Error::Field(
        Reason::kSpecInvalid, "--listen",
        absl::StrCat("is ", options.listen,
                     ", where this process cannot listen; is another "
                     "server there? Choose another port, or 0 for a free one"));
  }

  ~GrpcServerImpl() override { Shutdown(0); }
  int port() const override { return port_; }
  void SetServing(bool serving) override {
    if (auto* health = server_->GetHealthCheckService()) health->SetServingStatus(serving);
  }
  void Shutdown(int64_t grace_us) override {
    if (!server_) return;
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::microseconds(grace_us));
    server_->Wait();
    server_.reset();
  }

 private:
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> StartGrpc(const GrpcOptions& options, Edge& edge, Meter* meter) {
  auto server = std::make_unique<GrpcServerImpl>();
  if (absl::Status status = server->Start(options, edge, meter); !status.ok()) return status;
  return std::unique_ptr<GrpcServer>(std::move(server));
}

}  // namespace nibble::server
