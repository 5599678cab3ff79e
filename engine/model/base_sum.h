// Whether a quantized base on the disk still has the bytes it was made with. Its name is the digest
// of what it was made from, so nothing else would tell: a flipped bit would train on, into every
// adapter.
//
// A sum of the file's bytes stands beside it ("<file>.sum", with its inode) from the first time it
// is mapped. One changed bit always changes the sum: each step of it is a bijection. No
// cryptography: against disks, not people.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace nibble::engine {

// False when the sum beside `path` is of this file and another than that of `bytes`, its mapping.
// Writes one when there is none of this file; where that cannot be written, the next one who maps
// it tries again. `stop` is asked now and then, if there is one; true: CANCELLED.
absl::StatusOr<bool> IsAsItWasMade(const std::string& path, std::span<const std::byte> bytes,
                                   const std::function<bool()>& stop = nullptr);

}  // namespace nibble::engine
