// nibble-make-base: the quantized base of a model that never lies on the disk as a whole.
//
//   nibble-make-base --model-dir DIR --cache-dir DIR [--shard-bytes N] [--threads N]
//
// DIR holds a config.json. Random bf16 weights are written in Hugging Face layout one shard at a time, in
// the order in which the engine quantizes; each shard's bytes are given back to the disk before the next is
// written. So a model of 65 GB of weights needs the 17 GB of its base and one shard. What stays of the shards
// is their headers and sizes, with holes for data; the base in the cache is under the digest of those, and
// an engine that opens DIR finds it. Random: sign and mantissa at will, 2^-7 to 2^-5 in size; norms are one.
// For large runs on small disks (big_runs.py); no model of any use comes out.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/flags.h"
#include "engine/model/base_cache.h"
#include "engine/model/base_tensors.h"
#include "engine/model/safetensors.h"
#include "engine/spec/base_layout.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using spec::BaseEntry;
using spec::BasePart;

constexpr int64_t kBlockBytes = int64_t{64} << 20;
constexpr uint16_t kOne = 0x3F80;

struct Tensor {
  std::string name;
  std::vector<int64_t> shape;
  int64_t Bytes() const { return 2 * shape[0] * (shape.size() > 1 ? shape[1] : 1); }
};

// One file: a header, and data that exists only between Fill and Empty.
class Shard {
 public:
  Shard(std::string path, std::vector<Tensor> tensors)
      : path_(std::move(path)), tensors_(std::move(tensors)) {}

  const std::vector<Tensor>& tensors() const { return tensors_; }
  int64_t data_bytes() const { return data_bytes_; }

  absl::Status Create() {
    json header = {{"__metadata__", {{"format", "pt"}}}};
    for (const Tensor& tensor : tensors_) {
      header[tensor.name] = {{"dtype", "BF16"},
                             {"shape", tensor.shape},
                             {"data_offsets", {data_bytes_, data_bytes_ + tensor.Bytes()}}};
      data_bytes_ += tensor.Bytes();
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::string bytes(8, '\0');
    for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(text.size() >> (8 * i));
    bytes += text;
    data_begin_ = static_cast<int64_t>(bytes.size());
    RETURN_IF_ERROR(WriteFileAtomic(path_, bytes));
    if (::truncate(path_.c_str(), data_begin_ + data_bytes_) != 0) return Failed("extend");
    return absl::OkStatus();
  }

  absl::Status Fill(const std::vector<uint16_t>& noise, Random& random) {
    const int fd = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return Failed("open");
    int64_t at = data_begin_;
    std::vector<uint16_t> ones;
    absl::Status status;
    for (const Tensor& tensor : tensors_) {
      const bool norm = tensor.shape.size() == 1;
      if (norm) ones.assign(static_cast<size_t>(tensor.shape[0]), kOne);
      for (int64_t left = tensor.Bytes(); left > 0;) {
        // From anywhere in the first half of the block: no two tensors are alike.
        const auto from = norm ? 0 : random.Below(noise.size() / 2);
        const auto* data = reinterpret_cast<const char*>((norm ? ones : noise).data() + from);
        const ssize_t n = ::pwrite(fd, data, static_cast<size_t>(std::min(left, kBlockBytes / 2)), at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
          status = Failed("write");
          break;
        }
        at += n;
        left -= n;
      }
      if (!status.ok()) break;
    }
    ::close(fd);
    return status;
  }

  absl::Status Empty() {
    const int fd = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return Failed("open");
    const bool done =
        ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, data_begin_, data_bytes_) == 0;
    const absl::Status status = done ? absl::OkStatus() : Failed("empty");
    ::close(fd);
    return status;
  }

 private:
  absl::Status Failed(const char* what) const { return ErrnoStatus(errno, absl::StrCat(what, " ", path_)); }

  std::string path_;
  std::vector<Tensor> tensors_;
  int64_t data_begin_ = 0;
  int64_t data_bytes_ = 0;
};

// The tensors in the order of the layout, cut into shards.
std::vector<Shard> Cut(const std::string& directory, const spec::ModelConfig& model, int64_t shard_bytes) {
  std::vector<std::vector<Tensor>> groups(1);
  int64_t size = 0;
  for (spec::CheckpointTensor& one : spec::CheckpointTensors(model)) {
    Tensor tensor{std::move(one.name), std::move(one.shape)};
    if (size + tensor.Bytes() > shard_bytes && !groups.back().empty()) {
      groups.emplace_back();
      size = 0;
    }
    size += tensor.Bytes();
    groups.back().push_back(std::move(tensor));
  }
  std::vector<Shard> shards;
  for (size_t i = 0; i < groups.size(); ++i) {
    const std::string name = absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, groups.size());
    shards.emplace_back(JoinPath(directory, name), std::move(groups[i]));
  }
  return shards;
}

