#include "client/kept_child.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log_file.h"
#include "base/status.h"

namespace nibble::client {
namespace {

constexpr int64_t kSecondUs = 1'000'000;
constexpr int64_t kLongestWaitUs = 60 * kSecondUs;
constexpr int64_t kStaysUpUs = 60 * kSecondUs;
constexpr int64_t kMaxLogBytes = int64_t{32} << 20;
constexpr int64_t kTailBytes = 4'000;
constexpr int kTailLines = 9;

// Of what stands from `from` on: what came before is of earlier runs.
std::string LogTail(const std::string& path, int64_t from) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return "";
  const auto end = static_cast<int64_t>(in.tellg());
  const int64_t size = end - (from <= end ? from : 0);
  in.seekg(end - std::min(size, kTailBytes));
  std::string text(static_cast<size_t>(std::min(size, kTailBytes)), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  size_t begin = text.size();
  for (int lines = 0; begin > 0 && lines < kTailLines; --begin) {
    if (text[begin - 1] == '\n') ++lines;
  }
  return text.substr(begin);
}

}  // namespace

absl::Status KeptChild::Start(std::vector<std::string> arguments) {
  arguments_ = std::move(arguments);
  started_us_ = RealClock::Get().NowMonotonicUs();
  log_from_ = FileSizeBytes(log_file_).value_or(0);
  return child_.Start(arguments_, log_file_);
}

std::string KeptChild::Obituary() const {
  return absl::StrCat(name_, " ", child_.how(), "; the end of ", log_file_, ":\n",
                      LogTail(log_file_, log_from_));
}

absl::StatusOr<std::string> KeptChild::Keep(int64_t now_us) {
  CutLog(now_us);
  if (child_.Running()) return "";
  if (again_us_ == 0) {
    if (child_.hopeless()) return absl::InternalError(Obituary());
    wait_us_ = now_us - started_us_ >= kStaysUpUs || wait_us_ == 0
                   ? kSecondUs
                   : std::min(2 * wait_us_, kLongestWaitUs);
    again_us_ = now_us + wait_us_;
    return absl::StrCat(name_, " ", child_.how(), "; it is started again in ", wait_us_ / kSecondUs,
                        " s (", log_file_, ")");
  }
  if (now_us < again_us_) return "";
  again_us_ = 0;
  started_us_ = now_us;
  log_from_ = FileSizeBytes(log_file_).value_or(0);
  RETURN_IF_ERROR(child_.Start(arguments_, log_file_));
  return "";
}

void KeptChild::CutLog(int64_t now_us) {
  if (now_us < next_look_us_) return;
  next_look_us_ = now_us + kLongestWaitUs;
  CutLogFile(log_file_, kMaxLogBytes);
}

}  // namespace nibble::client
