#include "nibble/v1/blob.grpc.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/services.h"
#include "server/rpc/upload.h"

namespace nibble::server {
namespace {

void Fill(const UploadState& state, v1::UploadStatus* out) {
  out->set_upload_id(state.upload_id);
  out->set_sha256(state.sha256);
  out->set_size_bytes(state.size_bytes);
  out->set_committed_bytes(state.committed_bytes);
  out->set_complete(state.complete);
}

class BlobServiceImpl final : public v1::BlobService::CallbackService {
 public:
  explicit BlobServiceImpl(Edge& edge) : edge_(edge) {}

  grpc::ServerUnaryReactor* BeginUpload(grpc::CallbackServerContext* context,
                                        const v1::BeginUploadRequest* request,
                                        v1::UploadStatus* response) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      const std::string scope = caller.Scope();
      BeginBlobUpload(edge_, request->sha256(), request->size_bytes(), scope, [=](const auto& state) {
        if (state.ok()) Fill(*state, response);
        done(state.status());
      });
    };
    return Unary(edge_, context, "/nibble.v1.BlobService/BeginUpload", body);
  }

  grpc::ServerReadReactor<v1::UploadChunk>* Upload(grpc::CallbackServerContext* context,
                                                   v1::UploadStatus* response) override {
    return new UploadReactor<v1::UploadChunk, v1::UploadStatus>(
        edge_, context, "/nibble.v1.BlobService/Upload", /*confined=*/true, response);
  }

  grpc::ServerUnaryReactor* GetUpload(grpc::CallbackServerContext* context,
                                      const v1::GetUploadRequest* request,
                                      v1::UploadStatus* response) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      const std::string scope = caller.Scope();
      if (const absl::Status mine = CheckUploadOf(scope, request->upload_id()); !mine.ok()) return done(mine);
      OnIo(edge_, done, [=, this] {
        RecordIfComplete(edge_, edge_.blobs->Get(request->upload_id()), scope, [=](const auto& state) {
          if (state.ok()) Fill(*state, response);
          done(state.status());
        });
      });
    };
    return Unary(edge_, context, "/nibble.v1.BlobService/GetUpload", body);
  }

 private:
  Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewBlobService(Edge& edge) {
  return std::make_unique<BlobServiceImpl>(edge);
}

}  // namespace nibble::server
