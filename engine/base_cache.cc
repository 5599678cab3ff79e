#include "engine/base_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/device_encoder.h"
#include "engine/floats.h"
#include "engine/spec/words.h"
#include "engine/text.h"
#include "kernels/nf4.h"
#include "kernels/parallel.h"

namespace nibble::engine {
namespace {

using spec::BaseEntry;
using spec::BasePart;

// Changes whenever the bytes of a file for the same input would.
constexpr int kLayoutVersion = 2;
// How every array lies in the file, and the version of that order: bitsandbytes' flat one (row-major, pairs
// of codes in a byte), which all kernels read as it is (docs/performance.md).
constexpr std::string_view kTensorLayout = "flat 1";
constexpr int64_t kChunkElements = 4 << 20;  // a multiple of every block

// The digest of a file's bytes, remembered under its name, size, inode and times.
absl::StatusOr<std::string> FileDigest(const std::string& path, const std::string& cache_dir) {
  ASSIGN_OR_RETURN(const std::string real, RealPath(path));
  struct stat info = {};
  if (::stat(real.c_str(), &info) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", real));
  const std::string key = Sha256Hex(
      absl::StrCat(real, "\n", info.st_size, " ", info.st_ino, " ", info.st_mtim.tv_sec, ".",
                   info.st_mtim.tv_nsec, " ", info.st_ctim.tv_sec, ".", info.st_ctim.tv_nsec));
  const std::string memo = JoinPath(cache_dir, absl::StrCat("digest-", key));
  if (FileExists(memo)) {
    ASSIGN_OR_RETURN(const std::string known, ReadFile(memo, 64));
    if (IsSha256Hex(known)) return known;
  }
  ASSIGN_OR_RETURN(const std::string digest, Sha256HexOfFile(real));
  RETURN_IF_ERROR(WriteFileAtomic(memo, digest));
  return digest;
}

// An open file that holds the maker's lock; unlinked again unless Commit succeeds.
class LockedFile {
 public:
  ~LockedFile() {
    if (fd_ < 0) return;
    if (!committed_) ::unlink(path_.c_str());
    ::close(fd_);
  }
  // Waits for another maker of the same file.
  static absl::StatusOr<std::unique_ptr<LockedFile>> Open(const std::string& path) {
    auto file = std::make_unique<LockedFile>();
    file->path_ = path;
    for (;;) {
      const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
      if (fd < 0) return ErrnoStatus(errno, absl::StrCat("create ", path));
      while (::flock(fd, LOCK_EX) != 0) {
        if (errno == EINTR) continue;
        const int error = errno;
        ::close(fd);
        return ErrnoStatus(error, absl::StrCat("lock ", path));
      }
      // Renamed or unlinked while we waited: the lock is on a file of another name.
      struct stat ours = {}, named = {};
      if (::fstat(fd, &ours) == 0 && ::stat(path.c_str(), &named) == 0 &&
          ours.st_ino == named.st_ino) {
        file->fd_ = fd;
        return file;
      }
      ::close(fd);
    }
  }
  absl::Status Resize(int64_t bytes) {
    if (::ftruncate(fd_, 0) != 0 || ::ftruncate(fd_, bytes) != 0) return Failed("resize");
    // So that a full disk is found now, not in the middle.
    const int error = ::posix_fallocate(fd_, 0, bytes);
    if (error != 0 && error != EOPNOTSUPP && error != EINVAL) {
      return ErrnoStatus(error, absl::StrCat("allocate ", bytes, " bytes for ", path_));
    }
    return absl::OkStatus();
  }
  absl::Status Write(int64_t offset, const void* data, int64_t size) {
    const auto* from = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t n = ::pwrite(fd_, from, static_cast<size_t>(size), offset);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return Failed("write");
      from += n;
      offset += n;
      size -= n;
    }
    return absl::OkStatus();
  }
  absl::Status Commit(const std::string& to) {
    if (::fsync(fd_) != 0) return Failed("fsync");
    RETURN_IF_ERROR(Rename(path_, to));
    committed_ = true;
    return absl::OkStatus();
  }

 private:
  absl::Status Failed(std::string_view what) const {
    return ErrnoStatus(errno, absl::StrCat(View(what), " ", path_));
  }
  std::string path_;
  int fd_ = -1;
  bool committed_ = false;
};

// Writes the entries of a layout one after the other.
class Maker {
 public:
  Maker(const BaseCacheRequest& request, const BaseTensors& tensors, const spec::BaseLayout& layout,
        LockedFile& file)
      : request_(request),
        tensors_(tensors),
        layout_(layout),
        file_(file),
        pool_(request.threads),
        encoder_(MakeEncoder()) {}

