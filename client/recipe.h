// A recipe: the YAML file users know from other trainers, read into a JobSpec.
//
// Nothing is dropped in silence. Each key is honoured, ignored with a notice, or refused by name;
// an unknown key is an error that says what it may have meant. All faults of a file are reported at
// once, each with file:line:column. Paths in the file are relative to the file, paths in overrides
// to the current directory. Pure but for reading the file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble::client {

struct Recipe {
  // The JobSpec in protobuf's JSON form, without base_model, dataset and eval_dataset: those are
  // names that only the server can give.
  std::string spec_json;
  // Each is a path on this machine or a resource name ("models/x", "datasets/x").
  std::string base_model;
  std::string base_revision;  // of a base model named like org/name
  std::string dataset;
  std::string eval_dataset;
  std::string name;  // of the nibble block; becomes the job's id
  int32_t priority = 0;
  std::map<std::string, std::string> labels;
  std::vector<std::string> notices;  // what was ignored, and why it does not matter
};

// `source` names the file in messages; `directory` is what its paths are relative to.
absl::StatusOr<Recipe> ReadRecipe(std::string_view text, const std::string& source,
                                  const std::string& directory,
                                  const std::vector<std::string>& overrides);
absl::StatusOr<Recipe> LoadRecipe(const std::string& path,
                                  const std::vector<std::string>& overrides);

}  // namespace nibble::client
