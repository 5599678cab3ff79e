#include "tests/kernels/bench_probe.h"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <numeric>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble::kernels::bench {
namespace {

// Processor time of this thread: other programs on the machine must not make a limit look low.
double Now() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}
double Seconds(double since) { return Now() - since; }

constexpr int kRounds = 20000;
constexpr int kSums = 24;

#if defined(__x86_64__)

// The empty asm keeps the compiler from folding the loop and from seeing that all sums are equal.
__attribute__((target("avx512f,avx512bf16"))) double Bf16Round() {
  __m512 sums[kSums];
#pragma GCC unroll 24
  for (int s = 0; s < kSums; ++s) {
    sums[s] = _mm512_setzero_ps();
    asm volatile("" : "+v"(sums[s]));
  }
  __m512i a = _mm512_set1_epi32(0x3F803F80), b = a;
  for (int i = 0; i < kRounds; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 24
    for (int s = 0; s < kSums; ++s) sums[s] = _mm512_dpbf16_ps(sums[s], (__m512bh)a, (__m512bh)b);
  }
#pragma GCC unroll 24
  for (int s = 0; s < kSums; ++s) asm volatile("" : : "v"(sums[s]));
  return 64.0 * kSums * kRounds;
}

__attribute__((target("avx512f,avx512vnni"))) double VnniRound() {
  __m512i sums[kSums];
#pragma GCC unroll 24
  for (int s = 0; s < kSums; ++s) {
    sums[s] = _mm512_setzero_si512();
    asm volatile("" : "+v"(sums[s]));
  }
  __m512i a = _mm512_set1_epi32(0x00010001), b = a;
  for (int i = 0; i < kRounds; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 24
    for (int s = 0; s < kSums; ++s) sums[s] = _mm512_dpwssd_epi32(sums[s], a, b);
  }
#pragma GCC unroll 24
  for (int s = 0; s < kSums; ++s) asm volatile("" : : "v"(sums[s]));
  return 64.0 * kSums * kRounds;
}

__attribute__((target("avx512f"))) double Avx512Round() {
  __m512 sums[kSums];
#pragma GCC unroll 24
  for (int s = 0; s < kSums; ++s) {
    sums[s] = _mm512_setzero_ps();
    asm volatile("" : "+v"(sums[s]));
  }
  __m512 a = _mm512_set1_ps(1), b = a;
  for (int i = 0; i < kRounds; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 24
    for (int s = 0; s < kSums; ++s) sums[s] = _mm512_fmadd_ps(a, b, sums[s]);
  }
#pragma GCC unroll 24
  for (int s = 0; s < kSums; ++s) asm volatile("" : : "v"(sums[s]));
  return 32.0 * kSums * kRounds;
}

__attribute__((target("avx2,fma"))) double Avx2Round() {
  __m256 sums[12];
#pragma GCC unroll 12
  for (int s = 0; s < 12; ++s) {
    sums[s] = _mm256_setzero_ps();
    asm volatile("" : "+x"(sums[s]));
  }
  __m256 a = _mm256_set1_ps(1), b = a;
  for (int i = 0; i < kRounds; ++i) {
    asm volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 12
    for (int s = 0; s < 12; ++s) sums[s] = _mm256_fmadd_ps(a, b, sums[s]);
  }
#pragma GCC unroll 12
  for (int s = 0; s < 12; ++s) asm volatile("" : : "x"(sums[s]));
  return 16.0 * 12 * kRounds;
}

#endif

double PortableRound() {
  float sums[8] = {};
  float a = 1, b = 1;
  for (int i = 0; i < kRounds; ++i) {
    asm volatile("" : "+m"(a), "+m"(b));
    for (float& sum : sums) sum += a * b;
  }
  asm volatile("" : : "m"(sums));
  return 2.0 * 8 * kRounds;
}

double Round(std::string_view body) {
#if defined(__x86_64__)
  if (body == "avx512_bf16") return Bf16Round();
  if (body == "avx512_vnni") return VnniRound();
  if (body == "avx512") return Avx512Round();
  if (body == "avx2") return Avx2Round();
#endif
  return PortableRound();
}

}  // namespace

double ProductRate(std::string_view body) {
  double best = 0;
  for (int i = 0; i < 20; ++i) {
    const auto begin = Now();
    const double work = Round(body);
    const double rate = work / Seconds(begin);
    if (rate > best) best = rate;
  }
  return best;
}

double ProductRate(std::string_view body, int threads) {
  std::vector<double> rates(static_cast<size_t>(threads));
  std::atomic<int> arrived{0};
  std::vector<std::thread> others;
  for (double& rate : rates) {
    others.emplace_back([&] {
      ++arrived;
      while (arrived < threads) {  // so that all of them multiply at one time
      }
      rate = ProductRate(body);
    });
  }
  for (std::thread& other : others) other.join();
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

double CopyRate() {
  static std::vector<char> from(size_t{96} << 20, 1), to(size_t{96} << 20, 2);
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    const auto begin = Now();
    std::memcpy(to.data(), from.data(), from.size());
    asm volatile("" : : "m"(*to.data()) : "memory");
    const double rate = 2.0 * static_cast<double>(from.size()) / Seconds(begin);
    if (rate > best) best = rate;
  }
  return best;
}

double ReadRate() {
  static std::vector<uint64_t> from(size_t{192} << 17, 1);
  double best = 0;
  for (int i = 0; i < 2; ++i) {
    const auto begin = Now();
    // Many sums, so that none waits for another; the compiler makes vectors of them.
    uint64_t sums[32] = {};
    for (size_t j = 0; j + 32 <= from.size(); j += 32)
      for (size_t k = 0; k < 32; ++k) sums[k] ^= from[j + k];
    asm volatile("" : : "m"(sums));
    const double rate = 8.0 * static_cast<double>(from.size()) / Seconds(begin);
    if (rate > best) best = rate;
  }
  return best;
}

double StoreRate() {
  static std::vector<uint64_t> to(size_t{256} << 7);
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    constexpr int kTimes = 20;
    const auto begin = Now();
    for (int t = 0; t < kTimes; ++t) {
      for (uint64_t& value : to) value = static_cast<uint64_t>(t);
      asm volatile("" : : "r"(to.data()) : "memory");
    }
    const double rate = kTimes * 8.0 * static_cast<double>(to.size()) / Seconds(begin);
    if (rate > best) best = rate;
  }
  return best;
}

}  // namespace nibble::kernels::bench