  absl::Status Make() {
    RETURN_IF_ERROR(file_.Resize(layout_.file_bytes));
    const std::string header = BaseCacheHeader(request_.digest, layout_);
    RETURN_IF_ERROR(file_.Write(0, header.data(), static_cast<int64_t>(header.size())));
    for (const BaseEntry& entry : layout_.entries) {
      if (request_.progress) request_.progress(done_, static_cast<int64_t>(layout_.entries.size()));
      RETURN_IF_ERROR(MakeEntry(entry));
      ++done_;
    }
    if (const BaseEntry* entry = layout_.Find(BasePart::kOffsets)) {
      RETURN_IF_ERROR(file_.Write(entry->offset, offsets_.data(), entry->size_bytes));
    }
    if (request_.progress) request_.progress(done_, done_);
    return absl::OkStatus();
  }

 private:
  absl::Status MakeEntry(const BaseEntry& entry) {
    switch (entry.part) {
      case BasePart::kCodeBook:
        return file_.Write(entry.offset, kernels::CodeBook(KernelType(request_.quant)),
                           entry.size_bytes);
      case BasePart::kNestedMap:
        return file_.Write(entry.offset, kernels::SignedDynamicMap(), entry.size_bytes);
      case BasePart::kOffsets:
        offsets_.assign(static_cast<size_t>(entry.size_bytes / 4), 0);
        return absl::OkStatus();  // written when all are known
      case BasePart::kCodes:
        if (request_.quant != spec::QuantKind::kBF16) return Quantize(entry);
        return CopyAsBf16(entry);
      case BasePart::kAbsmax:
      case BasePart::kAbsmaxCodes:
      case BasePart::kNestedAbsmax:
        return absl::OkStatus();  // written with the codes
      default:
        return CopyAsBf16(entry);
    }
  }

  std::unique_ptr<DeviceEncoder> MakeEncoder() const {
    int64_t most = 0;
    for (const BaseEntry& entry : layout_.entries) {
      if (entry.part == BasePart::kCodes) most = std::max(most, TensorOf(entry).elements);
    }
    if (most == 0) return nullptr;
    return DeviceEncoder::Make(request_.backend, KernelType(request_.quant), spec::kQuantBlock,
                               std::min(most, kChunkElements),
                               kernels::AbsmaxCount(most, spec::kQuantBlock));
  }

  const BaseTensor& TensorOf(const BaseEntry& entry) const {
    const BaseTensor* tensor = tensors_.Find(entry.part, entry.layer, entry.module);
    CHECK(tensor != nullptr);
    return *tensor;
  }

  absl::Status CopyAsBf16(const BaseEntry& entry) {
    const BaseTensor& tensor = TensorOf(entry);
    ASSIGN_OR_RETURN(const TensorReader reader, tensors_.Open(tensor));
    const int64_t count = tensor.elements;
    std::vector<uint16_t> narrow;
    for (int64_t first = 0; first < count; first += kChunkElements) {
      const int64_t size = std::min(kChunkElements, count - first);
      RETURN_IF_ERROR(ReadChunk(reader, first, size));
      narrow.resize(static_cast<size_t>(size));
      for (int64_t i = 0; i < size; ++i) narrow[i] = Bf16FromFloat(values_[i]);
      RETURN_IF_ERROR(file_.Write(entry.offset + first * 2, narrow.data(), size * 2));
    }
    return absl::OkStatus();
  }