absl::Status WriteIndex(const std::string& directory, const std::vector<Shard>& shards) {
  json map = json::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    for (const Tensor& tensor : shards[i].tensors()) {
      map[tensor.name] = absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
    }
    total += shards[i].data_bytes();
  }
  const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  return WriteFileAtomic(JoinPath(directory, "model.safetensors.index.json"), index.dump());
}

std::vector<uint16_t> Noise(Random& random) {
  std::vector<uint16_t> noise(kBlockBytes / 2);
  for (uint16_t& value : noise) {
    const uint64_t bits = random.Below(uint64_t{1} << 16);
    value = static_cast<uint16_t>(0x3C00 | (bits & 0x80FF));  // sign, exponents 120 and 121, mantissa
  }
  return noise;
}

absl::Status Make(const Flags& flags) {
  ASSIGN_OR_RETURN(const std::string directory, flags.Needed("model-dir"));
  BaseCacheRequest request;
  ASSIGN_OR_RETURN(request.cache_dir, flags.Needed("cache-dir"));
  ASSIGN_OR_RETURN(const int64_t shard_bytes, flags.Integer("shard-bytes", 2'000'000'000));
  ASSIGN_OR_RETURN(const int64_t threads, flags.Integer("threads", 2));
  request.threads = static_cast<int>(threads);
  RETURN_IF_ERROR(MakeDirs(request.cache_dir));
  ASSIGN_OR_RETURN(const std::string config, ReadFile(JoinPath(directory, "config.json"), 1 << 20));
  ASSIGN_OR_RETURN(const spec::ModelConfig model, spec::ParseModelConfig(config));
  const spec::BaseLayout layout = spec::LayoutBase(model, request.quant, request.nested);
  std::vector<Shard> shards = Cut(directory, model, shard_bytes);
  std::map<std::string, size_t> shard_of;
  for (size_t i = 0; i < shards.size(); ++i) {
    RETURN_IF_ERROR(shards[i].Create());
    for (const Tensor& tensor : shards[i].tensors()) shard_of[tensor.name] = i;
  }
  RETURN_IF_ERROR(WriteIndex(directory, shards));
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(directory));
  ASSIGN_OR_RETURN(const BaseTensors tensors, BaseTensors::Make(checkpoint.get(), model));
  const auto digest = [&] {
    return BaseDigest(directory, request.cache_dir, *checkpoint, request.quant, request.nested);
  };
  ASSIGN_OR_RETURN(request.digest, digest());

  Random random(1);
  const std::vector<uint16_t> noise = Noise(random);
  constexpr size_t kNone = SIZE_MAX;
  size_t filled = kNone;
  absl::Status status;
  // Called before each entry: what it is made of has to be there by then.
  request.progress = [&](int64_t done, int64_t) {
    if (done == static_cast<int64_t>(layout.entries.size()) || !status.ok()) return;
    const BaseEntry& entry = layout.entries[static_cast<size_t>(done)];
    const auto found = shard_of.find(spec::CheckpointName(model, entry.part, entry.layer, entry.module));
    if (found == shard_of.end() || found->second == filled) return;
    CHECK(filled == kNone || found->second == filled + 1);
    if (filled != kNone) status.Update(shards[filled].Empty());
    filled = found->second;
    if (status.ok()) status.Update(shards[filled].Fill(noise, random));
    std::printf("shard %zu of %zu: %.2f GB\n", filled + 1, shards.size(),
                static_cast<double>(shards[filled].data_bytes()) * 1e-9);
    std::fflush(stdout);
  };
  ASSIGN_OR_RETURN(const BaseCacheFile file, EnsureBaseCache(request, tensors, layout));
  RETURN_IF_ERROR(status);
  if (filled != kNone) RETURN_IF_ERROR(shards[filled].Empty());
  ASSIGN_OR_RETURN(const std::string after, digest());  // and remembered, for the engine
  CHECK(after == request.digest);
  std::printf("base %s: %.2f GB\n", request.digest.c_str(), static_cast<double>(layout.file_bytes) * 1e-9);
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(const Flags flags,
                   Flags::Parse(arguments, {"model-dir", "cache-dir", "shard-bytes", "threads"}));
  return Make(flags);
}

}  // namespace
}  // namespace nibble::engine

int main(int argc, char** argv) {
  const absl::Status status = nibble::engine::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (status.ok()) return 0;
  std::fprintf(stderr, "nibble-make-base: %s\n", std::string(status.message()).c_str());
  return 1;
}
