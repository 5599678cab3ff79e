// A model of Hopper's warpgroup products (wgmma.h) by the PTX ISA: descriptors, layouts, and when
// what may be touched.
//
// The hardware may read a product's operands at any time between its start and the Wait that lets its
// group pass. Every other block reads them at the start, so that what arrives too late shows; the
// others then, so that what is changed too early shows: from shared memory by the descriptor and from
// the left operand's registers. From its start until then its sums are NaN. What the ISA leaves
// undefined stops the process: a product without Fence, sums touched before they have arrived, a
// descriptor of another layout than ours or beyond the shared memory, operands that were copied
// there but not fenced for the tensor cores, lanes that disagree.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/emulate_proxies.h"
#include "kernels/cuda/emulate_sanitizers.h"

namespace nibble::kernels::cuda_emulated {

constexpr uint32_t kSharedBegin = 1040;  // dynamic shared memory begins at any multiple of 16

inline uint32_t SharedAddress(const void* at) {
  const auto offset = static_cast<const char*>(at) - static_cast<const char*>(DynamicSharedBytes());
  return kSharedBegin + static_cast<uint32_t>(offset);
}

// Where the element (row, depth) of an operand is, as an address of shared memory. Canonical
// layouts, 128-byte swizzle, elements of 16 bits: straight ((8, m), (8, 2)) : ((64, stride), (1,
// 8)); turned, row being the column of the tile, ((64, m), (8, k)) : ((1, leading), (64, stride)).
// The swizzle exchanges bits of the whole address.
inline uint32_t OperandAddress(uint64_t descriptor, bool turned, uint32_t row, uint32_t depth) {
  const auto field = [&](int bit) {
    return static_cast<uint32_t>(descriptor >> bit & 0x3FFF) << 4;
  };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const uint32_t offset =
      turned ? row / 64 * leading + depth / 8 * stride + depth % 8 * 128 + row % 64 * 2
             : row / 8 * stride + row % 8 * 128 + depth * 2;
  const uint32_t address = start + offset;
  return address ^ (address >> 7 & 7) << 4;
}

class Warpgroup {
 public:
  Warpgroup() {
    const bool a_block_is_of_whole_warpgroups = blockDim.x % 128 == 0;
    KERNEL_CHECK(a_block_is_of_whole_warpgroups);
    Unfenced().Fence();  // of the block before
  }
  ~Warpgroup() {
    const bool every_product_was_waited_for = queued_ == 0;
    KERNEL_CHECK(every_product_was_waited_for);
  }
  void Fence() { fenced_ = true; }
  template <typename Act, int kBlocks>
  void Multiply(float (&sums)[kBlocks][4], uint64_t left, uint64_t right, bool add) {
    Queue<Act>({&sums[0][0], kBlocks, nullptr, left, right, add, group_, nullptr});
  }
  template <typename Act, int kBlocks>
  void MultiplyTurned(float (&sums)[kBlocks][4], const uint32_t (&left)[4], uint64_t right) {
    Queue<Act>({&sums[0][0], kBlocks, left, 0, right, true, group_, nullptr});
  }
  void Commit() { ++group_; }
  template <int kPending>
  void Wait() {
    int done = 0;
    while (done < queued_ && queue_[done].group < group_ - kPending) {
      if (!reads_at_start_) queue_[done].run(this, queue_[done]);
      ++done;
    }
    for (int i = done; i < queued_; ++i) queue_[i - done] = queue_[i];
    queued_ -= done;
    for (int i = 0; i < kMostSums; ++i) Deliver(&sums_[i]);
    fenced_ = false;
  }

 private:
  static constexpr int kMost = 96, kMostSums = 6, kMostBlocks = 16;
  struct Product {
    float* sums;
    int blocks;  // of eight columns
    const uint32_t* left_registers;
    uint64_t left, right;
    bool add;
    int group;
    void (*run)(Warpgroup*, const Product&);
  };
  // Sums that products in flight add to.
  struct Sums {
    float* at = nullptr;
    int blocks = 0;
    float values[4 * kMostBlocks];
  };
  // What the lanes of a warp decode for each other of a right operand: [depth][lane % 4][its
  // columns].
  using Right = float[16][4][2 * kMostBlocks];

  NIBBLE_UNSEEN static bool IsMark(float value) {
    return __float_as_uint(value) == __float_as_uint(std::numeric_limits<float>::quiet_NaN());
  }

  template <typename Act>
  NIBBLE_UNSEEN void Queue(Product product) {
    const bool registers_were_fenced = fenced_;
    KERNEL_CHECK(registers_were_fenced);
    KERNEL_CHECK(queued_ < kMost);
    Sums* sums = nullptr;
    for (Sums& s : sums_)
      if (s.at == product.sums) sums = &s;
    if (sums == nullptr) {
      for (Sums& s : sums_)
        if (s.at == nullptr) sums = &s;
      KERNEL_CHECK(sums != nullptr);
      sums->at = product.sums;
      sums->blocks = product.blocks;
      for (int i = 0; i < 4 * product.blocks; ++i) {
        if (product.add) sums->values[i] = product.sums[i];  // else they may hold nothing yet
        product.sums[i] = std::numeric_limits<float>::quiet_NaN();
      }
    }
    KERNEL_CHECK(sums->blocks == product.blocks);
    product.run = [](Warpgroup* self, const Product& p) { self->Run<Act>(p); };
    queue_[queued_++] = product;
    if (reads_at_start_) Run<Act>(product);
  }

