#include "client/submit.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/error.h"
#include "base/file.h"
#include "base/id.h"
#include "base/random.h"
#include "base/status.h"
#include "client/interrupt.h"
#include "client/plan_report.h"
#include "client/transfer.h"

namespace nibble::client {
namespace {

bool IsLocal(const Client& client) {
  std::string server = client.options().server;
  if (const size_t scheme = server.find("://"); scheme != std::string::npos)
    server.erase(0, scheme + 3);
  return absl::StartsWith(server, "127.") || absl::StartsWith(server, "localhost:") ||
         absl::StartsWith(server, "[::1]:") || absl::StartsWith(server, "unix:");
}

// A path the server will not map is no error of the user's: the files are sent instead.
bool ShouldUploadInstead(const absl::Status& status) {
  switch (StatusReason(status)) {
    case Reason::kPathNotAllowed:
    case Reason::kUnsupportedOption:
      return true;
    default:
      return absl::IsUnimplemented(status);
  }
}

absl::StatusOr<std::string> ResolveModel(Client& client, const Terminal& terminal,
                                         const Recipe& recipe) {
  const std::string& text = recipe.base_model;
  if (absl::StartsWith(text, "models/") && !IsDirectory(text)) return text;
  std::string directory = text;
  std::string display_name = BaseName(text);
  if (!IsDirectory(directory)) {
    if (FileExists(directory)) {
      return Error::Field(
                 Reason::kSpecInvalid, "base_model",
                 absl::StrCat("must be a directory in Hugging Face layout, got the file ", text))
          .ToStatus();
    }
    ASSIGN_OR_RETURN(directory, FindInHubCache(text, recipe.base_revision));
    display_name = text;
  }
  ASSIGN_OR_RETURN(const v1::Model model,
                   RegisterDirectory(client, terminal, directory, display_name, ""));
  return model.name();
}

// Else it is the name of one that the server has, or nothing.
bool IsFile(const std::string& dataset) {
  return !dataset.empty() && (!absl::StartsWith(dataset, "datasets/") || FileExists(dataset));
}

absl::Status CheckDataFile(const std::string& path) {
  if (IsDirectory(path)) {
    return Error(Reason::kDatasetNotFound,
                 absl::StrCat("data set ", path, " is a directory; give the file of JSON lines in it"))
        .ToStatus();
  }
  if (!FileExists(path)) {
    return Error(Reason::kDatasetNotFound,
                 absl::StrCat("data set ", path, ": no such file", absl::StrContains(path, ',')
                                  ? "; give one file, and join several (cat A.jsonl B.jsonl)"
                                  : "; give the path of a file of JSON lines, or datasets/NAME of one on the "
                                    "server (nothing is downloaded)"))
        .ToStatus();
  }
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) return absl::OkStatus();
  // Read once for its digest and again to be sent, and some have no end.
  return Error(Reason::kDatasetNotFound,
               absl::StrCat("data set ", path, " is a pipe or a device, which cannot be read twice; write "
                            "what comes from it to a file and give that"))
      .ToStatus();
}

// A wrong name is told before anything has gone up.
absl::Status CheckName(const std::string& name) {
  if (name.empty() || IsValidId(name)) return absl::OkStatus();
  return Error::Field(Reason::kNameInvalid, "--name",
                      absl::StrCat("must be 1 to 63 characters of a-z, 0-9 and inner -, got \"",
                                   name.substr(0, 80), "\""))
      .ToStatus();
}

// What a clone or a download leaves where a file has not come: a link to nothing, or Git LFS' note.
absl::Status CheckHasCome(const std::string& path) {
  std::error_code error;
  const auto target = std::filesystem::read_symlink(path, error);
  if (!FileExists(path)) {
    return Error(Reason::kModelFileInvalid,
                 absl::StrCat(path, " is a link to ", error ? "a file" : target.string(),
                              ", which is not there; a download of it was cut off, or its place was cleared: "
                              "fetch the model again (hf download ORG/NAME)"))
        .ToStatus();
  }
  constexpr int64_t kMostOfANote = 1024;
  if (const auto size = FileSizeBytes(path); !size.ok() || *size > kMostOfANote) return absl::OkStatus();
  const auto text = ReadFile(path, kMostOfANote);
  if (!text.ok() || !absl::StartsWith(*text, "version https://git-lfs")) return absl::OkStatus();
  return Error(Reason::kModelFileInvalid,
               absl::StrCat(path, " is a pointer of Git LFS in place of the file; run `git lfs pull` in its "
                            "folder, or fetch the model with hf download ORG/NAME"))
      .ToStatus();
}

// What a folder without `needed` has in its place, with what makes that of it.
std::string InItsPlace(const std::vector<std::string>& all, std::string_view needed) {
  for (const std::string& name : all) {
    if (needed == "tokenizer.json" && name == "tokenizer.model") {
      return "; of tokenizer.model transformers makes one "
             "(AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))";
    }
    const bool weights =
        absl::EndsWith(name, ".bin") || absl::EndsWith(name, ".pth") || absl::EndsWith(name, ".pt");
    if (needed == ".safetensors" && weights) {
      return absl::StrCat("; save what ", name, " has anew with transformers (save_pretrained)");
    }
    if (needed == ".safetensors" && absl::EndsWith(name, ".gguf")) {
      return absl::StrCat("; ", name, " is llama.cpp's form: fetch the model that it was made of");
    }
  }
  return "";
}

// One file, with what to do when it is stopped in the middle.
absl::StatusOr<std::string> UploadShown(Client& client, const Terminal& terminal, const std::string& path,
                                        const std::string& name) {
  const InterruptNote note(
      terminal, absl::StrCat("stopped while ", name, " was being sent; what the server has of it is kept",
                             " for a day, and the same command goes on from there"));
  ByteProgress reading(terminal, absl::StrCat("reading ", name), /*only_live=*/true);
  ByteProgress sending(terminal, absl::StrCat("uploading ", name));
  return UploadFile(
      client, path, [&](int64_t done, int64_t total) { reading.Show(done, total); },
      [&](int64_t done, int64_t total) { sending.Show(done, total); });
}

// While the server reads what it has been given: that takes seconds for every few GiB.
template <typename Call>
auto Awaited(const Terminal& terminal, const std::string& name, const Call& call) {
  const InterruptNote note(
      terminal, absl::StrCat("stopped while the server was reading ", name,
                             "; the same command goes on from there"));
  const Transient waiting(terminal, absl::StrCat("the server reads ", name));
  return call();
}

absl::StatusOr<std::string> ResolveDataset(Client& client, const Terminal& terminal,
                                           const std::string& text) {
  if (!IsFile(text)) return text;
  ASSIGN_OR_RETURN(const v1::Dataset dataset, PushDataset(client, terminal, text, ""));
  return dataset.name();
}

absl::StatusOr<v1::Model> UploadDirectory(Client& client, const Terminal& terminal,
                                          const std::string& directory,
                                          v1::RegisterModelRequest request) {
  ASSIGN_OR_RETURN(const std::vector<std::string> files, ModelFiles(directory));
  request.clear_path();
  for (const std::string& name : files) {
    const std::string path = JoinPath(directory, name);
    ASSIGN_OR_RETURN(const std::string digest, UploadShown(client, terminal, path, name));
    ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(path));
    auto* file = request.add_manifest();
    file->set_name(name);
    file->set_size_bytes(size);
    file->set_sha256(digest);
  }
  return Awaited(terminal, BaseName(directory), [&] { return client.RegisterModel(request); });
}

