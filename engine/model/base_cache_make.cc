#include "engine/model/base_cache_make.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/status.h"
#include "engine/model/device_encoder.h"
#include "engine/model/floats.h"
#include "kernels/nf4.h"
#include "kernels/parallel.h"

namespace nibble::engine {
namespace {

using spec::BaseEntry;
using spec::BasePart;

// A multiple of every block. As floats 2 MiB: this is before any job is there, and no plan has room for more.
constexpr int64_t kChunkElements = 1 << 19;

// Elements of a linear that are encoded at a time: rows of whole tiles where they can lie in some.
int64_t ChunkElements(const BaseEntry& entry) {
  if (entry.tiles.rows == 0) return kChunkElements;
  const int64_t group = kernels::kTileHeight * entry.tiles.row_blocks * spec::kQuantBlock;
  return std::max<int64_t>(1, kChunkElements / group) * group;
}

// Writes whole groups of rows of an array, given in flat order, into tiles; they begin at `offset` of it.
absl::Status WriteInTiles(LockedFile& file, const BaseEntry& entry, int64_t offset, const void* flat,
                          int64_t bytes, std::vector<uint8_t>& scratch) {
  const spec::TileShape& tiles = entry.tiles;
  scratch.resize(static_cast<size_t>(bytes));
  kernels::ToTiles(flat, bytes / (tiles.row_blocks * tiles.unit_bytes), tiles.row_blocks, tiles.unit_bytes,
                   scratch.data());
  return file.Write(entry.offset + offset, scratch.data(), bytes);
}

// Writes the entries of a layout one after the other.
class Maker {
 public:
  Maker(const BaseCacheRequest& request, const BaseTensors& tensors, const spec::BaseLayout& layout,
        LockedFile& file)
      : request_(request),
        tensors_(tensors),
        layout_(layout),
        file_(file),
        pool_(request.threads, kernels::AskedPlacement()),
        encoder_(MakeEncoder()) {}

  absl::Status Make() {
    RETURN_IF_ERROR(file_.Resize(layout_.file_bytes));
    const std::string header = BaseCacheHeader(request_.digest, layout_, request_.tiles);
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
    int64_t most = 0, chunk = 0;
    for (const BaseEntry& entry : layout_.entries) {
      if (entry.part != BasePart::kCodes) continue;
      most = std::max(most, TensorOf(entry).elements);
      chunk = std::max(chunk, std::min(TensorOf(entry).elements, ChunkElements(entry)));
    }
    if (most == 0) return nullptr;
    return DeviceEncoder::Make(request_.backend, KernelType(request_.quant), spec::kQuantBlock, chunk,
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
      if (request_.stop && request_.stop()) return absl::CancelledError("making the base was stopped");
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
    const int64_t chunk = ChunkElements(entry);
    for (int64_t first = 0; first < count; first += chunk) {
      if (request_.stop && request_.stop()) return absl::CancelledError("making the base was stopped");
      const int64_t size = std::min(chunk, count - first);
      RETURN_IF_ERROR(ReadChunk(reader, first, size));
      const int64_t bytes = kernels::WeightBytes(type, size);
      codes.resize(static_cast<size_t>(bytes));
      float* const scales = absmax.data() + first / spec::kQuantBlock;
      if (encoder_ != nullptr) {
        RETURN_IF_ERROR(encoder_->Quantize(values_.data(), size, codes.data(), scales));
      } else {
        kernels::QuantizeTensor(values_.data(), size, type, spec::kQuantBlock, codes.data(), scales, &pool_);
      }
      RETURN_IF_ERROR(WriteOrdered(entry, kernels::WeightBytes(type, first), codes.data(), bytes));
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
    RETURN_IF_ERROR(WriteOrdered(entry, 0, weight.data, kernels::WeightBytes(weight.type, count)));
    if (!request_.nested)
      return WriteOrdered(Sibling(entry, BasePart::kAbsmax), 0, weight.absmax, blocks * 4);
    offsets_[spec::OffsetIndex(entry)] = weight.offset;
    RETURN_IF_ERROR(WriteOrdered(Sibling(entry, BasePart::kAbsmaxCodes), 0, weight.absmax_codes, blocks));
    return file_.Write(Sibling(entry, BasePart::kNestedAbsmax).offset, weight.nested_absmax,
                       kernels::NestedCount(blocks) * 4);
  }

  // Another array of the same linear.
  const BaseEntry& Sibling(const BaseEntry& entry, BasePart part) const {
    const BaseEntry* found = layout_.Find(part, entry.layer, entry.module);
    CHECK(found != nullptr);
    return *found;
  }

  // Bytes of an array from `offset` on, given in flat order.
  absl::Status WriteOrdered(const BaseEntry& entry, int64_t offset, const void* flat, int64_t bytes) {
    if (!request_.tiles || entry.tiles.rows == 0) return file_.Write(entry.offset + offset, flat, bytes);
    return WriteInTiles(file_, entry, offset, flat, bytes, scratch_);
  }

  absl::Status WriteScales(const BaseEntry& entry, const std::vector<float>& absmax) {
    const auto blocks = static_cast<int64_t>(absmax.size());
    if (!request_.nested) {
      return WriteOrdered(Sibling(entry, BasePart::kAbsmax), 0, absmax.data(), blocks * 4);
    }
    std::vector<uint8_t> codes(absmax.size());
    std::vector<float> nested(static_cast<size_t>(kernels::NestedCount(blocks)));
    float& offset = offsets_[spec::OffsetIndex(entry)];
    if (encoder_ != nullptr) {
      RETURN_IF_ERROR(
          encoder_->QuantizeAbsmax(absmax.data(), blocks, codes.data(), nested.data(), &offset));
    } else {
      kernels::QuantizeAbsmax(absmax.data(), blocks, codes.data(), nested.data(), &offset);
    }
    RETURN_IF_ERROR(WriteOrdered(Sibling(entry, BasePart::kAbsmaxCodes), 0, codes.data(), blocks));
    return file_.Write(Sibling(entry, BasePart::kNestedAbsmax).offset, nested.data(),
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
  std::vector<uint8_t> scratch_;
  std::vector<float> offsets_;
  int64_t done_ = 0;
};

}  // namespace

absl::Status TranscodeBaseCache(const MappedFile& flat, const std::string& digest,
                                const spec::BaseLayout& layout, LockedFile& file) {
  const std::string header = BaseCacheHeader(digest, layout, true);
  RETURN_IF_ERROR(file.Resize(layout.file_bytes));
  RETURN_IF_ERROR(file.Write(0, header.data(), static_cast<int64_t>(header.size())));
  std::vector<uint8_t> scratch;
  for (const BaseEntry& entry : layout.entries) {
    const uint8_t* const from = flat.data() + entry.offset;
    if (entry.tiles.rows == 0) {
      RETURN_IF_ERROR(file.Write(entry.offset, from, entry.size_bytes));
      continue;
    }
    const int64_t chunk = ChunkElements(entry) / spec::kQuantBlock * entry.tiles.unit_bytes;
    for (int64_t at = 0; at < entry.size_bytes; at += chunk) {
      const int64_t bytes = std::min(chunk, entry.size_bytes - at);
      RETURN_IF_ERROR(WriteInTiles(file, entry, at, from + at, bytes, scratch));
    }
  }
  return absl::OkStatus();
}

absl::Status MakeBaseCache(const BaseCacheRequest& request, const BaseTensors& tensors,
                           const spec::BaseLayout& layout, LockedFile& file) {
  return Maker(request, tensors, layout, file).Make();
}

}  // namespace nibble::engine
