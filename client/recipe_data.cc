#include "client/recipe_reader.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/id.h"
#include "client/recipe_values.h"

namespace nibble::client {

// A path, made absolute or at least relative to the right place, or a resource name.
std::string RecipeReader::Located(const std::string& key, const Yaml& value, const std::string& collection) {
  const std::string& text = value.text;
  const std::string singular = collection.substr(0, collection.size() - 1) + ":";
  if (text.rfind(singular, 0) == 0) {
    const std::string name = absl::StrCat(collection, "/", text.substr(singular.size()));
    if (!ParseName(name, collection, key).ok())
      Wrong(key, value, "a name like " + singular + "my-id");
    return name;
  }
  if (text.find("://") != std::string::npos) {
    Unsupported(key, value, "download it first and give the path");
    return text;
  }
  if (text[0] == '/') return text;
  if (text.rfind("~/", 0) == 0) {
    const char* home = std::getenv("HOME");
    return absl::StrCat(home ? home : "", text.substr(1));
  }
  const std::string path = value.line && !directory_.empty() ? JoinPath(directory_, text) : text;
  if (!FileExists(path) && ParseName(text, collection, key).ok()) return text;
  // org/name stays as it is: the hub's cache knows it, the recipe's directory does not.
  if (collection == "models" && !FileExists(path) &&
      std::count(text.begin(), text.end(), '/') == 1 && text[0] != '.') {
    return text;
  }
  return path;
}

void RecipeReader::ReadDatasets(const std::string& key, const Yaml& value, std::string& out, bool training) {
  if (value.IsScalar()) {
    out = Located(key, value, "datasets");
    return;
  }
  const Yaml* entry = &value;
  if (value.IsList()) {
    if (value.items.size() > 1) {
      return Unsupported(key, value.items[1],
                         "join the files into one data set (cat A.jsonl B.jsonl; rows of one format)");
    }
    entry = &value.items[0];
  }
  if (entry->IsScalar()) {
    out = Located(key + "[0]", *entry, "datasets");
    return;
  }
  if (!entry->IsMap()) return Wrong(key, *entry, "a path, or a map with path");
  std::string format;
  if (const Yaml* chat = entry->Find("chat_template"); chat != nullptr && chat->IsScalar())
    (training ? train_template_ : eval_template_) = *chat;
  for (const auto& [name, field] : entry->fields) {
    if (!field.IsEmpty())
      ReadDatasetField(absl::StrCat(key, "[0].", name), name, field, out, format);
  }
  if (out.empty()) Refuse(Reason::kSpecInvalid, key + "[0].path", *entry, "is required");
  if (training && !format.empty()) Set("data.format", format);
}

void RecipeReader::ReadDatasetField(const std::string& path, const std::string& name, const Yaml& value,
                      std::string& out, std::string& format) {
  if (name == "path" || name == "data_files") {
    const Yaml& one = value.IsList() && value.items.size() == 1 ? value.items[0] : value;
    if (!one.IsScalar()) return Unsupported(path, value, "give one file");
    // data_files says which file of the directory or format in path.
    if (name == "data_files" || out.empty()) out = Located(path, one, "datasets");
    return;
  }
  if (!value.IsScalar()) {
    if (name == "message_property_mappings" || name == "roles" || name == "roles_to_train") {
      return ReadMessageMapping(path, name, value, format);
    }
    return Unsupported(path, value, "rename the fields of the data instead");
  }
  const std::string& text = value.text;
  if (name == "type") {
    if (text == "chat_template") {
      if (format.empty()) format = "messages";
    } else if (OneOf(text, "auto|messages|sharegpt|alpaca|text")) {
      format = text;
    } else if (text == "completion") {
      // Elsewhere this names rows of plain text, here rows of prompt and completion. The shapes
      // share no field, so the rows themselves say which it is.
      format = "auto";
    } else {
      Unsupported(path, value,
                  "types are chat_template, sharegpt, alpaca, completion, text, auto");
    }
  } else if (name == "field_messages") {
    if (text == "conversations") {
      format = "sharegpt";
    } else if (text != "messages") {
      Unsupported(path, value, "rename the field to messages");
    }
  } else if (name == "chat_template") {
    return;  // ApplyTemplates
  } else if (name == "split") {
    if (text != "train") Unsupported(path, value, "give a file with the rows wanted");
  } else if (name == "ds_type") {
    if (text != "json" && text != "jsonl") Unsupported(path, value, "convert the data to JSONL");
  } else if (OneOf(name, "field_instruction|field_input|field_output|field_system|field")) {
    const std::string usual = name == "field" ? "text" : name.substr(6);
    if (text != usual) Unsupported(path, value, absl::StrCat("rename the field to ", usual));
  } else if (OneOf(name, "message_field_role|message_field_content")) {
    if (OneOf(text, "from|value")) {
      format = "sharegpt";
    } else if (!OneOf(text, "role|content")) {
      Unsupported(path, value, "rename the fields to role and content");
    }
  } else if (name == "train_on_eos" ? text == "turn"
                                    : name == "roles_to_train" && text == "assistant") {
    return;
  } else if (OneOf(name,
                   "trust_remote_code|conversation|name|shards|preprocess_shards|revision|"
                   "train_on_eos|train_on_eot|roles_to_train|train_on_split|input_format|"
                   "input_transform|message_field_training|message_field_training_detail|"
                   "drop_system_message|split_thinking|field_tools|field_thinking")) {
    if (!IsNeutral(value)) Unsupported(path, value, "");
  } else {
    Refuse(Reason::kUnknownField, path, value, "is not a key we know");
  }
}

// What a data set says of itself counts before what the recipe says of all.
void RecipeReader::ApplyTemplates() {
  if (!train_template_.IsEmpty()) Set("data.chatTemplate", train_template_.text);
  if (eval_template_.IsEmpty()) return;
  const std::string chosen = spec_.contains("data") ? spec_["data"].value("chatTemplate", "") : "";
  if (eval_template_.text != (chosen.empty() ? "tokenizer_default" : chosen)) {
    Unsupported("test_datasets[0].chat_template", eval_template_,
                "both data sets are read with one template; name it in chat_template");
  }
}

void RecipeReader::ReadMessageMapping(const std::string& path, const std::string& name, const Yaml& value,
                        std::string& format) {
  if (name == "roles_to_train") {
    if (value.items.size() == 1 && value.items[0].text == "assistant") return;
    return Unsupported(path, value, "answers of the assistant are what is trained on");
  }
  if (name == "roles") {
    // The usual table of role names is what both formats accept anyway.
    for (const auto& [role, names] : value.fields) {
      for (const Yaml& alias : names.items) {
        if (!OneOf(alias.text, "user|human|assistant|gpt|model|system|tool")) {
          Unsupported(path, alias, "rename the roles in the data");
        }
      }
    }
    return;
  }
  for (const auto& [property, field] : value.fields) {
    if (OneOf(field.text, "from|value")) {
      format = "sharegpt";
    } else if (!(OneOf(property, "role|content") && field.text == property)) {
      Unsupported(absl::StrCat(path, ".", property), field, "rename the fields of the data");
    }
  }
}

}  // namespace nibble::client
