#include "engine/model/base_model.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"
#include "engine/model/base_cache.h"
#include "engine/model/base_sum.h"
#include "engine/model/base_tensors.h"
#include "engine/model/safetensors.h"
#include "engine/spec/base_layout.h"
#include "kernels/nf4.h"

namespace nibble::engine {
namespace {

using kernels::DType;
using kernels::ParamView;
using kernels::QuantType;
using kernels::WeightView;
using spec::BaseEntry;
using spec::BasePart;
using spec::Module;

constexpr int64_t kMaxConfigBytes = 1 << 20;

// A shared lock on a file, and a mark that it was used now. Where there are no locks there is none.
class SharedLock {
 public:
  ~SharedLock() {
    if (fd_ >= 0) close(fd_);
  }
  void Take(const std::string& path) {
    if (fd_ >= 0) close(fd_);
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) return;
    flock(fd_, LOCK_SH);
    futimens(fd_, nullptr);
  }

 private:
  int fd_ = -1;
};

}  // namespace

struct BaseModel::Impl {
  spec::ModelConfig config;
  std::string digest;
  std::string weights_digest;
  bool cached = false;
  spec::BaseLayout layout;
  bool tiles = false;
  SharedLock lock;
  MappedFile file;
  int64_t unmapped_bytes = 0;
  std::vector<std::vector<char>> arrays;  // exact: owned instead of mapped
  BaseView view;

  ParamView* Param(const BaseEntry& entry) {
    const auto layer = [&]() -> BaseView::Layer& { return view.layers[static_cast<size_t>(entry.layer)]; };
    switch (entry.part) {
      case BasePart::kEmbedding:
        return &view.embedding;
      case BasePart::kHead:
        return &view.head;
      case BasePart::kFinalNorm:
        return &view.final_norm;
      case BasePart::kInputNorm:
        return &layer().input_norm;
      case BasePart::kPostNorm:
        return &layer().post_norm;
      case BasePart::kAttentionNorm:
        return &layer().attention_norm;
      case BasePart::kMlpNorm:
        return &layer().mlp_norm;
      case BasePart::kQueryNorm:
        return &layer().q_norm;
      case BasePart::kKeyNorm:
        return &layer().k_norm;
      case BasePart::kBias:
        return &layer().bias[static_cast<int>(entry.module)];
      default:
        return nullptr;
    }
  }

  // Every linear's numbers that do not come from an array.
  void Prepare(QuantType type) {
    view.layers.resize(static_cast<size_t>(config.layers));
    for (BaseView::Layer& layer : view.layers) {
      for (const Module module : spec::ModulesOf(config)) {
        const spec::LinearShape shape = spec::ShapeOf(config, module);
        WeightView& weight = layer.linear[static_cast<int>(module)];
        weight.type = type;
        weight.n = shape.n;
        weight.k = shape.k;
        weight.block = spec::kQuantBlock;
      }
    }
  }

  // Points the views at the entries, whose bytes `at` gives.
  template <typename At>
  void Point(const spec::BaseLayout& layout, DType type, const At& at) {
    const float* offsets = nullptr;
    const float* code_book = nullptr;
    const float* nested_map = nullptr;
    for (const BaseEntry& entry : layout.entries) {
      const void* data = at(entry);
      if (ParamView* param = Param(entry)) {
        *param = {data, type};
        continue;
      }
      if (entry.part == BasePart::kCodeBook) code_book = static_cast<const float*>(data);
      if (entry.part == BasePart::kNestedMap) nested_map = static_cast<const float*>(data);
      if (entry.part == BasePart::kOffsets) offsets = static_cast<const float*>(data);
      if (entry.layer < 0) continue;
      WeightView& weight =
          view.layers[static_cast<size_t>(entry.layer)].linear[static_cast<int>(entry.module)];
      if (entry.part == BasePart::kCodes) {
        weight.data = data;
        if (tiles && entry.tiles.rows > 0) weight.order = kernels::WeightOrder::kTiles;
      }
      if (entry.part == BasePart::kAbsmax) weight.absmax = static_cast<const float*>(data);
      if (entry.part == BasePart::kAbsmaxCodes)
        weight.absmax_codes = static_cast<const uint8_t*>(data);
      if (entry.part == BasePart::kNestedAbsmax)
        weight.nested_absmax = static_cast<const float*>(data);
      weight.code_book = code_book;
      weight.nested_map = nested_map;
      if (offsets != nullptr) {
        weight.offset = offsets[spec::OffsetIndex(entry)];
      }
    }
    if (view.head.data == nullptr) view.head = view.embedding;
  }

