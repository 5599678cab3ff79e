#include "engine/model/base_cache.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/digest_memo.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/model/base_cache_make.h"
#include "engine/model/base_sum.h"
#include "engine/model/locked_file.h"
#include "engine/spec/words.h"
#include "engine/text/text.h"
#include "kernels/nf4.h"

namespace nibble::engine {
namespace {

using spec::BaseEntry;
using spec::BasePart;

// Changes whenever the values in a file for the same input, or the places of its arrays, would.
constexpr int kLayoutVersion = 2;
// How an array lies in the file, and the version of that order: WeightOrder of kernels/kernel_table.h.
constexpr std::string_view kFlatOrder = "flat 1", kTileOrder = "tile 1";

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
                                       bool double_quant, const std::function<bool()>& stop) {
  std::string text =
      absl::StrCat("nibble base, layout ", kLayoutVersion, "\n", View(WordOf(spec::kQuantWords, quant)), " ",
                   double_quant ? "nested" : "flat", "\n");
  ASSIGN_OR_RETURN(const std::string config, Sha256HexOfFile(JoinPath(model_dir, "config.json")));
  absl::StrAppend(&text, config, "\n");
  for (const std::string& path : checkpoint.Paths()) {
    ASSIGN_OR_RETURN(const std::string digest, RememberedSha256HexOfFile(path, cache_dir, stop));
    absl::StrAppend(&text, digest, "\n");
  }
  return Sha256Hex(text);
}

absl::StatusOr<std::string> WeightsDigest(const std::string& cache_dir, const Checkpoint& checkpoint) {
  std::string text = "nibble weights\n";
  for (const std::string& path : checkpoint.Paths()) {
    ASSIGN_OR_RETURN(const std::string digest, RememberedSha256HexOfFile(path, cache_dir));
    absl::StrAppend(&text, digest, "\n");
  }
  return Sha256Hex(text);
}

std::string BaseCacheHeader(const std::string& digest, const spec::BaseLayout& layout, bool tiles) {
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
    const bool tiled = tiles && entry.tiles.rows > 0;
    absl::StrAppend(&header, "tensor ", name, " ", View(tiled ? kTileOrder : kFlatOrder), "\n");
    names.push_back(std::move(name));
  }
  CHECK(static_cast<int64_t>(header.size()) <= spec::kBaseHeaderBytes);
  header.resize(spec::kBaseHeaderBytes, '\0');
  return header;
}

absl::StatusOr<bool> IsInTiles(const MappedFile& file, const std::string& path, const std::string& digest,
                               const spec::BaseLayout& layout) {
  if (static_cast<int64_t>(file.size()) == layout.file_bytes) {
    for (const bool tiles : {true, false}) {
      if (file.view().starts_with(BaseCacheHeader(digest, layout, tiles))) return tiles;
    }
  }
  return Error(Reason::kModelFileInvalid,
               absl::StrCat(path, " is no quantized base of this layout (", file.size(), " bytes, ",
                            layout.file_bytes, " expected); remove it and it is made anew"));
}

std::string BaseCachePath(const BaseCacheRequest& request) {
  return JoinPath(request.cache_dir, absl::StrCat("base-", request.digest));
}

absl::StatusOr<BaseCacheFile> EnsureBaseCache(const BaseCacheRequest& request,
                                              const BaseTensors& tensors,
                                              const spec::BaseLayout& layout) {
  const std::string path = BaseCachePath(request);
  BaseCacheFile result{.path = path};
  // Whether what is there will do.
  const auto look = [&]() -> absl::StatusOr<bool> {
    result.found = FileExists(path);
    if (!result.found) return false;
    if (!request.tiles || (request.backend != nullptr && !request.backend->is_host())) return true;
    ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
    return IsInTiles(file, path, request.digest, layout);
  };
  const auto make = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto file, LockedFile::Open(absl::StrCat(path, ".tmp"), request.stop));
    ASSIGN_OR_RETURN(const bool there, look());  // another process made it while we waited
    if (there) return absl::OkStatus();
    if (result.found) {
      ASSIGN_OR_RETURN(const MappedFile flat, MappedFile::Open(path));
      ASSIGN_OR_RETURN(const bool sound,
                       IsAsItWasMade(path, {reinterpret_cast<const std::byte*>(flat.data()), flat.size()},
                                     request.stop));
      if (!sound)
        return Error(Reason::kModelFileInvalid,
                     path + " does not have the bytes any more that it was made with");
      RETURN_IF_ERROR(TranscodeBaseCache(flat, request.digest, layout, *file));
    } else {
      RETURN_IF_ERROR(MakeBaseCache(request, tensors, layout, *file));
    }
    return file->Commit(path);
  };
  ASSIGN_OR_RETURN(const bool there, look());
  if (there) return result;
  const absl::Status made = make();
  // A flat file is slower and nothing else: without room for a second one beside it, it stays.
  if (!made.ok() && !result.found) return made;
  return result;
}

void ReadFlat(std::span<const std::byte> file, const spec::BaseLayout& layout, bool tiles, int64_t first,
              int64_t count, std::byte* out) {
  const int64_t end = first + count;
  CHECK(first >= 0 && end <= static_cast<int64_t>(file.size()));
  int64_t at = first;
  const auto copy_to = [&](int64_t to) {
    if (to <= at) return;
    std::memcpy(out + (at - first), file.data() + at, static_cast<size_t>(to - at));
    at = to;
  };
  for (const BaseEntry& entry : layout.entries) {
    const int64_t entry_end = entry.offset + entry.size_bytes;
    if (!tiles || entry.tiles.rows == 0 || entry_end <= at) continue;
    copy_to(std::min(entry.offset, end));
    if (at == end) return;
    const spec::TileShape& shape = entry.tiles;
    const int64_t stop = std::min(entry_end, end), unit = shape.unit_bytes;
    CHECK((at - entry.offset) % unit == 0 && (stop - at) % unit == 0);
    kernels::FromTiles(file.data() + entry.offset, shape.rows, shape.row_blocks, unit,
                       (at - entry.offset) / unit, (stop - at) / unit, out + (at - first));
    at = stop;
  }
  copy_to(end);
}

}  // namespace nibble::engine
