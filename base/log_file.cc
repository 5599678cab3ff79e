#include "base/log_file.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/file.h"

namespace nibble {
namespace {

// Not the whole: what a process writes in a loop can be more than there is memory.
std::string LastBytes(const std::string& path, int64_t size_bytes, int64_t max_bytes) {
  std::ifstream in(path, std::ios::binary);
  in.seekg(size_bytes - std::min(size_bytes, max_bytes));
  std::string text(static_cast<size_t>(std::min(size_bytes, max_bytes)), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

}  // namespace

void CutLogFile(const std::string& path, int64_t max_bytes) {
  const auto size = FileSizeBytes(path);
  if (!size.ok() || *size <= max_bytes) return;
  if (!WriteFileAtomic(path + ".1", LastBytes(path, *size, max_bytes)).ok()) (void)RemoveFile(path + ".1");
  (void)!truncate(path.c_str(), 0);
}

}  // namespace nibble
