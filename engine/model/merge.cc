#include "engine/model/merge.h"

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/human_bytes.h"
#include "base/status.h"
#include "engine/model/base_cache.h"
#include "engine/model/base_tensors.h"
#include "engine/model/hashed_file.h"
#include "engine/model/merged_weights.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_write.h"
#include "engine/model/stop_tokens.h"
#include "engine/spec/words.h"
#include "engine/text/json.h"
#include "engine/text/text.h"

namespace nibble::engine {
namespace {

using nlohmann::ordered_json;

constexpr char kGenerationConfig[] = "generation_config.json";
constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxOtherBytes = 256 << 20;  // of a file beside the weights

class Merger {
 public:
  explicit Merger(const MergeOptions& options) : options_(options) {}

  absl::StatusOr<MergeReport> Run();

 private:
  absl::Status Open();
  absl::Status CheckLeftOut() const;
  absl::Status CheckBase();
  absl::Status CheckRoom();
  absl::Status WriteShard(const std::string& path);
  absl::Status WriteIndex();
  absl::Status CopyTheRest();
  absl::Status WriteGenerationConfig();
  absl::Status WriteCard();
  absl::Status WriteText(const std::string& name, std::string_view text);
  void Count(const HashedFile& file, const std::string& name);

  const MergeOptions& options_;
  std::string partial_;  // where files are written until all are there
  std::string config_json_;
  spec::ModelConfig model_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::optional<BaseTensors> tensors_;
  std::unique_ptr<BaseModel> quantized_;  // kQuantized only
  Adapter adapter_;
  std::optional<MergedWeights> weights_;
  std::map<std::string, std::string> shard_of_;  // written tensors
  int64_t tensor_bytes_ = 0;
  std::string checksums_;
  MergeReport report_;
};

absl::Status Merger::Open() {
  const std::string& dir = options_.base.model_dir;
  const std::string config_path = JoinPath(dir, "config.json");
  if (!FileExists(config_path))
    return Error(Reason::kModelFileInvalid, absl::StrCat(config_path, " is missing"));
  ASSIGN_OR_RETURN(config_json_, ReadFile(config_path, kMaxConfigBytes));
  ASSIGN_OR_RETURN(model_, spec::ParseModelConfig(config_json_));
  ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(dir));
  ASSIGN_OR_RETURN(tensors_, BaseTensors::Make(checkpoint_.get(), model_));
  RETURN_IF_ERROR(CheckLeftOut());
  ASSIGN_OR_RETURN(adapter_, ImportAdapter(options_.adapter_dir, model_));
  RETURN_IF_ERROR(CheckBase());
  if (options_.onto == MergeOnto::kQuantized) {
    BaseModelOptions base = options_.base;
    base.quant = report_.base.quant;
    base.double_quant = report_.base.double_quant;
    ASSIGN_OR_RETURN(quantized_, BaseModel::Open(base));
  }
  weights_.emplace(model_, *tensors_, adapter_, quantized_.get(), std::max(options_.base.threads, 1));
  report_.config = adapter_.config;
  report_.matrices = static_cast<int64_t>(adapter_.pairs.size());
  return absl::OkStatus();
}

// What is left as it is goes beside a config.json that no longer speaks of four bits.
absl::Status Merger::CheckLeftOut() const {
  for (const std::string& name : checkpoint_->Names()) {
    if (!spec::IsLeftOut(model_, name) || !absl::StrContains(name, ".quant_state.bitsandbytes__")) continue;
    return Error(Reason::kModelFileInvalid,
                 absl::StrCat(checkpoint_->Where(name), ": what sees pictures is stored in four bits there, ",
                              "which a merged model cannot keep; give the model whose vision tower is not"));
  }
  return absl::OkStatus();
}

absl::Status Merger::CheckBase() {
  report_.base_known = !adapter_.base.weights_digest.empty();
  report_.base = adapter_.base;
  if (!report_.base_known) {
    report_.base.quant = options_.base.quant;
    report_.base.double_quant = options_.base.double_quant;
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(MakeDirs(options_.base.cache_dir));
  ASSIGN_OR_RETURN(const std::string digest, WeightsDigest(options_.base.cache_dir, *checkpoint_));
  if (digest == adapter_.base.weights_digest || options_.any_base) return absl::OkStatus();
  return Error(Reason::kModelFileInvalid,
               absl::StrCat("adapter ", options_.adapter_dir, " was trained on weights ",
                            adapter_.base.weights_digest.substr(0, 12), " (", adapter_.config.base_model_name,
                            "), and ", options_.base.model_dir, " has ", digest.substr(0, 12),
                            "; give the base it was trained on, or --any-base to merge all the same"));
}

void Merger::Count(const HashedFile& file, const std::string& name) {
  absl::StrAppend(&checksums_, file.digest(), "  ", name, "\n");
  ++report_.files;
  report_.size_bytes += file.bytes();
}

absl::Status Merger::WriteShard(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> shard, SafetensorsFile::Open(path));
  const std::string name(BaseName(path));
  std::vector<TensorToWrite> tensors;
  for (const auto& [tensor_name, tensor] : shard->tensors()) {
    std::optional<TensorToWrite> made = weights_->Made(*shard, tensor);
    if (!made.has_value()) continue;
    shard_of_[tensor_name] = name;
    tensor_bytes_ += made->Bytes();
    tensors.push_back(*std::move(made));
  }
  HashedFile file(JoinPath(partial_, name));
  RETURN_IF_ERROR(file.Open());
  RETURN_IF_ERROR(StreamSafetensors(tensors, {{"format", "pt"}},
                                    [&](const void* data, int64_t size) { return file.Write(data, size); }));
  RETURN_IF_ERROR(file.Finish());
  Count(file, name);
  return absl::OkStatus();
}

absl::Status Merger::WriteText(const std::string& name, std::string_view text) {
  HashedFile file(JoinPath(partial_, name));
  RETURN_IF_ERROR(file.Open());
  RETURN_IF_ERROR(file.Write(text.data(), static_cast<int64_t>(text.size())));
  RETURN_IF_ERROR(file.Finish());
  Count(file, name);
  return absl::OkStatus();
}

absl::Status Merger::WriteIndex() {
  if (checkpoint_->Paths().size() < 2) return absl::OkStatus();
  ordered_json index = {{"metadata", {{"total_size", tensor_bytes_}}},
                        {"weight_map", ordered_json::object()}};
  for (const auto& [tensor, shard] : shard_of_) index["weight_map"][tensor] = shard;
  return WriteText("model.safetensors.index.json", index.dump(2) + "\n");
}

// Programs that serve the model know by it where answers end.
absl::Status Merger::WriteGenerationConfig() {
  const std::string& dir = options_.base.model_dir;
  const std::optional<EndOfTurn> end = LearnedEndOfTurn(options_.adapter_dir, dir);
  std::string text;
  if (end && !EosIds(dir).contains(end->id)) {
    text = GenerationConfigWith(dir, end->id);
    if (!text.empty()) report_.end_of_turn = end->token;
  }
  const std::string path = JoinPath(dir, kGenerationConfig);
  if (text.empty()) {
    if (!FileExists(path)) return absl::OkStatus();
    ASSIGN_OR_RETURN(text, ReadFile(path, kMaxOtherBytes));
  }
  return WriteText(kGenerationConfig, text);
}

// Everything of the base that is no weights: tokenizer, templates, generation settings.
absl::Status Merger::CopyTheRest() {
  std::string config = config_json_;
  if (ordered_json edited = ordered_json::parse(config, nullptr, false);
      edited.contains("quantization_config")) {
    edited.erase("quantization_config");
    config = edited.dump(2) + "\n";
  }
  RETURN_IF_ERROR(WriteText("config.json", config));
  RETURN_IF_ERROR(WriteGenerationConfig());
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(options_.base.model_dir));
  for (const std::string& name : names) {
    const std::string path = JoinPath(options_.base.model_dir, name);
    const bool text = absl::EndsWith(name, ".json") || absl::EndsWith(name, ".jinja") ||
                      absl::EndsWith(name, ".model") || absl::EndsWith(name, ".txt") || name == "LICENSE";
    if (!text || name == "config.json" || name == kGenerationConfig || absl::EndsWith(name, ".index.json") ||
        name == "checksums.txt" ||
        IsDirectory(path)) {
      continue;
    }
    ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kMaxOtherBytes));
    RETURN_IF_ERROR(WriteText(name, bytes));
  }
  return absl::OkStatus();
}

