#include "server/core/blob_references.h"

#include <vector>

namespace nibble::core {
namespace {

// Of a set of ids the id, of a map the row.
const std::string& KeyOf(const std::string& id) { return id; }
template <typename Row>
const std::string& KeyOf(const std::pair<const std::string, Row>& entry) {
  return entry.first;
}

}  // namespace

// The next rows of one table; true at its end.
template <typename Rows, typename Tell>
bool BlobReferences::Walk(const Rows& table, Tell tell, size_t rows, size_t& done) {
  auto it = table.upper_bound(after_);
  for (; it != table.end() && done < rows; ++it, ++done) {
    tell(*it);
    after_ = KeyOf(*it);
  }
  if (it != table.end()) return false;
  after_.clear();
  part_ = static_cast<Part>(static_cast<int>(part_) + 1);
  return true;
}

bool BlobReferences::Next(const State& state, const Use& use, size_t rows) {
  size_t done = 0;
  const auto files = [&](const std::vector<FileRef>& refs) {
    for (const FileRef& file : refs) use(file.sha256);
  };
  const auto dataset = [&](const auto& entry) {
    if (entry.second.path.empty()) use(entry.second.sha256);
  };
  const auto model = [&](const auto& entry) {
    if (entry.second.root_path.empty()) files(entry.second.files);
  };
  const auto adapter = [&](const auto& entry) { files(entry.second.files); };
  // A job that has ended has none.
  const auto checkpoints = [&](const std::string& id) {
    for (const Checkpoint& checkpoint : state.jobs.at(id).checkpoints) files(checkpoint.files);
  };
  if (part_ == Part::kDatasets && !Walk(state.datasets, dataset, rows, done)) return false;
  if (part_ == Part::kModels && !Walk(state.models, model, rows, done)) return false;
  if (part_ == Part::kAdapters && !Walk(state.adapters, adapter, rows, done)) return false;
  if (part_ == Part::kCheckpoints && !Walk(state.live_jobs, checkpoints, rows, done)) return false;
  return true;
}

}  // namespace nibble::core