  absl::Status Quantize(const BaseEntry& entry) {
    const BaseTensor& tensor = TensorOf(entry);
    ASSIGN_OR_RETURN(const TensorReader reader, tensors_.Open(tensor));
    const kernels::QuantType type = KernelType(request_.quant);
    const int64_t count = tensor.elements;
    if (reader.quantized() != nullptr && HasOurForm(*reader.quantized(), type)) {
      return CopyQuantized(entry, *reader.quantized());
    }
    std::vector<float> absmax(static_cast<size_t>(kernels::AbsmaxCount(count, spec::kQuantBlock)));
    std::vector<uint8_t> codes;
    for (int64_t first = 0; first < count; first += kChunkElements) {
      const int64_t size = std::min(kChunkElements, count - first);
      RETURN_IF_ERROR(ReadChunk(reader, first, size));
      const int64_t bytes = kernels::WeightBytes(type, size);
      codes.resize(static_cast<size_t>(bytes));
      float* const scales = absmax.data() + first / spec::kQuantBlock;
      if (encoder_ != nullptr) {
        RETURN_IF_ERROR(encoder_->Quantize(values_.data(), size, codes.data(), scales));
      } else {
        kernels::QuantizeTensor(values_.data(), size, type, spec::kQuantBlock, codes.data(), scales, &pool_);
      }
      RETURN_IF_ERROR(
          file_.Write(entry.offset + kernels::WeightBytes(type, first), codes.data(), bytes));
    }
    return WriteScales(entry, absmax);
  }

  // The file's own codes and scales can be taken as they are: same kind, blocks and tables.
  bool HasOurForm(const kernels::WeightView& weight, kernels::QuantType type) const {
    const bool nested = weight.absmax == nullptr;
    return weight.type == type && weight.block == spec::kQuantBlock && nested == request_.nested &&
           std::memcmp(weight.code_book, kernels::CodeBook(type), 16 * 4) == 0 &&
           (!nested || std::memcmp(weight.nested_map, kernels::SignedDynamicMap(), 256 * 4) == 0);
  }

  absl::Status CopyQuantized(const BaseEntry& entry, const kernels::WeightView& weight) {
    const int64_t count = weight.n * weight.k;
    const int64_t blocks = kernels::AbsmaxCount(count, weight.block);
    RETURN_IF_ERROR(
        file_.Write(entry.offset, weight.data, kernels::WeightBytes(weight.type, count)));
    const auto offset_of = [&](BasePart part) {
      return layout_.Find(part, entry.layer, entry.module)->offset;
    };
    if (!request_.nested)
      return file_.Write(offset_of(BasePart::kAbsmax), weight.absmax, blocks * 4);
    offsets_[entry.layer * spec::kModuleCount + static_cast<int>(entry.module)] = weight.offset;
    RETURN_IF_ERROR(file_.Write(offset_of(BasePart::kAbsmaxCodes), weight.absmax_codes, blocks));
    return file_.Write(offset_of(BasePart::kNestedAbsmax), weight.nested_absmax,
                       kernels::NestedCount(blocks) * 4);
  }

  absl::Status WriteScales(const BaseEntry& entry, const std::vector<float>& absmax) {
    const auto blocks = static_cast<int64_t>(absmax.size());
    const auto find = [&](BasePart part) {
      const BaseEntry* found = layout_.Find(part, entry.layer, entry.module);
      CHECK(found != nullptr);
      return found;
    };
    if (!request_.nested) {
      return file_.Write(find(BasePart::kAbsmax)->offset, absmax.data(), blocks * 4);
    }
    std::vector<uint8_t> codes(absmax.size());
    std::vector<float> nested(static_cast<size_t>(kernels::NestedCount(blocks)));
    float& offset = offsets_[entry.layer * spec::kModuleCount + static_cast<int>(entry.module)];
    if (encoder_ != nullptr) {
      RETURN_IF_ERROR(
          encoder_->QuantizeAbsmax(absmax.data(), blocks, codes.data(), nested.data(), &offset));
    } else {
      kernels::QuantizeAbsmax(absmax.data(), blocks, codes.data(), nested.data(), &offset);
    }
    RETURN_IF_ERROR(file_.Write(find(BasePart::kAbsmaxCodes)->offset, codes.data(), blocks));
    return file_.Write(find(BasePart::kNestedAbsmax)->offset, nested.data(),
                       static_cast<int64_t>(nested.size()) * 4);
  }

