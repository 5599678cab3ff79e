// What this machine can do at most, measured beside the kernels: products from registers, and
// copying, reading and storing memory.
#pragma once

#include <cstdint>
#include <string_view>

namespace nibble::kernels::bench {

// Floating-point operations per second of one thread doing nothing but the body's multiply-adds.
double ProductRate(std::string_view body);
// The same of as many threads at once. Virtual processors may be two halves of one core, which a guest is not
// told: two of them then do hardly more than one.
double ProductRate(std::string_view body, int threads);
// Bytes read plus written per second when one thread copies memory far larger than its caches.
double CopyRate();
// The same, only reading.
double ReadRate();
// Bytes per second of storing into 256 KiB again and again.
double StoreRate();

}  // namespace nibble::kernels::bench
