// Amounts of bytes as people read them, the same in all messages of the server, workers and engines. Pure.
#pragma once

#include <cstdint>
#include <string>

namespace nibble {

// "1.50 GiB"; exact bytes stand beside it where it matters.
std::string HumanBytes(int64_t bytes);

}  // namespace nibble
