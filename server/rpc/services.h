// The services of the server, each made of an Edge that must outlive it.
#pragma once

#include <memory>

namespace grpc {
class Service;
}

namespace nibble::server {

struct Edge;

std::unique_ptr<grpc::Service> NewJobService(Edge& edge);
std::unique_ptr<grpc::Service> NewBlobService(Edge& edge);
std::unique_ptr<grpc::Service> NewDatasetService(Edge& edge);
std::unique_ptr<grpc::Service> NewModelService(Edge& edge);
std::unique_ptr<grpc::Service> NewAdapterService(Edge& edge);
std::unique_ptr<grpc::Service> NewFleetService(Edge& edge);
std::unique_ptr<grpc::Service> NewWorkerService(Edge& edge);

}  // namespace nibble::server