  // Sums that nothing in flight adds to any longer go back to their registers.
  NIBBLE_UNSEEN void Deliver(Sums* sums) {
    if (sums->at == nullptr) return;
    for (int i = 0; i < queued_; ++i)
      if (queue_[i].sums == sums->at) return;
    bool sums_in_flight_were_left_alone = true;
    for (int i = 0; i < 4 * sums->blocks; ++i) {
      sums_in_flight_were_left_alone &= IsMark(sums->at[i]);
      sums->at[i] = sums->values[i];
    }
    KERNEL_CHECK(sums_in_flight_were_left_alone);
    sums->at = nullptr;
  }

  template <typename Act>
  static float Element(uint64_t descriptor, bool turned, int row, int depth) {
    const uint32_t address = OperandAddress(descriptor, turned, static_cast<uint32_t>(row),
                                            static_cast<uint32_t>(depth));
    const bool operand_lies_in_shared_memory =
        address >= kSharedBegin && address + 2 <= kSharedBegin + DynamicSharedSize();
    KERNEL_CHECK(operand_lies_in_shared_memory);
    const void* at = static_cast<const char*>(DynamicSharedBytes()) + (address - kSharedBegin);
    const bool operand_was_fenced_for_the_tensor_cores = !Unfenced().Has(at);
    KERNEL_CHECK(operand_was_fenced_for_the_tensor_cores);
    return Get(static_cast<const Act*>(at));
  }

  static void CheckDescriptor(uint64_t descriptor, bool turned) {
    const bool descriptor_is_swizzled_by_128_bytes = descriptor >> 62 == 1;
    const bool rest_of_the_descriptor_is_zero = (descriptor & 0x3FFFC000C000C000u) == 0;
    KERNEL_CHECK(descriptor_is_swizzled_by_128_bytes);
    const bool a_straight_tile_has_no_distance_of_blocks = turned || (descriptor >> 16 & 0x3FFF) == 1;
    KERNEL_CHECK(rest_of_the_descriptor_is_zero);
    KERNEL_CHECK(a_straight_tile_has_no_distance_of_blocks);
  }

  // The thread sanitizer sees these reads of shared memory.
  template <typename Act>
  static void DecodeRight(Right& right, const Product& p) {
    const bool turned = p.left_registers != nullptr;
    CheckDescriptor(p.right, turned);
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (int column = lane; column < 8 * p.blocks; column += 32)
      for (int depth = 0; depth < 16; ++depth)
        right[depth][column % 8 / 2][column / 8 * 2 + column % 2] =
            Element<Act>(p.right, turned, column, depth);
  }
  template <typename Act>
  static void DecodeLeft(float (&left)[2][16], const Product& p) {
    CheckDescriptor(p.left, false);
    const int row =
        static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x % 32) / 4;
    for (int half = 0; half < 2; ++half)
      for (int depth = 0; depth < 16; ++depth)
        left[half][depth] = Element<Act>(p.left, false, row + 8 * half, depth);
  }

  template <typename Act>
  void Run(const Product& p) {
    // Two in turn: nobody decodes the next but one before all have used this.
    static thread_local Right rights[32][2];
    Right& right = rights[threadIdx.x / 32][turn_++ & 1];
    DecodeRight<Act>(right, p);
    float left[2][16];
    if (p.left_registers == nullptr) DecodeLeft<Act>(left, p);
    Finish<Act>(p, right, left);
  }

  template <typename Act>
  NIBBLE_UNSEEN void Finish(const Product& p, const Right& right, float (&left)[2][16]) {
    const uint64_t told =
        p.right ^ p.left << 1 ^ static_cast<uint64_t>(p.blocks) ^ (p.add ? 1u << 31 : 0);
    const uint64_t first = Bring(kAllLanes, told)[0];
    const bool lanes_ask_for_the_same_product = first == told;
    KERNEL_CHECK(lanes_ask_for_the_same_product);
    const uint64_t* all = Bring(kAllLanes, p.left_registers);
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (p.left_registers != nullptr) {
      for (int t = 0; t < 4; ++t) {
        const auto* of = ReadLane<const uint32_t*>(all, static_cast<unsigned>(lane / 4 * 4 + t));
        for (int half = 0; half < 2; ++half) {
          for (int i = 0; i < 2; ++i) {
            left[half][8 * i + 2 * t] = ActType<Act>::Low(of[2 * i + half]);
            left[half][8 * i + 2 * t + 1] = ActType<Act>::High(of[2 * i + half]);
          }
        }
      }
    }
    Sums* sums = nullptr;
    for (Sums& s : sums_)
      if (s.at == p.sums) sums = &s;
    for (int half = 0; half < 2; ++half) {
      float got[2 * kMostBlocks] = {};
      if (p.add)
        for (int i = 0; i < 2 * p.blocks; ++i) got[i] = sums->values[i / 2 * 4 + 2 * half + i % 2];
      for (int depth = 0; depth < 16; ++depth)
        for (int i = 0; i < 2 * p.blocks; ++i)
          got[i] += left[half][depth] * right[depth][lane % 4][i];
      for (int i = 0; i < 2 * p.blocks; ++i) sums->values[i / 2 * 4 + 2 * half + i % 2] = got[i];
    }
    __syncwarp();  // all have read the left operands
  }

  Product queue_[kMost];
  Sums sums_[kMostSums];
  int queued_ = 0, group_ = 0, turn_ = 0;
  bool fenced_ = false;
  const bool reads_at_start_ = (blockIdx.x + blockIdx.y) % 2 == 1;
};

}  // namespace nibble::kernels::cuda_emulated
