#include "server/blob_owners.h"

#include <algorithm>

#include "base/digest.h"

namespace nibble::server {
namespace {

constexpr size_t kTagDigits = 16;

bool Lists(const std::vector<core::FileRef>& files, const std::string& sha256) {
  return std::any_of(files.begin(), files.end(), [&](const core::FileRef& f) { return f.sha256 == sha256; });
}

}  // namespace

bool MayUse(const core::State& state, const std::string& scope, const std::string& sha256) {
  if (scope.empty()) return true;
  const auto blob = state.blobs.find(sha256);
  if (blob != state.blobs.end() && blob->second.projects.count(scope) > 0) return true;
  for (const auto& [id, dataset] : state.datasets) {
    if (dataset.tenant == scope && dataset.path.empty() && dataset.sha256 == sha256) return true;
  }
  for (const auto& [id, model] : state.models) {
    if (model.root_path.empty() && Lists(model.files, sha256)) return true;
  }
  return false;
}

std::string UploadTag(const std::string& scope) {
  return scope.empty() ? "" : Sha256Hex(scope).substr(0, kTagDigits);
}

}  // namespace nibble::server
