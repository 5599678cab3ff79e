// Reads the keys of one recipe into a Recipe, collecting every fault. Inner part of recipe.h.
//
// The keys themselves are data (recipe_keys.h); what a key means beyond a path and a type is here:
// recipe_reader.cc has the keys on top, recipe_data.cc those of data sets, recipe_nibble.cc the
// block of our own and what depends on several keys. Used once, by one thread.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/error.h"
#include "client/recipe.h"
#include "client/recipe_keys.h"
#include "client/yaml.h"

namespace nibble::client {

class RecipeReader {
 public:
  RecipeReader(std::string source, std::string directory)
      : source_(std::move(source)), directory_(std::move(directory)) {}

  absl::StatusOr<Recipe> Read(const Yaml& root);

 private:
  struct Fault {
    Reason reason;
    std::string key;
    std::string place;
    std::string text;
  };

  std::string Place(const Yaml& value) const;
  void Refuse(Reason reason, const std::string& key, const Yaml& value, std::string text);
  void Wrong(const std::string& key, const Yaml& value, const std::string& expected);
  void Unsupported(const std::string& key, const Yaml& value, std::string_view advice);
  void Notice(const std::string& key, std::string_view why);
  absl::Status Faults() const;

  void Set(std::string_view path, nlohmann::json value);
  void ReadKey(const std::string& key, const Yaml& value);
  void Apply(const KeyRule& rule, const std::string& key, const Yaml& value);
  void MustBe(const KeyRule& rule, const std::string& key, const Yaml& value);
  void Special(const KeyRule& rule, const std::string& key, const Yaml& value);
  void ReadOptimizer(const std::string& key, const Yaml& value);
  void ReadScheduler(const std::string& key, const Yaml& value);
  void ReadTargets(const std::string& key, const Yaml& value);
  void ReadPlugins(const std::string& key, const Yaml& value);

  // A path, made absolute or at least relative to the right place, or a resource name.
  std::string Located(const std::string& key, const Yaml& value, const std::string& collection);
  void ReadDatasets(const std::string& key, const Yaml& value, std::string& out, bool training);
  void ReadDatasetField(const std::string& path, const std::string& name, const Yaml& value,
                        std::string& out, std::string& format);
  void ReadMessageMapping(const std::string& path, const std::string& name, const Yaml& value,
                          std::string& format);
  void ApplyTemplates();

  void ReadNibble(const Yaml& value);
  void ReadNibbleField(const std::string& key, const std::string& name, const Yaml& value);
  void ApplyPreset();
  // What depends on several keys.
  void Finish(const Yaml& root);

  const std::string source_;
  const std::string directory_;
  const Yaml* root_ = nullptr;  // what is read; an empty file has no line
  Recipe recipe_;
  nlohmann::json spec_ = nlohmann::json::object();
  std::vector<Fault> faults_;
  std::map<std::string_view, std::string> used_;
  std::string preset_;
  Yaml train_template_;
  Yaml eval_template_;
  std::string adapter_;
  int four_bit_ = -1;  // -1: not said
  bool all_linear_ = false;
  bool constant_without_warmup_ = false;
  std::vector<std::string> targets_;
};

}  // namespace nibble::client
