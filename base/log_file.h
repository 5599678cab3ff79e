// A log that other processes append to, kept from growing for ever. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace nibble {

// Of one that is longer than `max_bytes` the last so many become `path`.1, in place of what was there, and
// it is empty. Whoever has it open for appending goes on at its new end; what is written between the two is
// lost. On a full disk nothing is kept of it: it may be what fills the disk.
void CutLogFile(const std::string& path, int64_t max_bytes);

}  // namespace nibble
