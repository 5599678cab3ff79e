#include "client/recipe.h"

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "client/recipe_keys.h"
#include "client/recipe_reader.h"
#include "client/yaml.h"

namespace nibble::client {
namespace {

// An override counts, by whichever of its names the recipe has the key: from here on by the override's.
void TakeOtherName(Yaml& root, const std::string& name) {
  const KeyRule* rule = FindKeyRule(name);
  if (rule == nullptr || rule->action == KeyAction::kIgnored || rule->action == KeyAction::kRefused) return;
  if (root.Find(name) != nullptr) return;
  for (auto& [key, value] : root.fields) {
    if (FindKeyRule(key) == rule) key = name;
  }
}

}  // namespace

absl::StatusOr<Recipe> ReadRecipe(std::string_view text, const std::string& source,
                                  const std::string& directory,
                                  const std::vector<std::string>& overrides) {
  ASSIGN_OR_RETURN(Yaml root, ParseYaml(text, source));
  if (root.kind == Yaml::Kind::kNull) root.kind = Yaml::Kind::kMap;
  for (const std::string& text_override : overrides) {
    const size_t equals = text_override.find('=');
    std::string key = text_override.substr(0, equals);
    if (equals == std::string::npos || key.empty()) {
      return Error(Reason::kSpecInvalid,
                   absl::StrCat("\"", text_override,
                                "\" is not key=value; overrides come after the "
                                "recipe, like learning_rate=1e-4"))
          .ToStatus();
    }
    const std::string value = text_override.substr(equals + 1);
    TakeOtherName(root, key.substr(0, key.find_first_of(".[")));
    const KeyRule* rule = FindKeyRule(key);
    if (rule != nullptr && (rule->key == "datasets" || rule->key == "test_datasets")) {
      // One data set is the usual case, so its name alone is short for its path; null takes the
      // key back.
      ASSIGN_OR_RETURN(const Yaml given, ParseYaml(value, absl::StrCat("override ", key)));
      if (given.IsScalar() && !given.IsEmpty()) key += "[0].path";
    }
    const std::string list = key.substr(0, key.find('['));
    if (const Yaml* before = root.Find(list); before && before->IsScalar() && key != list) {
      Yaml entry{Yaml::Kind::kMap};
      entry.fields.emplace_back("path", *before);
      for (auto& [name, field] : root.fields) {
        if (name == list)
          field = Yaml{Yaml::Kind::kList, "", false, before->line, before->column, {entry}, {}};
      }
    }
    RETURN_IF_ERROR(ApplyOverride(root, key, value));
  }
  return RecipeReader(source, directory).Read(root);
}

absl::StatusOr<Recipe> LoadRecipe(const std::string& path,
                                  const std::vector<std::string>& overrides) {
  if (IsDirectory(path)) {
    return Error(Reason::kSpecInvalid,
                 absl::StrCat("recipe ", path, " is a directory; give the YAML file in it"))
        .ToStatus();
  }
  if (!FileExists(path)) {
    return Error(Reason::kSpecInvalid, absl::StrCat("recipe ", path, ": no such file")).ToStatus();
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, int64_t{1} << 20));
  return ReadRecipe(text, path, DirName(path), overrides);
}

}  // namespace nibble::client