  absl::Status ReadChunk(const TensorReader& reader, int64_t first, int64_t size) {
    values_.resize(static_cast<size_t>(size));
    return reader.Read(first, size, values_.data());
  }

  const BaseCacheRequest& request_;
  const BaseTensors& tensors_;
  const spec::BaseLayout& layout_;
  LockedFile& file_;
  kernels::ThreadPool pool_;
  const std::unique_ptr<DeviceEncoder> encoder_;  // null = the host encodes
  std::vector<float> values_;
  std::vector<float> offsets_;
  int64_t done_ = 0;
};

}  // namespace

kernels::QuantType KernelType(spec::QuantKind quant) {
  switch (quant) {
    case spec::QuantKind::kNF4:
      return kernels::QuantType::kNF4;
    case spec::QuantKind::kFP4:
      return kernels::QuantType::kFP4;
    case spec::QuantKind::kINT4:
      return kernels::QuantType::kINT4;
    case spec::QuantKind::kINT8:
      return kernels::QuantType::kINT8;
    case spec::QuantKind::kBF16:
      break;
  }
  return kernels::QuantType::kBF16;
}

absl::StatusOr<std::string> BaseDigest(const std::string& model_dir, const std::string& cache_dir,
                                       const Checkpoint& checkpoint, spec::QuantKind quant,
                                       bool double_quant) {
  std::string text =
      absl::StrCat("nibble base, layout ", kLayoutVersion, "\n", View(WordOf(spec::kQuantWords, quant)), " ",
                   double_quant ? "nested" : "flat", "\n");
  ASSIGN_OR_RETURN(const std::string config, Sha256HexOfFile(JoinPath(model_dir, "config.json")));
  absl::StrAppend(&text, config, "\n");
  for (const std::string& path : checkpoint.Paths()) {
    ASSIGN_OR_RETURN(const std::string digest, FileDigest(path, cache_dir));
    absl::StrAppend(&text, digest, "\n");
  }
  return Sha256Hex(text);
}

std::string BaseCacheHeader(const std::string& digest, const spec::BaseLayout& layout) {
  std::string header = absl::StrCat("nibble base\nlayout ", kLayoutVersion, "\ndigest ", digest,
                                    "\nbytes ", layout.file_bytes, "\n");
  // One line for the same array of all layers.
  std::vector<std::string> names;
  for (const BaseEntry& entry : layout.entries) {
    BaseEntry any = entry;
    any.layer = std::min(any.layer, 0);
    std::string name = spec::BaseEntryName(any);
    if (entry.layer >= 0) name = absl::StrCat("layers.*", name.substr(std::string_view("layers.0").size()));
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    absl::StrAppend(&header, "tensor ", name, " ", View(kTensorLayout), "\n");
    names.push_back(std::move(name));
  }
  CHECK(static_cast<int64_t>(header.size()) <= spec::kBaseHeaderBytes);
  header.resize(spec::kBaseHeaderBytes, '\0');
  return header;
}

absl::StatusOr<BaseCacheFile> EnsureBaseCache(const BaseCacheRequest& request,
                                              const BaseTensors& tensors,
                                              const spec::BaseLayout& layout) {
  BaseCacheFile result;
  result.path = JoinPath(request.cache_dir, absl::StrCat("base-", request.digest));
  result.found = FileExists(result.path);
  if (result.found) return result;
  ASSIGN_OR_RETURN(const auto file, LockedFile::Open(absl::StrCat(result.path, ".tmp")));
  result.found = FileExists(result.path);  // another process made it while we waited
  if (result.found) return result;
  RETURN_IF_ERROR(Maker(request, tensors, layout, *file).Make());
  RETURN_IF_ERROR(file->Commit(result.path));
  return result;
}

}  // namespace nibble::engine
