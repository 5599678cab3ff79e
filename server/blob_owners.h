// Which project has shown that it has the bytes of a digest: by sending them.
//
// Bytes are stored once, whoever sends them, but a digest is no secret: who only knows it must not get at
// the bytes of another project by claiming to have uploaded them. What a project's own rows refer to, and the
// files of models, which are everybody's to use, are open to it as well (MayUse). Kept in memory, for as long
// as a blob is pinned after its upload: after a restart, bytes that nothing refers to yet are sent again.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "server/core/state.h"

namespace nibble::server {

class BlobOwners {
 public:
  explicit BlobOwners(int64_t keep_us) : keep_us_(keep_us) {}
  void Add(const std::string& project, const std::string& sha256, int64_t now_us);
  bool Has(const std::string& project, const std::string& sha256) const;

 private:
  const int64_t keep_us_;
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, int64_t> since_us_;  // project, digest
};

// `scope`: Caller::Scope; "" may use everything.
bool MayUse(const BlobOwners& owners, const core::State& state, const std::string& scope,
            const std::string& sha256);
// How an upload of that project is told from one of another with the same bytes; "" of "".
std::string UploadTag(const std::string& scope);

}  // namespace nibble::server