  absl::Status Map(const std::string& path, const std::function<bool()>& stop) {
    // Held as long as it is mapped, so that a worker that needs room leaves it; its time is when it
    // was last used.
    lock.Take(path);
    ASSIGN_OR_RETURN(file, MappedFile::Open(path));
    ASSIGN_OR_RETURN(tiles, IsInTiles(file, path, digest, layout));
    // All of it is in memory from the start, as planned, and no step waits for the disk. A system that
    // does not know the request reads pages when they are touched.
    constexpr size_t kPieceBytes = size_t{64} << 20;
    for (size_t at = 0; at < file.size(); at += kPieceBytes) {
      if (stop && stop()) return absl::CancelledError("mapping the base was stopped");
      madvise(const_cast<uint8_t*>(file.data()) + at, std::min(kPieceBytes, file.size() - at),
              MADV_POPULATE_READ);
    }
    ASSIGN_OR_RETURN(
        const bool sound,
        IsAsItWasMade(path, {reinterpret_cast<const std::byte*>(file.data()), file.size()}, stop));
    if (!sound)
      return Error(Reason::kModelFileInvalid,
                   path + " does not have the bytes any more that it was made with");
    Point(layout, DType::kBF16,
          [&](const BaseEntry& entry) -> const void* { return file.data() + entry.offset; });
    return absl::OkStatus();
  }

  absl::Status LoadExact(const BaseTensors& tensors, const spec::BaseLayout& layout, QuantType type,
                         bool nested);
};

// Everything in memory, fp32 where it is not quantized; for small models.
absl::Status BaseModel::Impl::LoadExact(const BaseTensors& tensors, const spec::BaseLayout& layout,
                                        QuantType type, bool nested) {
  const auto add = [&](int64_t bytes) {
    arrays.emplace_back(static_cast<size_t>(bytes));
    return arrays.back().data();
  };
  std::vector<const void*> data(layout.entries.size());
  std::vector<float> absmax;
  float* offsets = nullptr;
  for (size_t i = 0; i < layout.entries.size(); ++i) {
    const BaseEntry& entry = layout.entries[i];
    const BaseTensor* tensor = tensors.Find(entry.part, entry.layer, entry.module);
    if (tensor == nullptr) {
      // Code books, maps, offsets and scales: sizes are the layout's; scales follow their codes.
      char* to = add(entry.size_bytes);
      data[i] = to;
      const auto blocks = static_cast<int64_t>(absmax.size());
      if (entry.part == BasePart::kCodeBook)
        std::memcpy(to, kernels::CodeBook(type), entry.size_bytes);
      if (entry.part == BasePart::kNestedMap)
        std::memcpy(to, kernels::SignedDynamicMap(), entry.size_bytes);
      if (entry.part == BasePart::kOffsets) offsets = reinterpret_cast<float*>(to);
      if (entry.part == BasePart::kAbsmax) std::memcpy(to, absmax.data(), entry.size_bytes);
      if (entry.part == BasePart::kAbsmaxCodes) {
        std::vector<float> scales(static_cast<size_t>(kernels::NestedCount(blocks)));
        kernels::QuantizeAbsmax(
            absmax.data(), blocks, reinterpret_cast<uint8_t*>(to), scales.data(),
            offsets + spec::OffsetIndex(entry));
        absmax = std::move(scales);
      }
      if (entry.part == BasePart::kNestedAbsmax) std::memcpy(to, absmax.data(), entry.size_bytes);
      continue;
    }
    const int64_t count = tensor->elements;
    auto* values = reinterpret_cast<float*>(add(count * 4));
    data[i] = values;
    ASSIGN_OR_RETURN(const TensorReader reader, tensors.Open(*tensor));
    RETURN_IF_ERROR(reader.Read(0, count, values));
    if (entry.part != BasePart::kCodes || !kernels::IsQuantized(type)) continue;
    auto* codes = reinterpret_cast<uint8_t*>(add(kernels::WeightBytes(type, count)));
    absmax.assign(static_cast<size_t>(kernels::AbsmaxCount(count, spec::kQuantBlock)), 0);
    kernels::QuantizeTensor(values, count, type, spec::kQuantBlock, codes, absmax.data(), nullptr);
    data[i] = codes;
    arrays.erase(arrays.end() - 2);
  }
  CHECK(!nested || offsets != nullptr);
  Point(layout, DType::kF32,
        [&](const BaseEntry& entry) { return data[&entry - layout.entries.data()]; });
  return absl::OkStatus();
}

