#include "server/io_pool.h"

namespace nibble::server {

IoPool::IoPool(int threads, size_t capacity) : queue_(capacity) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      for (;;) {
        auto work = queue_.Take(1, 3'600'000'000);
        if (work.empty() && queue_.closed()) return;
        for (auto& item : work) item();
      }
    });
  }
}

IoPool::~IoPool() { Stop(); }

void IoPool::Stop() {
  queue_.Close();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

}  // namespace nibble::server