// A name of a recipe is a wish: run twice, the second job gets a number.
absl::StatusOr<v1::Job> CreateWithFreeName(Client& client, v1::CreateJobRequest request) {
  constexpr int kTries = 30;
  const std::string wished = request.job_id();
  for (int i = 1;; ++i) {
    if (i > 1) {
      const std::string suffix =
          i < kTries ? absl::StrCat("-", i) : absl::StrCat("-", SystemEntropy() % 1'000'000);
      request.set_job_id(wished.substr(0, 63 - suffix.size()) + suffix);
      request.set_request_id(NewUuid());
    }
    const auto job = client.CreateJob(request);
    if (job.ok() || StatusReason(job.status()) != Reason::kJobExists || i > kTries) return job;
  }
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ModelFiles(const std::string& directory) {
  if (!IsDirectory(directory)) {
    return Error(Reason::kBaseModelNotFound,
                 absl::StrCat("base model ", directory,
                              FileExists(directory) ? " is a file; give its folder" : ": no such directory"))
        .ToStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> all, ListDir(directory));
  std::vector<std::string> files;
  for (const std::string& name : all) {
    const bool weights =
        absl::EndsWith(name, ".safetensors") && !absl::StartsWith(name, "adapter_");
    const bool known = name == "config.json" || name == "model.safetensors.index.json" ||
                       name == "generation_config.json" || name == "special_tokens_map.json" ||
                       name == "chat_template.jinja" || name == "added_tokens.json" ||
                       name == "vocab.json" || name == "merges.txt" || name == "LICENSE" ||
                       name == "README.md" || absl::StartsWith(name, "tokenizer");
    if ((weights || known) && !IsDirectory(JoinPath(directory, name))) files.push_back(name);
  }
  const auto has = [&](std::string_view suffix) {
    return std::any_of(files.begin(), files.end(),
                       [&](const std::string& f) { return f.ends_with(suffix); });
  };
  for (const char* needed : {"config.json", ".safetensors", "tokenizer.json"}) {
    if (has(needed)) continue;
    return Error(Reason::kModelFileInvalid,
                 absl::StrCat(
                     directory, " has no ", needed,
                     "; a base model is a directory in Hugging Face "
                     "layout with config.json, model.safetensors (or shards) and tokenizer.json",
                     InItsPlace(all, needed)))
        .ToStatus();
  }
  for (const std::string& name : files) RETURN_IF_ERROR(CheckHasCome(JoinPath(directory, name)));
  return files;
}

absl::StatusOr<std::string> FindInHubCache(const std::string& model, const std::string& revision) {
  const auto env = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  std::string cache = env("HF_HUB_CACHE");
  if (cache.empty() && !env("HF_HOME").empty()) cache = JoinPath(env("HF_HOME"), "hub");
  if (cache.empty() && !env("XDG_CACHE_HOME").empty())
    cache = JoinPath(env("XDG_CACHE_HOME"), "huggingface/hub");
  if (cache.empty()) cache = JoinPath(env("HOME"), ".cache/huggingface/hub");
  const auto missing = [&] {
    return Error(
               Reason::kBaseModelNotFound,
               absl::StrCat("base_model ", model, ": no such directory, and ",
                            revision.empty() ? "" : absl::StrCat("revision ", revision, " is "),
                            "not in the cache ", cache,
                            "; give a directory, or ORG/NAME of what is in the cache (hf download ORG/NAME)"))
        .ToStatus();
  };
  if (model.empty() || model[0] == '/' || model[0] == '.') {
    return Error(Reason::kBaseModelNotFound,
                 absl::StrCat("base_model ", model, ": no such directory"))
        .ToStatus();
  }
  if (std::count(model.begin(), model.end(), '/') != 1 || absl::StrContains(model, ".."))
    return missing();
  const std::string folder =
      JoinPath(cache, "models--" + absl::StrReplaceAll(model, {{"/", "--"}}));
  const std::string wanted = revision.empty() ? "main" : revision;
  if (absl::StrContains(wanted, "..")) return missing();
  std::string commit = wanted;
  if (const auto ref = ReadFile(JoinPath(folder, "refs/" + wanted), 1024); ref.ok()) {
    commit = std::string(absl::StripAsciiWhitespace(*ref));
  }
  const std::string snapshot = JoinPath(folder, "snapshots/" + commit);
  return IsDirectory(snapshot) ? absl::StatusOr<std::string>(snapshot) : missing();
}

absl::StatusOr<v1::Model> RegisterDirectory(Client& client, const Terminal& terminal,
                                            const std::string& directory,
                                            const std::string& display_name,
                                            const std::string& model_id) {
  RETURN_IF_ERROR(CheckName(model_id));
  RETURN_IF_ERROR(ModelFiles(directory).status());
  ASSIGN_OR_RETURN(const std::string path, RealPath(directory));
  v1::RegisterModelRequest request;
  request.set_model_id(model_id);
  request.set_display_name(
      ValidUtf8(display_name.empty() || display_name == "." ? BaseName(path) : display_name));
  // A path that is no text cannot be said; its files can be sent.
  if (IsLocal(client) && ValidUtf8(path) == path) {
    request.set_path(path);
    const auto model = Awaited(terminal, path, [&] { return client.RegisterModel(request); });
    if (model.ok() || !ShouldUploadInstead(model.status())) return model;
  }
  return UploadDirectory(client, terminal, directory, request);
}

absl::StatusOr<v1::Model> RegisterOnServer(Client& client, const Terminal& terminal,
                                           const std::string& directory,
                                           const std::string& model_id) {
  RETURN_IF_ERROR(CheckName(model_id));
  if (!absl::StartsWith(directory, "/")) {
    return Error::Field(Reason::kSpecInvalid, "directory",
                        absl::StrCat("must be an absolute path with --on-server, got ", directory))
        .ToStatus();
  }
  v1::RegisterModelRequest request;
  request.set_model_id(model_id);
  request.set_display_name(ValidUtf8(BaseName(directory)));
  request.set_path(directory);
  return Awaited(terminal, directory, [&] { return client.RegisterModel(request); });
}

absl::StatusOr<v1::Dataset> PushDataset(Client& client, const Terminal& terminal,
                                        const std::string& path, const std::string& dataset_id) {
  RETURN_IF_ERROR(CheckDataFile(path));
  RETURN_IF_ERROR(CheckName(dataset_id));
  ASSIGN_OR_RETURN(const std::string digest, UploadShown(client, terminal, path, BaseName(path)));
  if (dataset_id.empty()) {
    ASSIGN_OR_RETURN(const v1::ListDatasetsResponse known, client.ListDatasets());
    for (const auto& dataset : known.datasets()) {
      if (dataset.sha256() == digest) return dataset;
    }
  }
  v1::CreateDatasetRequest request;
  request.set_dataset_id(dataset_id);
  request.set_display_name(ValidUtf8(BaseName(path)));
  request.set_sha256(digest);
  return Awaited(terminal, BaseName(path), [&] { return client.CreateDataset(request); });
}

absl::StatusOr<v1::JobSpec> PrepareSpec(Client& client, const Terminal& terminal,
                                        const Recipe& recipe) {
  v1::JobSpec spec;
  const auto parsed = google::protobuf::util::JsonStringToMessage(recipe.spec_json, &spec);
  if (!parsed.ok()) {
    return Error(Reason::kSpecInvalid,
                 absl::StrCat("the recipe does not fit the job schema: ", parsed.ToString()))
        .ToStatus();
  }
  for (const std::string& notice : recipe.notices)
    PrintNote(terminal, absl::StrCat("note: ", notice));
  // What is wrong is said before gigabytes have gone up.
  for (const std::string* text : {&recipe.dataset, &recipe.eval_dataset}) {
    if (IsFile(*text)) RETURN_IF_ERROR(CheckDataFile(*text));
  }
  ASSIGN_OR_RETURN(*spec.mutable_base_model(), ResolveModel(client, terminal, recipe));
  if (IsFile(recipe.dataset)) {
    v1::PlanJobRequest question;
    *question.mutable_spec() = spec;
    RETURN_IF_ERROR(InRecipeWords(client.PlanJob(question).status()));
  }
  ASSIGN_OR_RETURN(*spec.mutable_dataset(), ResolveDataset(client, terminal, recipe.dataset));
  ASSIGN_OR_RETURN(*spec.mutable_eval_dataset(),
                   ResolveDataset(client, terminal, recipe.eval_dataset));
  return spec;
}

absl::StatusOr<std::map<std::string, std::string>> ParseLabels(
    const std::vector<std::string>& labels) {
  std::map<std::string, std::string> parsed;
  for (const std::string& label : labels) {
    const size_t equals = label.find('=');
    if (equals == 0 || equals == std::string::npos) {
      return Error::Field(Reason::kSpecInvalid, "--label",
                          absl::StrCat("must be key=value, got \"", label, "\""))
          .ToStatus();
    }
    parsed[label.substr(0, equals)] = label.substr(equals + 1);
  }
  return parsed;
}

absl::StatusOr<v1::Job> Submit(Client& client, const Terminal& terminal, const SubmitArgs& args) {
  ASSIGN_OR_RETURN(const Recipe recipe, LoadRecipe(args.recipe, args.overrides));
  ASSIGN_OR_RETURN(const auto labels, ParseLabels(args.labels));
  RETURN_IF_ERROR(CheckName(args.name));
  v1::CreateJobRequest request;
  ASSIGN_OR_RETURN(*request.mutable_spec(), PrepareSpec(client, terminal, recipe));
  // Nothing is made, so a recipe's own name is not in the way of itself.
  request.set_job_id(!args.name.empty() ? args.name : args.dry_run ? "" : recipe.name);
  request.set_display_name(recipe.name);
  request.set_request_id(args.request_id);
  request.set_validate_only(args.dry_run);
  request.set_priority(args.priority.value_or(recipe.priority));
  for (const auto& [key, value] : recipe.labels) (*request.mutable_labels())[key] = value;
  for (const auto& [key, value] : labels) (*request.mutable_labels())[key] = value;
  // A name said on the command line, or a request that may be repeated, is meant to the letter.
  const bool literal =
      !args.name.empty() || !args.request_id.empty() || args.dry_run || recipe.name.empty();
  absl::StatusOr<v1::Job> job =
      literal ? client.CreateJob(request) : CreateWithFreeName(client, std::move(request));
  if (!job.ok()) return InRecipeWords(job.status());
  return job;
}

}  // namespace nibble::client
