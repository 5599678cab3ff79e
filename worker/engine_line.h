// The lines between worker and engine (docs/engine-protocol.md) as the agent's inputs. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/core/messages.h"

namespace nibble::worker {

inline constexpr int64_t kProtocolVersion = 1;
inline constexpr size_t kMaxLineBytes = size_t{64} << 10;

// What the agent hears of a line of engine `engine`; nothing for lines that only inform (paused,
// dropped). A line that is no message of ours is an error: the engine cannot be trusted further.
absl::StatusOr<std::optional<Input>> ParseEngineLine(int64_t engine, std::string_view line);

// "job/3" -> {job, 3}.
absl::StatusOr<AttemptKey> ParseAttempt(std::string_view text);

// Lines to the engine, each with its newline. `dir` is the attempt's own directory.
std::string AttachLine(const Assignment& assignment, const LocalFiles& files,
                       const std::string& dir);
// pause, resume, checkpoint.
std::string CommandLine(std::string_view type, const AttemptKey& key);
std::string PriorityLine(const AttemptKey& key, int32_t priority);
std::string DetachLine(const AttemptKey& key, bool checkpoint);
std::string ShutdownLine();

}  // namespace nibble::worker
