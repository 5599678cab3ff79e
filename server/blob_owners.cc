#include "server/blob_owners.h"

#include <algorithm>

#include "base/digest.h"

namespace nibble::server {
namespace {

// Beyond this the oldest are forgotten: their bytes would be asked for again.
constexpr size_t kMaxKept = 100'000;
constexpr size_t kTagDigits = 16;

bool Lists(const std::vector<core::FileRef>& files, const std::string& sha256) {
  return std::any_of(files.begin(), files.end(), [&](const core::FileRef& f) { return f.sha256 == sha256; });
}

}  // namespace

void BlobOwners::Add(const std::string& project, const std::string& sha256, int64_t now_us) {
  std::lock_guard lock(mutex_);
  std::erase_if(since_us_, [&](const auto& entry) { return entry.second + keep_us_ < now_us; });
  if (since_us_.size() >= kMaxKept) {
    since_us_.erase(std::min_element(since_us_.begin(), since_us_.end(),
                                     [](auto& a, auto& b) { return a.second < b.second; }));
  }
  since_us_[{project, sha256}] = now_us;
}

bool BlobOwners::Has(const std::string& project, const std::string& sha256) const {
  std::lock_guard lock(mutex_);
  return since_us_.count({project, sha256}) > 0;
}

bool MayUse(const BlobOwners& owners, const core::State& state, const std::string& scope,
            const std::string& sha256) {
  if (scope.empty() || owners.Has(scope, sha256)) return true;
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
