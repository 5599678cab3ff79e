#include "base/log_file.h"

#include <unistd.h>

#include "base/file.h"

namespace nibble {

void CutLogFile(const std::string& path, int64_t max_bytes) {
  const auto size = FileSizeBytes(path);
  if (!size.ok() || *size <= max_bytes) return;
  const auto text = ReadFile(path);
  if (!text.ok()) return;
  if (!WriteFileAtomic(path + ".1", *text).ok()) (void)RemoveFile(path + ".1");
  (void)!truncate(path.c_str(), 0);
}

}  // namespace nibble
