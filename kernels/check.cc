#include "kernels/check.h"

#include <cstdio>
#include <cstdlib>

namespace nibble::kernels {

void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: kernel check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace nibble::kernels
