// The text in a checkpoint: manifest.json, and the metric rows of history.jsonl. Nothing in it is trusted
// when it is read. Functions; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint.h"

namespace nibble::engine {

inline constexpr char kStateFile[] = "state.bin";
inline constexpr char kHistoryFile[] = "history.jsonl";
inline constexpr char kManifestFile[] = "manifest.json";
inline constexpr int64_t kCheckpointVersion = 1;

struct CheckpointManifest {
  struct File {
    std::string name;
    int64_t bytes = -1;
    std::string sha256;
  };
  CheckpointHead head;
  std::vector<File> files;  // kStateFile and kHistoryFile, each once
};

std::string ManifestText(const CheckpointManifest& manifest);
// What is wrong with it, to be said of manifest.json; "" = nothing.
std::string ManifestFromText(std::string_view text, CheckpointManifest& manifest);

std::string RowToJson(const MetricRow& row);  // a line, without its end
// False when the line is no metric row.
bool RowFromJson(std::string_view line, MetricRow& row);

}  // namespace nibble::engine
