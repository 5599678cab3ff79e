#include <sys/mman.h>

#include <cstring>
#include <map>

#include "kernels/backend.h"
#include "kernels/check.h"
#include "kernels/parallel.h"

namespace nibble::kernels {
namespace {

// Everything happens at once, in the caller's order.
class HostBackend final : public Backend {
 public:
  HostBackend(const KernelTable& table, int threads) : table_(table), pool_(threads, AskedPlacement()) {
    context_.pool = &pool_;
  }
  ~HostBackend() override {
    for (const auto& [address, bytes] : blocks_) munmap(address, static_cast<size_t>(bytes));
  }

  const KernelTable& table() const override { return table_; }
  Context& context() override { return context_; }
  bool is_host() const override { return true; }

  void* Allocate(int64_t bytes) override {
    KERNEL_CHECK(bytes > 0);
    void* address = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return nullptr;
    // Large pages where the system gives them. Not needed.
    madvise(address, static_cast<size_t>(bytes), MADV_HUGEPAGE);
    blocks_[address] = bytes;
    return address;
  }
  void Release(void* device) override {
    const auto block = blocks_.find(device);
    KERNEL_CHECK(block != blocks_.end());
    munmap(block->first, static_cast<size_t>(block->second));
    blocks_.erase(block);
  }
  void* AllocatePinned(int64_t bytes) override { return Allocate(bytes); }
  void ReleasePinned(void* host) override { Release(host); }

  void CopyIn(Lane, void* device, const void* host, int64_t bytes) override {
    std::memcpy(device, host, static_cast<size_t>(bytes));
  }
  void CopyOut(Lane, void* host, const void* device, int64_t bytes) override {
    std::memcpy(host, device, static_cast<size_t>(bytes));
  }
  void CopyWithin(Lane, void* to, const void* from, int64_t bytes) override {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  void Fill(void* device, uint8_t byte, int64_t bytes) override {
    std::memset(device, byte, static_cast<size_t>(bytes));
  }
  void Wait(Lane, Lane) override {}
  bool Synchronize() override { return true; }

  Fault fault() const override { return Fault::kNone; }
  const char* error() const override { return nullptr; }
  int64_t fixed_bytes() const override { return 0; }
  int64_t free_bytes() const override { return -1; }

 private:
  const KernelTable& table_;
  ThreadPool pool_;
  Context context_;
  std::map<void*, int64_t> blocks_;
};

}  // namespace

std::unique_ptr<Backend> MakeHostBackend(const KernelTable& table, int threads) {
  return std::make_unique<HostBackend>(table, threads);
}

}  // namespace nibble::kernels
