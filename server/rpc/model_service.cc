#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/id.h"
#include "base/status.h"
#include "nibble/v1/model.grpc.pb.h"
#include "server/blob_owners.h"
#include "server/model_check.h"
#include "server/rooted_files.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"

namespace nibble::server {
namespace {

constexpr int kMaxManifest = 1000;

absl::StatusOr<const core::Model*> FindModel(const core::State& state, const std::string& id) {
  const auto it = state.models.find(id);
  if (it != state.models.end()) return &it->second;
  return Error(Reason::kBaseModelNotFound, absl::StrCat("models/", id, " does not exist"))
      .With("name", absl::StrCat("models/", id))
      .ToStatus();
}

// Every file of the manifest is there, pinned, and as long as it says.
absl::StatusOr<ModelFiles> FilesOfManifest(Edge& edge, const v1::RegisterModelRequest& request) {
  ModelFiles model;
  if (request.manifest_size() > kMaxManifest) {
    return Error::Field(Reason::kRequestTooLarge, "manifest",
                        absl::StrCat("has ", request.manifest_size(), " files; at most ", kMaxManifest))
        .ToStatus();
  }
  for (int i = 0; i < request.manifest_size(); ++i) {
    const v1::ModelFile& file = request.manifest(i);
    const std::string field = absl::StrCat("manifest[", i, "]");
    if (!IsModelFileName(file.name())) {
      return Error::Field(Reason::kNameInvalid, field + ".name",
                          "must be a plain file name of letters, digits, '.', '_', '-' and '+'")
          .ToStatus();
    }
    if (!edge.blobs->Pin(file.sha256()).ok()) {
      return Error::Field(Reason::kBlobNotFound, field + ".sha256",
                          absl::StrCat("of ", file.name(), " is not here; upload it first"))
          .ToStatus();
    }
    ASSIGN_OR_RETURN(const int64_t size, edge.blobs->SizeBytes(file.sha256()));
    if (size != file.size_bytes()) {
      return Error::Field(Reason::kSpecInvalid, field + ".size_bytes",
                          absl::StrCat("is ", file.size_bytes(), ", but the blob has ", size, " bytes"))
          .ToStatus();
    }
    model.files.push_back({file.name(), file.sha256(), size});
  }
  model.read = [&edge](const core::FileRef& file, int64_t offset, int64_t max_bytes) {
    return edge.blobs->Read(file.sha256, offset, max_bytes);
  };
  return model;
}

// A directory's files, wherever links lead below the root: name -> real path.
using RealPaths = std::map<std::string, std::string>;
absl::StatusOr<ModelFiles> FilesOfDirectory(const Edge& edge, const std::string& directory,
                                            RealPaths& paths, const std::function<bool()>& unwanted) {
  ModelFiles model;
  ASSIGN_OR_RETURN(const auto names, ListDir(directory));
  for (const std::string& name : names) {
    if (!BelongsToModel(name)) continue;
    ASSIGN_OR_RETURN(const RootedFile file,
                     OpenBelowRoot(edge.model_root, JoinPath(directory, name), "path/" + name));
    if (file.is_directory) continue;
    model.files.push_back({name, "", file.size_bytes});
    paths[name] = file.path;
  }
  model.read = [&paths, &unwanted](const core::FileRef& file, int64_t offset, int64_t max_bytes) {
    return WhileWanted(RootedReader(paths.at(file.name)), unwanted)(offset, max_bytes);
  };
  return model;
}

// The model without an id, on the pool for whole files: weights are read for their digest. CANCELLED soon
// after `unwanted` says so.
absl::StatusOr<core::Model> CheckRequest(Edge& edge, const v1::RegisterModelRequest& request,
                                         const Caller& caller, const std::function<bool()>& unwanted) {
  if ((request.manifest_size() == 0) == request.path().empty()) {
    return Error::Field(Reason::kSpecInvalid, "manifest", "or path must be given, and not both").ToStatus();
  }
  core::Model model;
  model.id = request.model_id();
  model.tenant = caller.tenant;
  RETURN_IF_ERROR(CheckDisplayName(request.display_name()));
  model.display_name = request.display_name();
  ModelFiles files;
  RealPaths paths;
  if (request.path().empty()) {
    ASSIGN_OR_RETURN(files, FilesOfManifest(edge, request));
  } else {
    ASSIGN_OR_RETURN(const RootedFile root, OpenBelowRoot(edge.model_root, request.path(), "path"));
    if (!root.is_directory) {
      return Error::Field(Reason::kPathNotAllowed, "path", "is a file; name the model's directory")
          .ToStatus();
    }
    model.root_path = root.path;
    if (model.display_name.empty()) model.display_name = BaseName(root.path);
    ASSIGN_OR_RETURN(files, FilesOfDirectory(edge, root.path, paths, unwanted));
  }
  ASSIGN_OR_RETURN(ModelFacts facts, CheckModel(files));
  for (core::FileRef& file : files.files) {
    if (!file.sha256.empty()) continue;
    ASSIGN_OR_RETURN(file.sha256, Sha256HexOf([&](int64_t offset, int64_t max_bytes) {
                       return files.read(file, offset, max_bytes);
                     }));
  }
  model.config_json = std::move(facts.config_json);
  model.config = facts.config;
  std::vector<core::FileRef> tokenizer;
  for (const core::FileRef& file : files.files) {
    const bool of_tokenizer = file.name.starts_with("tokenizer") || file.name == "chat_template.jinja" ||
                              file.name == "special_tokens_map.json" || file.name == "added_tokens.json";
    if (of_tokenizer) tokenizer.push_back(file);
  }
  model.tokenizer_digest = ManifestDigest(std::move(tokenizer));
  model.digest = ManifestDigest(files.files);
  model.files = std::move(files.files);
  return model;
}

class ModelServiceImpl final : public v1::ModelService::CallbackService {
 public:
  explicit ModelServiceImpl(Edge& edge) : edge_(edge) {}
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* RegisterModel(Context* context, const v1::RegisterModelRequest* request,
                         v1::Model* response) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      if (!request->model_id().empty() && !IsValidId(request->model_id())) {
        return done(Error::Field(Reason::kNameInvalid, "model_id",
                                 "must be 1 to 63 lower-case letters, digits and inner '-'"));
      }
      const auto check = [=, this] {
        auto model = CheckRequest(edge_, *request, caller, [context] { return context->IsCancelled(); });
        if (!model.ok()) return done(model.status());
        Store(*std::move(model), done, response);
      };
      // Before a byte is read: who names digests must have had the bytes.
      const bool posted = edge_.loop->Read([=, this, scope = caller.Scope()](const Outcome& outcome) {
        for (int i = 0; i < std::min(request->manifest_size(), kMaxManifest); ++i) {
          if (MayUse(outcome.state, scope, request->manifest(i).sha256())) continue;
          return done(Error::Field(Reason::kBlobNotFound, absl::StrCat("manifest[", i, "].sha256"),
                                   absl::StrCat("of ", request->manifest(i).name().substr(0, 64),
                                                " is not here; upload it first")));
        }
        OnFiles(edge_, done, check);
      });
      if (!posted) done(Busy(edge_));
    };
    return Unary(edge_, context, "/nibble.v1.ModelService/RegisterModel", body);
  }

