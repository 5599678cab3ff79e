// Linked where the CUDA toolkit was not there when this was built.
#include "kernels/backend.h"

namespace nibble::kernels {
namespace {

constexpr char kWhy[] = "this build has no CUDA kernels; the toolkit was missing when it was built";

}  // namespace

const char* CudaName() { return ""; }

std::vector<DeviceInfo> CudaDevices(std::string* why) {
  *why = kWhy;
  return {};
}

std::unique_ptr<Backend> OpenCuda(const CudaOptions&, std::string* why) {
  *why = kWhy;
  return nullptr;
}

}  // namespace nibble::kernels
