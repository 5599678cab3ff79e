// Linked into what travels (NIBBLE_STATIC): the newest functions of this C library that libstdc++ asks for,
// so that the binary starts with glibc 2.35 (Ubuntu 22.04), too.
#include <sys/random.h>

#include <cstdint>
#include <cstdlib>

// Of glibc 2.36; std::random_device's.
extern "C" uint32_t arc4random() noexcept {
  uint32_t value = 0;
  if (getrandom(&value, sizeof value, 0) != sizeof value) std::abort();
  return value;
}
