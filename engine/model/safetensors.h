// Reading safetensors files, alone or as the shards of a checkpoint. safetensors_write.h makes them.
//
// The rules of the reference implementation, enforced before a byte of data is looked at: the
// header is a JSON object without duplicate keys; tensors sorted by offset start at 0, touch each
// other without holes or overlap, and end at the end of the file; every size is shape times type,
// computed without overflow. Tighter bounds are ours: header <= 16 MiB, 100,000 tensors, rank <= 8,
// names <= 512 bytes. Data is read with pread, never mapped, so a file cut short under us is an
// error and not a signal.
//
// A SafetensorsFile and a Checkpoint are immutable after Open; reads are thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble::engine {

enum class TensorType : uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool };
std::string_view TensorTypeName(TensorType type);  // "F32", ...
int64_t TensorTypeBytes(TensorType type);

struct TensorInfo {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // of the first byte in its file
  int64_t size_bytes = 0;

  int64_t Elements() const { return size_bytes / TensorTypeBytes(type); }
};

class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::map<std::string, TensorInfo, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string, std::less<>>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }
  // Null when there is no such tensor.
  const TensorInfo* Find(std::string_view name) const;
  // Bytes [begin, begin + size) of the tensor; out has room for them.
  absl::Status Read(const TensorInfo& tensor, int64_t begin, int64_t size, void* out) const;
  // Elements first .. first + count - 1 as fp32 (F32, F16, BF16 only).
  absl::Status ReadF32(const TensorInfo& tensor, int64_t first, int64_t count, float* out) const;
  absl::Status ReadF32(const TensorInfo& tensor, float* out) const {
    return ReadF32(tensor, 0, tensor.Elements(), out);
  }

 private:
  SafetensorsFile() = default;
  std::string path_;
  int fd_ = -1;
  std::map<std::string, TensorInfo, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

// Checks the bytes of a header (without the eight length bytes) for a file of `data_bytes` data
// bytes; `file` only names it in errors. Offsets come back relative to the data.
struct SafetensorsHeader {
  std::map<std::string, TensorInfo, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
};
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view file,
                                                         std::string_view header,
                                                         int64_t data_bytes);

// All tensors of model.safetensors, or of the shards model.safetensors.index.json names.
class Checkpoint {
 public:
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  const TensorInfo* Find(std::string_view name) const;
  absl::Status Read(const TensorInfo& tensor, int64_t begin, int64_t size, void* out) const;
  absl::Status ReadF32(const TensorInfo& tensor, int64_t first, int64_t count, float* out) const;
  absl::Status ReadF32(const TensorInfo& tensor, float* out) const {
    return ReadF32(tensor, 0, tensor.Elements(), out);
  }
  // Names of all tensors, sorted.
  std::vector<std::string> Names() const;
  // The files, in order of name; for the digest.
  std::vector<std::string> Paths() const;
  // "file.safetensors: tensor 'x'": how errors name a tensor.
  std::string Where(std::string_view name) const;

 private:
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, size_t, std::less<>> file_of_;
};

}  // namespace nibble::engine
