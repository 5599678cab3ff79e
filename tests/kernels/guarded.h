// Memory that notices a kernel's mistakes: the array ends at an inaccessible page, so that reading or
// writing one byte behind it faults, and a pattern in front of it shows writes before it.
#pragma once

#include <cstdint>

namespace nibble::kernels::check {

class Guarded {
 public:
  // `alignment` 1 puts the end exactly at the page; a larger one leaves up to alignment - 1 bytes of
  // pattern behind.
  explicit Guarded(int64_t bytes, int64_t alignment = 1);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // False when the pattern around the array was overwritten.
  bool Intact() const;

 private:
  int64_t bytes_;
  int64_t mapped_;
  uint8_t* map_;
  uint8_t* data_;
  uint8_t* page_;  // the inaccessible one
};

}  // namespace nibble::kernels::check
