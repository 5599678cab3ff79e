#include "engine/model/base_sum.h"

#include <sys/stat.h>

#include <cstdint>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace nibble::engine {
namespace {

constexpr size_t kLanes = 8;  // independent chains, so that memory is the bound
// Odd, so that multiplying is a bijection of 64 bits; the bits are those of the golden ratio.
constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;

uint64_t Mix(uint64_t state, uint64_t word) {
  state = (state ^ word) * kFactor;
  return state ^ (state >> 29);
}

constexpr size_t kPieceBytes = size_t{64} << 20;

// nullopt: it was stopped.
std::optional<uint64_t> SumOf(std::span<const std::byte> bytes, const std::function<bool()>& stop) {
  uint64_t lanes[kLanes] = {};
  constexpr size_t kBlock = kLanes * sizeof(uint64_t);
  size_t at = 0;
  for (; at + kBlock <= bytes.size(); at += kBlock) {
    if (at % kPieceBytes == 0 && stop && stop()) return std::nullopt;
    uint64_t words[kLanes];
    std::memcpy(words, bytes.data() + at, kBlock);
    for (size_t i = 0; i < kLanes; ++i) lanes[i] = Mix(lanes[i], words[i]);
  }
  uint64_t sum = bytes.size();
  for (; at < bytes.size(); ++at) sum = Mix(sum, static_cast<uint64_t>(bytes[at]));
  for (const uint64_t lane : lanes) sum = Mix(sum, lane);
  return sum;
}

}  // namespace

absl::StatusOr<bool> IsAsItWasMade(const std::string& path, std::span<const std::byte> bytes,
                                   const std::function<bool()>& stop) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0)
    return true;  // in the place of ours there is none, or soon another
  const std::string of_this_file = absl::StrCat(info.st_ino, " ", bytes.size(), " ");
  const std::optional<uint64_t> sum = SumOf(bytes, stop);
  if (!sum) return absl::CancelledError("comparing the base with its sum was stopped");
  const std::string now = absl::StrCat(of_this_file, absl::Hex(*sum, absl::kZeroPad16), "\n");
  const std::string beside = path + ".sum";
  const auto known = ReadFile(beside, 200);
  if (known.ok() && known->starts_with(of_this_file)) return *known == now;
  (void)WriteFileAtomic(beside, now);
  return true;
}

}  // namespace nibble::engine
