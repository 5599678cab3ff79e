#include "engine/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/model/floats.h"
#include "engine/text/json.h"
#include "engine/text/text.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxHeaderBytes = 16 << 20;
constexpr size_t kMaxTensors = 100'000;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 512;
constexpr int kMaxDepth = 4;
constexpr size_t kMaxShards = 4096;

struct TypeRow {
  std::string_view name;
  int64_t bytes;
};
// In the order of TensorType.
constexpr TypeRow kTypes[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                              {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};

absl::Status Bad(std::string_view file, std::string_view what) {
  return Error(Reason::kModelFileInvalid, absl::StrCat(View(file), ": ", View(what)))
      .With("file", std::string(file));
}

absl::Status BadTensor(std::string_view file, std::string_view tensor, std::string_view what) {
  return Error(Reason::kModelFileInvalid,
               absl::StrCat(View(file), ": tensor ", Quote(tensor), ": ", View(what)))
      .With("file", std::string(file))
      .With("tensor", Quote(tensor));
}

absl::Status ReadAt(const std::string& path, int fd, int64_t offset, int64_t size, void* out) {
  auto* to = static_cast<char*>(out);
  while (size > 0) {
    const ssize_t n = ::pread(fd, to, static_cast<size_t>(size), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    if (n == 0) {
      return Bad(path, absl::StrCat("ends at byte ", offset, ", ", size,
                                    " bytes too early; it was changed while being read"));
    }
    to += n;
    offset += n;
    size -= n;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int64_t>> ReadShape(std::string_view file, std::string_view name,
                                               simdjson::dom::element field) {
  simdjson::dom::array dims;
  if (field.get(dims) != simdjson::SUCCESS) return BadTensor(file, name, "shape is no list");
  if (dims.size() > kMaxRank) {
    return BadTensor(
        file, name,
        absl::StrCat("has ", dims.size(), " dimensions, at most ", kMaxRank, " are allowed"));
  }
  std::vector<int64_t> shape;
  for (const auto dim : dims) {
    uint64_t value = 0;
    if (dim.get(value) != simdjson::SUCCESS || value > uint64_t{INT64_MAX}) {
      return BadTensor(file, name, "shape holds something that is no whole number from 0");
    }
    shape.push_back(static_cast<int64_t>(value));
  }
  return shape;
}

// The fields of one tensor, each exactly once; what we do not know is passed over, as the reference
// does.
absl::StatusOr<TensorInfo> ReadTensor(std::string_view file, std::string_view name,
                                      simdjson::dom::element value) {
  simdjson::dom::object object;
  if (value.get(object) != simdjson::SUCCESS) return BadTensor(file, name, "is no JSON object");
  TensorInfo tensor;
  tensor.name = std::string(name);
  bool has_type = false, has_shape = false, has_offsets = false;
  int64_t begin = 0, end = 0;
  for (const auto field : object) {
    if (field.key == "dtype") {
      std::string_view type;
      if (has_type || field.value.get(type) != simdjson::SUCCESS) {
        return BadTensor(file, name, "dtype must be one string");
      }
      const auto* row = std::find_if(std::begin(kTypes), std::end(kTypes),
                                     [&](const TypeRow& r) { return r.name == type; });
      if (row == std::end(kTypes)) {
        return BadTensor(file, name, absl::StrCat("dtype ", Quote(type), " is not supported"));
      }
      tensor.type = static_cast<TensorType>(row - kTypes);
      has_type = true;
    } else if (field.key == "shape") {
      if (has_shape) return BadTensor(file, name, "shape is given twice");
      ASSIGN_OR_RETURN(tensor.shape, ReadShape(file, name, field.value));
      has_shape = true;
    } else if (field.key == "data_offsets") {
      simdjson::dom::array pair;
      uint64_t values[2] = {0, 0};
      if (has_offsets || field.value.get(pair) != simdjson::SUCCESS || pair.size() != 2 ||
          pair.at(0).get(values[0]) != simdjson::SUCCESS ||
          pair.at(1).get(values[1]) != simdjson::SUCCESS || values[0] > values[1] ||
          values[1] > uint64_t{INT64_MAX}) {
        return BadTensor(file, name, "data_offsets must be [begin, end] with begin <= end");
      }
      begin = static_cast<int64_t>(values[0]);
      end = static_cast<int64_t>(values[1]);
      has_offsets = true;
    }
  }
  if (!has_type || !has_shape || !has_offsets) {
    return BadTensor(file, name, "needs dtype, shape and data_offsets");
  }
  int64_t bytes = TensorTypeBytes(tensor.type);
  for (const int64_t dim : tensor.shape) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) {
      return BadTensor(file, name, "shape times type is more than 2^63 bytes");
    }
  }
  if (bytes != end - begin) {
    return BadTensor(
        file, name,
        absl::StrCat("shape and dtype need ", bytes, " bytes, data_offsets give ", end - begin));
  }
  tensor.offset = begin;
  tensor.size_bytes = bytes;
  return tensor;
}

absl::Status ReadMetadata(std::string_view file, simdjson::dom::element value,
                          SafetensorsHeader& header) {
  simdjson::dom::object object;
  if (value.get(object) != simdjson::SUCCESS) return Bad(file, "__metadata__ is no JSON object");
  for (const auto field : object) {
    std::string_view text;
    if (field.value.get(text) != simdjson::SUCCESS) {
      return Bad(file, absl::StrCat("__metadata__.", Quote(field.key), " is no string"));
    }
    if (!header.metadata.emplace(field.key, text).second) {
      return Bad(file, absl::StrCat("__metadata__.", Quote(field.key), " is given twice"));
    }
  }
  return absl::OkStatus();
}

// No holes, no overlap, and the end is the end of the file.
absl::Status CheckLayout(std::string_view file, const SafetensorsHeader& header,
                         int64_t data_bytes) {
  std::vector<const TensorInfo*> order;
  for (const auto& [name, tensor] : header.tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::pair(a->offset, a->size_bytes) < std::pair(b->offset, b->size_bytes);
  });
  int64_t at = 0;
  for (const TensorInfo* tensor : order) {
    if (tensor->offset != at) {
      return BadTensor(
          file, tensor->name,
          absl::StrCat("begins at byte ", tensor->offset, " of the data, ",
                       tensor->offset < at ? "overlapping what ends at " : "leaving a hole after ",
                       at));
    }
    if (tensor->size_bytes > data_bytes - at) {
      return BadTensor(file, tensor->name,
                       absl::StrCat("ends at byte ", at + tensor->size_bytes,
                                    " of the data, but the file has only ", data_bytes,
                                    "; it is truncated or its header lies"));
    }
    at += tensor->size_bytes;
  }
  if (at != data_bytes) {
    return Bad(file, absl::StrCat("has ", data_bytes, " bytes of data, its tensors take ", at));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view TensorTypeName(TensorType type) { return kTypes[static_cast<int>(type)].name; }
int64_t TensorTypeBytes(TensorType type) { return kTypes[static_cast<int>(type)].bytes; }

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view file,
                                                         std::string_view header,
                                                         int64_t data_bytes) {
  if (header.empty() || header.front() != '{') {
    return Bad(file, "the header does not begin with '{'; this is no safetensors file");
  }
  simdjson::dom::parser parser;
  simdjson::dom::object root;
  RETURN_IF_ERROR(ParseObject(parser, header, kMaxDepth, root, [&](std::string_view what) {
    return Bad(file, absl::StrCat("the header is not valid JSON: ", View(what)));
  }));
  SafetensorsHeader result;
  bool has_metadata = false;
  for (const auto field : root) {
    if (field.key == "__metadata__") {
      if (has_metadata) return Bad(file, "__metadata__ is given twice");
      has_metadata = true;
      RETURN_IF_ERROR(ReadMetadata(file, field.value, result));
      continue;
    }
    if (field.key.size() > kMaxNameBytes) {
      return BadTensor(
          file, field.key,
          absl::StrCat("the name has ", field.key.size(), " bytes, at most ", kMaxNameBytes));
    }
    ASSIGN_OR_RETURN(TensorInfo tensor, ReadTensor(file, field.key, field.value));
    if (!result.tensors.emplace(tensor.name, std::move(tensor)).second) {
      return BadTensor(file, field.key, "is in the header twice");
    }
    if (result.tensors.size() > kMaxTensors) {
      return Bad(file, absl::StrCat("has more than ", kMaxTensors, " tensors"));
    }
  }
  RETURN_IF_ERROR(CheckLayout(file, result, data_bytes));
  return result;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile());
  file->path_ = path;
  file->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file->fd_ < 0) {
    if (errno == ENOENT) return Bad(path, "is missing");
    return ErrnoStatus(errno, absl::StrCat("open ", path));
  }
  struct stat info = {};
  if (::fstat(file->fd_, &info) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
  if (!S_ISREG(info.st_mode)) return Bad(path, "is no regular file");
  const int64_t file_bytes = info.st_size;
  if (file_bytes < 8) {
    return Bad(path, absl::StrCat("has ", file_bytes, " bytes; a safetensors file has 8 at least"));
  }
  uint8_t length_bytes[8];
  RETURN_IF_ERROR(ReadAt(path, file->fd_, 0, 8, length_bytes));
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | length_bytes[i];
  if (length > uint64_t{kMaxHeaderBytes}) {
    return Bad(path, absl::StrCat("says its header has ", length, " bytes, the bound is ",
                                  kMaxHeaderBytes));
  }
  const auto header_bytes = static_cast<int64_t>(length);
  if (header_bytes > file_bytes - 8) {
    return Bad(path, absl::StrCat("says its header has ", header_bytes, " bytes, the file has ",
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

absl::Status SafetensorsFile::Read(const TensorInfo& tensor, int64_t begin, int64_t size,
                                   void* out) const {
  CHECK(begin >= 0 && size >= 0 && begin <= tensor.size_bytes - size);
  return ReadAt(path_, fd_, tensor.offset + begin, size, out);
}

absl::Status SafetensorsFile::ReadF32(const TensorInfo& tensor, int64_t first, int64_t count,
                                      float* out) const {
  if (tensor.type == TensorType::kF32) return Read(tensor, first * 4, count * 4, out);
  if (tensor.type != TensorType::kF16 && tensor.type != TensorType::kBF16) {
    return BadTensor(path_, tensor.name,
                     absl::StrCat("has type ", View(TensorTypeName(tensor.type)),
                                  "; F32, F16 or BF16 is needed"));
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
      return Bad(index, absl::StrCat("names more than ", kMaxShards, " files"));
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
        return Bad(JoinPath(directory, name),
                   "is missing, but model.safetensors.index.json names it");
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

absl::Status Checkpoint::Read(const TensorInfo& tensor, int64_t begin, int64_t size,
                              void* out) const {
  return files_[file_of_.find(tensor.name)->second]->Read(tensor, begin, size, out);
}

absl::Status Checkpoint::ReadF32(const TensorInfo& tensor, int64_t first, int64_t count,
                                 float* out) const {
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
  return absl::StrCat(it == file_of_.end() ? "model" : BaseName(files_[it->second]->path()),
                      ": tensor ", Quote(name));
}

int64_t TensorToWrite::Bytes() const {
  int64_t bytes = TensorTypeBytes(type);
  for (const int64_t dim : shape) bytes *= dim;
  return bytes;
}

absl::Status StreamSafetensors(const std::vector<TensorToWrite>& tensors,
                               const std::map<std::string, std::string>& metadata, const ByteSink& write) {
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(),
            [](const TensorToWrite* a, const TensorToWrite* b) { return a->name < b->name; });
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (header.back() != '{') header += ',';
      absl::StrAppend(&header, JsonString(key), ":", JsonString(value));
    }
    header += '}';
  }
  int64_t offset = 0;
  for (const TensorToWrite* tensor : order) {
    if (header.back() != '{') header += ',';
    absl::StrAppend(&header, JsonString(tensor->name), ":{\"dtype\":\"",
                    View(TensorTypeName(tensor->type)), "\",\"shape\":[");
    for (size_t i = 0; i < tensor->shape.size(); ++i) {
      absl::StrAppend(&header, i > 0 ? "," : "", tensor->shape[i]);
    }
    const int64_t size = tensor->Bytes();
    absl::StrAppend(&header, "],\"data_offsets\":[", offset, ",", offset + size, "]}");
    offset += size;
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string start;
  for (int i = 0; i < 8; ++i) start += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  start += header;
  RETURN_IF_ERROR(write(start.data(), static_cast<int64_t>(start.size())));
  for (const TensorToWrite* tensor : order) {
    RETURN_IF_ERROR(tensor->pieces ? tensor->pieces(write) : write(tensor->data, tensor->Bytes()));
  }
  return absl::OkStatus();
}

std::string SerializeSafetensors(const std::vector<TensorToWrite>& tensors,
                                 const std::map<std::string, std::string>& metadata) {
  std::string out;
  CHECK_OK(StreamSafetensors(tensors, metadata, [&](const void* data, int64_t size) {
    out.append(static_cast<const char*>(data), static_cast<size_t>(size));
    return absl::OkStatus();
  }));
  return out;
}

}  // namespace nibble::engine
