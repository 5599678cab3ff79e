#include "engine/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/model/floats.h"
#include "engine/model/safetensors_error.h"
#include "engine/text/json.h"
#include "engine/text/text.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxHeaderBytes = 16 << 20;
constexpr size_t kMaxShards = 4096;

absl::Status ReadAt(const std::string& path, int fd, int64_t offset, int64_t size, void* out) {
  auto* to = static_cast<char*>(out);
  while (size > 0) {
    const ssize_t n = ::pread(fd, to, static_cast<size_t>(size), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    if (n == 0) {
      return BadFile(path, absl::StrCat("ends at byte ", offset, ", ", size,
                                        " bytes too early; it was changed while being read"));
    }
    to += n;
    offset += n;
    size -= n;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile());
  file->path_ = path;
  file->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file->fd_ < 0) {
    if (errno == ENOENT) return BadFile(path, "is missing");
    return ErrnoStatus(errno, absl::StrCat("open ", path));
  }
  struct stat info = {};
  if (::fstat(file->fd_, &info) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
  if (!S_ISREG(info.st_mode)) return BadFile(path, "is no regular file");
  const int64_t file_bytes = info.st_size;
  if (file_bytes < 8) {
    return BadFile(path, absl::StrCat("has ", file_bytes, " bytes; a safetensors file has 8 at least"));
  }
  uint8_t length_bytes[8];
  RETURN_IF_ERROR(ReadAt(path, file->fd_, 0, 8, length_bytes));
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | length_bytes[i];
  if (length > uint64_t{kMaxHeaderBytes}) {
    return BadFile(path,
                   absl::StrCat("says its header has ", length, " bytes, the bound is ", kMaxHeaderBytes));
  }
  const auto header_bytes = static_cast<int64_t>(length);
  if (header_bytes > file_bytes - 8) {
    return BadFile(path, absl::StrCat("says its header has ", header_bytes, " bytes, the file has ",
                                      file_bytes, "; it is truncated"));
  }
  std::string header(static_cast<size_t>(header_bytes), '\0');
  RETURN_IF_ERROR(ReadAt(path, file->fd_, 8, header_bytes, header.data()));
  ASSIGN_OR_RETURN(SafetensorsHeader parsed,
                   ParseSafetensorsHeader(path, header, file_bytes - 8 - header_bytes));
  file->tensors_ = std::move(parsed.tensors);
  file->metadata_ = std::move(parsed.metadata);
  for (auto& [name, tensor] : file->tensors_) tensor.offset += 8 + header_bytes;
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (fd_ >= 0) ::close(fd_);
}

const TensorInfo* SafetensorsFile::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::Status SafetensorsFile::Read(const TensorInfo& tensor, int64_t begin, int64_t size, void* out) const {
  CHECK(begin >= 0 && size >= 0 && begin <= tensor.size_bytes - size);
  return ReadAt(path_, fd_, tensor.offset + begin, size, out);
}

absl::Status SafetensorsFile::ReadF32(const TensorInfo& tensor, int64_t first, int64_t count,
                                      float* out) const {
  if (tensor.type == TensorType::kF32) return Read(tensor, first * 4, count * 4, out);
  if (tensor.type != TensorType::kF16 && tensor.type != TensorType::kBF16) {
    return BadTensor(
        path_, tensor.name,
        absl::StrCat("has type ", View(TensorTypeName(tensor.type)), "; F32, F16 or BF16 is needed"));
  }
  // The 16-bit values are read into the upper half of `out` and widened from the front: value i is
  // read before float i overwrites it.
  auto* half = reinterpret_cast<char*>(out) + count * 2;
  RETURN_IF_ERROR(Read(tensor, first * 2, count * 2, half));
  const bool bf16 = tensor.type == TensorType::kBF16;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, half + i * 2, 2);
    const float value = bf16 ? FloatFromBf16(bits) : FloatFromF16(bits);
    std::memcpy(out + i, &value, 4);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  auto checkpoint = std::make_unique<Checkpoint>();
  const std::string single = JoinPath(directory, "model.safetensors");
  const std::string index = JoinPath(directory, "model.safetensors.index.json");
  std::map<std::string, std::string, std::less<>> shard_of;  // tensor to file name
  std::set<std::string> names;
  if (FileExists(index)) {
    ASSIGN_OR_RETURN(shard_of, ReadShardIndex(index));
    for (const auto& [tensor, name] : shard_of) names.insert(name);
    if (names.size() > kMaxShards)
      return BadFile(index, absl::StrCat("names more than ", kMaxShards, " files"));
  } else if (FileExists(single)) {
    names.insert("model.safetensors");
  } else {
    return Error(Reason::kModelFileInvalid,
                 absl::StrCat(directory,
                              " holds neither model.safetensors nor "
                              "model.safetensors.index.json; other weight formats (.bin, "
                              ".gguf) must be converted first"));
  }
  for (const std::string& name : names) {
    auto file = SafetensorsFile::Open(JoinPath(directory, name));
    if (!file.ok()) {
      if (!shard_of.empty() && !FileExists(JoinPath(directory, name))) {
        return BadFile(JoinPath(directory, name), "is missing, but model.safetensors.index.json names it");
      }
      return file.status();
    }
    for (const auto& [tensor, info] : (*file)->tensors()) {
      const auto listed = shard_of.find(tensor);
      if (!shard_of.empty() && (listed == shard_of.end() || listed->second != name)) continue;
      checkpoint->file_of_.emplace(tensor, checkpoint->files_.size());
    }
    checkpoint->files_.push_back(std::move(*file));
  }
  for (const auto& [tensor, name] : shard_of) {
    if (!checkpoint->file_of_.contains(tensor)) {
      return BadTensor(JoinPath(directory, name), tensor,
                       "is missing, but model.safetensors.index.json says it is here");
    }
  }
  return checkpoint;
}

const TensorInfo* Checkpoint::Find(std::string_view name) const {
  const auto it = file_of_.find(name);
  return it == file_of_.end() ? nullptr : files_[it->second]->Find(name);
}

absl::Status Checkpoint::Read(const TensorInfo& tensor, int64_t begin, int64_t size, void* out) const {
  return files_[file_of_.find(tensor.name)->second]->Read(tensor, begin, size, out);
}

absl::Status Checkpoint::ReadF32(const TensorInfo& tensor, int64_t first, int64_t count, float* out) const {
  return files_[file_of_.find(tensor.name)->second]->ReadF32(tensor, first, count, out);
}

std::vector<std::string> Checkpoint::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : file_of_) names.push_back(name);
  return names;
}

std::vector<std::string> Checkpoint::Paths() const {
  std::vector<std::string> paths;
  for (const auto& file : files_) paths.push_back(file->path());
  return paths;
}

std::string Checkpoint::Where(std::string_view name) const {
  const auto it = file_of_.find(name);
  return absl::StrCat(it == file_of_.end() ? "model" : BaseName(files_[it->second]->path()), ": tensor ",
                      Quote(name));
}

}  // namespace nibble::engine
