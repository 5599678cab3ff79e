// From a recipe to a job: what the server lacks is sent first, then the job is created.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/client.h"
#include "client/output.h"
#include "client/recipe.h"

namespace nibble::client {

struct SubmitArgs {
  std::string recipe;
  std::vector<std::string> overrides;  // key=value
  std::string name;                    // the job's id; else the recipe's, else the server's choice
  std::string request_id;
  std::vector<std::string> labels;  // k=v
  std::optional<int> priority;
  bool dry_run = false;
};

// The recipe's JobSpec with base model and data sets as names on the server: directories and files
// are registered or uploaded, showing progress.
absl::StatusOr<v1::JobSpec> PrepareSpec(Client& client, const Terminal& terminal,
                                        const Recipe& recipe);

absl::StatusOr<v1::Job> Submit(Client& client, const Terminal& terminal, const SubmitArgs& args);

// A directory in Hugging Face layout becomes models/{id}: by path when the server shares this
// machine and allows it, else by uploading its files.
absl::StatusOr<v1::Model> RegisterDirectory(Client& client, const Terminal& terminal,
                                            const std::string& directory,
                                            const std::string& display_name,
                                            const std::string& model_id);
// A directory of the server's machine, below its --model-root, becomes models/{id}; nothing is sent.
absl::StatusOr<v1::Model> RegisterOnServer(Client& client, const Terminal& terminal,
                                           const std::string& directory,
                                           const std::string& model_id);
// A JSONL file becomes datasets/{id}; the same bytes give the data set that is already there.
absl::StatusOr<v1::Dataset> PushDataset(Client& client, const Terminal& terminal,
                                        const std::string& path, const std::string& dataset_id);

// Where the hub's cache holds "org/name" at `revision` (default main); NOT_FOUND with advice
// otherwise.
absl::StatusOr<std::string> FindInHubCache(const std::string& model, const std::string& revision);
// The files of a model directory that training can need.
absl::StatusOr<std::vector<std::string>> ModelFiles(const std::string& directory);
absl::StatusOr<std::map<std::string, std::string>> ParseLabels(
    const std::vector<std::string>& labels);

}  // namespace nibble::client
