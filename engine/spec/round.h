// Rounding of sizes. Pure; whole numbers that are not negative.
#pragma once

#include <cstdint>

namespace nibble::spec {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t value, int64_t multiple) { return CeilDiv(value, multiple) * multiple; }

}  // namespace nibble::spec
