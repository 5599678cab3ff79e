// Counts every call: started, messages, status code, time. The factory belongs to the gRPC server.
#pragma once

#include <memory>

#include "grpcpp/support/server_interceptor.h"
#include "server/meter.h"

namespace nibble::server {

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewMeterInterceptor(Meter* meter);

}  // namespace nibble::server
