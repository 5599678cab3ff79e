// A job's state on disk: enough to go on as if nothing had happened, bit for bit.
//
// <checkpoints>/step-<n>/ holds state.bin (masters and moments as they are in memory),
// history.jsonl (every metric row so far) and manifest.json (what it belongs to, and size and
// SHA-256 of the others). There is no hidden state: data order and dropout are functions of the
// step.
//
// It is written beside (step-<n>.tmp), fsynced, renamed, and only then reported; before it is removed it
// loses its name, so what has the name is whole. A checkpoint with a non-finite value is refused. Nothing in
// it is trusted when it is read. Functions; one thread per directory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/loss_scale.h"
#include "engine/model/adapter.h"

namespace nibble::engine {

// In the metadata of a CHECKPOINT_INVALID that holds for every checkpoint of the job: it was made from
// another spec, base or data.
inline constexpr char kAllCheckpoints[] = "all_checkpoints";

struct CheckpointHead {
  int64_t step = 0;     // optimizer steps done
  int64_t updates = 0;  // of them, those that changed the parameters
  int64_t skipped_in_a_row = 0;
  std::string attempt;
  std::string spec_digest;  // of what determines the result
  std::string base_digest;
  std::string data_digest;
  std::string numerics_id;
  uint64_t seed = 0;
  double loss = 0;  // of the last step
  LossScale loss_scale;  // of fp16 compute; elsewhere 1, and not written
};

// What of a job's memory a checkpoint holds, in the order of state.bin: masters, moments, and the
// scales of 8-bit moments.
struct CheckpointArrays {
  struct Part {
    const char* what = "";  // for messages
    void* data = nullptr;
    int64_t bytes = 0;
    bool floats = true;  // else codes, of which every value is good
  };
  std::vector<Part> parts;
  int64_t elements = 0;  // of the masters
};

struct SavedCheckpoint {
  std::string directory;
  int64_t bytes = 0;
  std::string manifest_sha256;
};

// LOSS_NOT_FINITE for non-finite values, STORAGE_FULL when the disk is full; nothing is left behind
// then.
absl::StatusOr<SavedCheckpoint> SaveCheckpoint(const std::string& checkpoints,
                                               const CheckpointHead& head,
                                               const CheckpointArrays& arrays,
                                               const std::vector<MetricRow>& history);

// Deletes all but the newest `keep`, and what crashed writers left. Goes on beside what cannot be deleted,
// and says the first of that.
absl::Status PruneCheckpoints(const std::string& checkpoints, int keep);

// Verifies sizes and digests and fills `arrays`; CHECKPOINT_INVALID names what does not fit.
struct LoadedCheckpoint {
  CheckpointHead head;
  std::vector<MetricRow> history;
};
absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(const std::string& directory,
                                                const CheckpointArrays& arrays);

// The newest complete checkpoint of a directory; empty when there is none.
std::string NewestCheckpoint(const std::string& checkpoints);

}  // namespace nibble::engine