  Reactor* GetModel(Context* context, const v1::GetModelRequest* request, v1::Model* response) override {
    const auto body = [=, this](const Caller&, Done done) {
      auto id = ParseName(request->name(), "models", "name");
      if (!id.ok()) return done(id.status());
      ReadState(edge_, done, [id = *id, response](const Outcome& outcome) -> absl::Status {
        ASSIGN_OR_RETURN(const core::Model* model, FindModel(outcome.state, id));
        ToProto(*model, response);
        return absl::OkStatus();
      });
    };
    return Unary(edge_, context, "/nibble.v1.ModelService/GetModel", body);
  }

  Reactor* ListModels(Context* context, const v1::ListModelsRequest* request,
                      v1::ListModelsResponse* response) override {
    const auto list = [=](const Outcome& outcome) -> absl::Status {
      ASSIGN_OR_RETURN(*response->mutable_next_page_token(),
                       ListPage(outcome.state.models, "models", request->page_size(),
                                request->page_token(), [](const core::Model&) { return true; },
                                [&](const core::Model& model) { ToProto(model, response->add_models()); }));
      return absl::OkStatus();
    };
    return Unary(edge_, context, "/nibble.v1.ModelService/ListModels",
                 [this, list](const Caller&, Done done) { ReadState(edge_, done, list); });
  }

  Reactor* DeleteModel(Context* context, const v1::DeleteModelRequest* request,
                       v1::DeleteModelResponse*) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      auto id = ParseName(request->name(), "models", "name");
      if (!id.ok()) return done(id.status());
      Command(edge_, done, core::DeleteModel{*id}, [](const Outcome&) { return absl::OkStatus(); },
              caller.Scope());
    };
    return Unary(edge_, context, "/nibble.v1.ModelService/DeleteModel", body);
  }

 private:
  // Without a name of its own, a model that is known keeps the name it has.
  void Store(core::Model model, Done done, v1::Model* response) {
    const auto show = [response](const Outcome& outcome) -> absl::Status {
      ASSIGN_OR_RETURN(const core::Model* stored, FindModel(outcome.state, outcome.id));
      ToProto(*stored, response);
      return absl::OkStatus();
    };
    const bool posted = edge_.loop->Read([=, this](const Outcome& outcome) mutable {
      if (model.id.empty()) {
        model.id = NewId("model");
        for (const auto& [id, known] : outcome.state.models) {
          if (known.digest != model.digest || known.root_path != model.root_path ||
              known.tenant != model.tenant) {
            continue;
          }
          model.id = id;
          break;
        }
      }
      Command(edge_, done, core::RegisterModel{std::move(model)}, show);
    });
    if (!posted) done(Busy(edge_));
  }

  Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewModelService(Edge& edge) {
  return std::make_unique<ModelServiceImpl>(edge);
}

}  // namespace nibble::server