BaseModel::BaseModel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
BaseModel::~BaseModel() = default;

absl::StatusOr<std::unique_ptr<BaseModel>> BaseModel::Open(const BaseModelOptions& options) {
  auto impl = std::make_unique<Impl>();
  const std::string config_path = JoinPath(options.model_dir, "config.json");
  if (!FileExists(config_path)) {
    return Error(Reason::kModelFileInvalid, absl::StrCat(config_path, " is missing"));
  }
  ASSIGN_OR_RETURN(const std::string config_json, ReadFile(config_path, kMaxConfigBytes));
  ASSIGN_OR_RETURN(impl->config, spec::ParseModelConfig(config_json));
  if (options.takes) RETURN_IF_ERROR(options.takes(impl->config));
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model_dir));
  ASSIGN_OR_RETURN(const BaseTensors tensors, BaseTensors::Make(checkpoint.get(), impl->config));
  impl->layout = spec::LayoutBase(impl->config, options.quant, options.double_quant);
  const spec::BaseLayout& layout = impl->layout;
  const bool nested = layout.Find(BasePart::kNestedMap) != nullptr;
  RETURN_IF_ERROR(MakeDirs(options.cache_dir));
  ASSIGN_OR_RETURN(impl->digest, BaseDigest(options.model_dir, options.cache_dir, *checkpoint,
                                            options.quant, nested, options.stop));
  ASSIGN_OR_RETURN(impl->weights_digest, WeightsDigest(options.cache_dir, *checkpoint));
  if (options.exact) {
    const bool plain = options.quant == spec::QuantKind::kBF16;
    const QuantType type = plain ? QuantType::kF32 : KernelType(options.quant);
    impl->Prepare(type);
    RETURN_IF_ERROR(impl->LoadExact(tensors, layout, type, nested));
    return std::unique_ptr<BaseModel>(new BaseModel(std::move(impl)));
  }
  BaseCacheRequest request;
  request.cache_dir = options.cache_dir;
  request.digest = impl->digest;
  request.quant = options.quant;
  request.nested = nested;
  request.tiles = options.tiles;
  request.threads = std::max(options.threads, 1);
  request.backend = options.backend;
  request.progress = options.progress;
  request.stop = options.stop;
  impl->Prepare(KernelType(options.quant));
  // What the disk has changed, or a cleaner took between two calls, is made anew.
  for (int tries = 0;; ++tries) {
    absl::StatusOr<BaseCacheFile> file = EnsureBaseCache(request, tensors, layout);
    absl::Status mapped = file.status();
    if (file.ok()) {
      impl->cached = file->found;
      mapped = impl->Map(file->path, options.stop);
    }
    if (mapped.ok()) break;
    const std::string path = BaseCachePath(request);
    const bool damaged = StatusReason(mapped) == Reason::kModelFileInvalid && FileExists(path);
    if (tries > 0 || !(damaged || absl::IsNotFound(mapped))) return mapped;
    LogError("base.damaged", {{"path", path}, {"why", std::string(mapped.message())}});
    if (damaged) RETURN_IF_ERROR(RemoveFile(path));
  }
  return std::unique_ptr<BaseModel>(new BaseModel(std::move(impl)));
}

const spec::ModelConfig& BaseModel::config() const { return impl_->config; }
const BaseView& BaseModel::view() const { return impl_->view; }
const std::string& BaseModel::digest() const { return impl_->digest; }
const std::string& BaseModel::weights_digest() const { return impl_->weights_digest; }
std::span<const std::byte> BaseModel::file() const {
  return {reinterpret_cast<const std::byte*>(impl_->file.data()), impl_->file.size()};
}
bool BaseModel::tiles() const { return impl_->tiles; }
void BaseModel::CopyFlat(int64_t first, int64_t count, std::byte* out) const {
  ReadFlat(file(), impl_->layout, impl_->tiles, first, count, out);
}
void BaseModel::Unmap() {
  impl_->unmapped_bytes = static_cast<int64_t>(impl_->file.size());
  impl_->file = MappedFile();
}
int64_t BaseModel::bytes() const {
  int64_t bytes = static_cast<int64_t>(impl_->file.size()) + impl_->unmapped_bytes;
  for (const auto& array : impl_->arrays) bytes += static_cast<int64_t>(array.size());
  return bytes;
}
bool BaseModel::cached() const { return impl_->cached; }

}  // namespace nibble::engine
