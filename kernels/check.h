// CHECK for kernels/: a wrong argument is a bug of the caller, never input, so the process stops and says
// where. kernels/ includes nothing of base/, hence its own.
#pragma once

namespace nibble::kernels {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);

}  // namespace nibble::kernels

#define KERNEL_CHECK(condition)                                                   \
  do {                                                                            \
    if (!(condition)) [[unlikely]]                                                \
      ::nibble::kernels::CheckFailed(__FILE__, __LINE__, #condition);             \
  } while (false)