absl::Status Merger::WriteCard() {
  const AdapterConfig& config = adapter_.config;
  const std::string base =
      config.base_model_name.empty() ? BaseName(options_.base.model_dir) : config.base_model_name;
  const bool trained_on_codes = report_.base_known && report_.base.quant != spec::QuantKind::kBF16;
  std::string values = "the base's weights as its files have them";
  if (options_.onto == MergeOnto::kQuantized) {
    values = absl::StrCat("what the base's weights come to after quantization (",
                          View(WordOf(spec::kQuantWords, report_.base.quant)),
                          report_.base.double_quant ? ", double quantization)" : ")");
  } else if (trained_on_codes) {
    values += "; it was trained on their quantized form, so answers may differ from those with the adapter";
  }
  std::string ending;
  if (!report_.end_of_turn.empty()) {
    ending = absl::StrCat("\nAnswers end with `", report_.end_of_turn,
                          "`, as generation_config.json says.\n");
  }
  return WriteText("README.md",
                   absl::StrCat("---\nbase_model: ", JsonString(base),
                                "\npipeline_tag: text-generation\ntags:\n- nibble\n---\n\n# ", base,
                                ", fine-tuned\n\nA LoRA adapter (r ", config.r, ", alpha ", config.alpha,
                                "), merged by Nibble into ", report_.matrices, " matrices of `", base,
                                "`. It was added to ", values, ".\n",
                                ending,
                                "\n`sha256sum -c checksums.txt` checks the files.\n"));
}

