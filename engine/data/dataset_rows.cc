#include "engine/data/dataset_rows.h"

#include <errno.h>

#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/spec/row_splitter.h"

namespace nibble::engine {
namespace {

constexpr size_t kChunkBytes = 1 << 18;

}  // namespace

absl::Status ForEachRow(const std::string& path, std::string_view label,
                        const std::function<absl::Status(int64_t, std::string_view)>& on_row) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"),
                                                       &std::fclose);
  if (file == nullptr) {
    if (errno == ENOENT) {
      return Error(Reason::kDatasetNotFound, absl::StrCat("there is no data set file ", path));
    }
    return ErrnoStatus(errno, absl::StrCat("open ", path));
  }
  spec::RowSplitter splitter{std::string(label), on_row};
  std::string chunk(kChunkBytes, '\0');
  for (;;) {
    const size_t size = std::fread(chunk.data(), 1, chunk.size(), file.get());
    if (size == 0) break;
    RETURN_IF_ERROR(splitter.Feed(std::string_view(chunk).substr(0, size)));
  }
  if (std::ferror(file.get())) return ErrnoStatus(errno, absl::StrCat("read ", path));
  return splitter.Finish();
}

}  // namespace nibble::engine