absl::Status Merger::CheckRoom() {
  int64_t needed = 0;
  for (const std::string& path : checkpoint_->Paths()) {
    ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> shard, SafetensorsFile::Open(path));
    for (const auto& [name, tensor] : shard->tensors()) {
      if (const auto made = weights_->Made(*shard, tensor)) needed += made->Bytes();
    }
  }
  ASSIGN_OR_RETURN(const int64_t free, FreeDiskBytes(partial_));
  if (needed <= free) return absl::OkStatus();
  return Error(Reason::kStorageFull,
               absl::StrCat("merging needs ", HumanBytes(needed), " at ", options_.out_dir, ", and ",
                            HumanBytes(free), " are free; make room or give another --out"))
      .With("needed_bytes", absl::StrCat(needed))
      .With("free_bytes", absl::StrCat(free))
      .ToStatus();
}

absl::StatusOr<MergeReport> Merger::Run() {
  if (FileExists(options_.out_dir)) {
    const auto there = ListDir(options_.out_dir);
    if (!there.ok() || !there->empty()) {
      return Error(Reason::kSpecInvalid,
                   absl::StrCat("--out ", options_.out_dir,
                                " is there already and is no empty folder; name a new one"));
    }
  }
  RETURN_IF_ERROR(Open());
  partial_ = absl::StrCat(options_.out_dir, ".partial");
  RETURN_IF_ERROR(RemoveAll(partial_));
  RETURN_IF_ERROR(MakeDirs(partial_));
  absl::Cleanup nothing_half = [&] { RemoveAll(partial_).IgnoreError(); };
  RETURN_IF_ERROR(CheckRoom());
  const std::vector<std::string> shards = checkpoint_->Paths();
  for (size_t i = 0; i < shards.size(); ++i) {
    if (options_.progress) options_.progress(static_cast<int64_t>(i), static_cast<int64_t>(shards.size()));
    RETURN_IF_ERROR(WriteShard(shards[i]));
  }
  RETURN_IF_ERROR(WriteIndex());
  RETURN_IF_ERROR(CopyTheRest());
  RETURN_IF_ERROR(WriteCard());
  const std::string checksums = checksums_;
  RETURN_IF_ERROR(WriteText("checksums.txt", checksums));
  RETURN_IF_ERROR(SyncDir(partial_));
  RETURN_IF_ERROR(Rename(partial_, options_.out_dir));
  std::move(nothing_half).Cancel();
  if (options_.progress) {
    options_.progress(static_cast<int64_t>(shards.size()), static_cast<int64_t>(shards.size()));
  }
  return report_;
}

}  // namespace

absl::StatusOr<MergeReport> MergeAdapter(const MergeOptions& options) { return Merger(options).Run(); }

}  // namespace nibble::engine
