// What a program for Linux finds where there is no Linux: its segments in memory, arguments, and
// the few system calls that a statically linked one with one thread makes. It runs on an emulated
// processor whose kernel would have to know it, and need not here (README.md).
//
// Memory, mapped as it lies: this image at 1 MiB, behind it the program's file as GRUB put it, the
// program from kProgram on (it is linked to that address), its stack below kHeap, then the heap and
// what it maps. Nothing is ever given back. Output goes to port 0xE9, one byte at a time.
#include <sys/syscall.h>

#include <cstddef>
#include <cstdint>

namespace {

constexpr uint64_t kStackTop = 0x1FF00000, kHeap = 0x20000000, kHeapEnd = 0x4FF00000;
constexpr uint64_t kMapped = 0x50000000, kMappedEnd = 0x7F000000, kPage = 4096;
constexpr int64_t kNoEntry = -2, kTryAgain = -11, kNoMemory = -12, kInvalid = -22,
                  kNoTerminal = -25, kNoSuchCall = -38;

void Out(uint16_t port, char byte) { asm volatile("outb %0, %1" ::"a"(byte), "Nd"(port)); }

void Put(const char* text) {
  while (*text != 0) Out(0xE9, *text++);
}

void PutHex(uint64_t value) {
  Put("0x");
  for (int shift = 60; shift >= 0; shift -= 4) Out(0xE9, "0123456789abcdef"[value >> shift & 15]);
}

// Bochs ends when it reads this word at its port.
[[noreturn]] void Stop() {
  for (const char* word = "Shutdown"; *word != 0;) Out(0x8900, *word++);
  for (;;) asm volatile("hlt");
}

void WriteMsr(uint32_t number, uint64_t value) {
  asm volatile("wrmsr" ::"c"(number), "a"(static_cast<uint32_t>(value)),
               "d"(static_cast<uint32_t>(value >> 32)));
}

uint64_t Ticks() {
  uint32_t low, high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high));
  return static_cast<uint64_t>(high) << 32 | low;
}

template <typename T>
T* At(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

uint64_t heap_end = kHeap, mapped_end = kMapped;

void Write(uint64_t from, uint64_t bytes) {
  for (uint64_t i = 0; i < bytes; ++i) Out(0xE9, At<const char>(from)[i]);
}

}  // namespace

// The compiler may call these by themselves.
extern "C" void* memset(void* to, int byte, size_t bytes) {
  void* const begin = to;
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(byte) : "memory");
  return begin;
}

extern "C" void* memcpy(void* to, const void* from, size_t bytes) {
  void* const begin = to;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
  return begin;
}

namespace {

uint64_t Map(uint64_t bytes) {
  bytes = (bytes + kPage - 1) / kPage * kPage;
  if (bytes > kMappedEnd - mapped_end) return static_cast<uint64_t>(kNoMemory);
  const uint64_t begin = mapped_end;
  mapped_end += bytes;
  memset(At<void>(begin), 0, bytes);
  return begin;
}

uint64_t MoveHeapEnd(uint64_t end) {
  if (end < kHeap || end > kHeapEnd) return heap_end;
  if (end > heap_end) memset(At<void>(heap_end), 0, end - heap_end);
  return heap_end = end;
}

// struct stat of a terminal, which has the C library write line by line.
int64_t TerminalStat(uint64_t to) {
  constexpr uint32_t kCharacterDevice = 020620;
  memset(At<void>(to), 0, 144);
  At<uint32_t>(to)[6] = kCharacterDevice;
  return 0;
}

int64_t ThreadState(uint64_t code, uint64_t value) {
  constexpr uint64_t kSetFs = 0x1002, kRequestPermission = 0x1023;
  constexpr uint32_t kFsBase = 0xC0000100;
  if (code == kSetFs) WriteMsr(kFsBase, value);
  return code == kSetFs || code == kRequestPermission ? 0
                                                      : kInvalid;  // tile registers are anybody's
}

// Calls that need no answer but these.
struct Answer {
  int64_t answer;
  uint64_t calls[10];
};
constexpr Answer kAnswers[] = {
    {0,
     {SYS_close, SYS_mprotect, SYS_munmap, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_sched_yield,
      SYS_madvise, SYS_sigaltstack, SYS_futex, SYS_set_robust_list}},
    {1, {SYS_getpid, SYS_gettid, SYS_set_tid_address}},
    {kTryAgain, {SYS_clone, SYS_clone3}},  // no threads
    {kNoTerminal, {SYS_ioctl}},
    {kNoEntry, {SYS_open, SYS_access, SYS_readlink, SYS_openat, SYS_readlinkat, SYS_faccessat}},
    {kNoSuchCall, {SYS_rseq}},
};

// What is not known is told, so that nothing is missing without being seen.
int64_t Otherwise(uint64_t number) {
  for (const Answer& answer : kAnswers)
    for (const uint64_t call : answer.calls)
      if (call == number && call != 0) return answer.answer;
  Put("\nno such system call: ");
  PutHex(number);
  Put("\n");
  return kNoSuchCall;
}

int64_t WriteVector(const uint64_t* parts, uint64_t count) {
  int64_t written = 0;
  for (uint64_t i = 0; i < count; ++i) {
    Write(parts[2 * i], parts[2 * i + 1]);
    written += static_cast<int64_t>(parts[2 * i + 1]);
  }
  return written;
}

[[noreturn]] void End(const char* how, uint64_t code) {
  Put(how);
  PutHex(code);
  Put("\n");
  Stop();
}

}  // namespace

// By the numbers of x86-64.
extern "C" int64_t SystemCall(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                              uint64_t) {
  switch (number) {
    case SYS_write:
      Write(b, c);
      return static_cast<int64_t>(c);
    case SYS_writev:
      return WriteVector(At<const uint64_t>(b), c);
    case SYS_fstat:
      return TerminalStat(b);
    case SYS_newfstatat:
      return a <= 2 ? TerminalStat(c) : kNoEntry;
    case SYS_mmap:
      return static_cast<int64_t>(Map(b));
    case SYS_brk:
      return static_cast<int64_t>(MoveHeapEnd(a));
    case SYS_arch_prctl:
      return ThreadState(a, b);
    case SYS_clock_gettime:  // ticks are nanoseconds here
      At<uint64_t>(b)[0] = Ticks() / 1000000000;
      At<uint64_t>(b)[1] = Ticks() % 1000000000;
      return 0;
    case SYS_sched_getaffinity:  // one processor
      memset(At<void>(c), 0, b);
      *At<uint8_t>(c) = 1;
      return 8;
    case SYS_prlimit64:  // of the stack
      if (d != 0) At<uint64_t>(d)[0] = At<uint64_t>(d)[1] = 8 << 20;
      return 0;
    case SYS_getrandom:
      for (uint64_t i = 0; i < b; ++i) At<uint8_t>(a)[i] = static_cast<uint8_t>(Ticks() >> 3);
      return static_cast<int64_t>(b);
    case SYS_exit:
    case SYS_exit_group:
      End("\nended with ", a);
    case SYS_kill:
    case SYS_tgkill:
      End("\naborted by signal ", number == SYS_kill ? b : c);
    default:
      return Otherwise(number);
  }
}

// frame: vector, error code, then what the processor pushed.
extern "C" [[noreturn]] void Fault(const uint64_t* frame, uint64_t address) {
  Put("\nfault ");
  PutHex(frame[0]);
  Put(", error ");
  PutHex(frame[1]);
  Put(", at instruction ");
  PutHex(frame[2]);
  Put(", cr2 ");
  PutHex(address);
  Put("\n");
  Stop();
}

extern "C" void SystemCallEntry();
extern "C" [[noreturn]] void Begin(uint64_t entry, uint64_t stack);
extern "C" const uint64_t fault_entries[32];

namespace {

void CatchFaults() {
  struct [[gnu::packed]] Gate {
    uint16_t low, selector;
    uint8_t stack, type;
    uint16_t middle;
    uint32_t high, zero;
  };
  static Gate gates[32];
  for (int i = 0; i < 32; ++i) {
    const uint64_t at = fault_entries[i];
    gates[i] = {static_cast<uint16_t>(at),       8, 0, 0x8E, static_cast<uint16_t>(at >> 16),
                static_cast<uint32_t>(at >> 32), 0};
  }
  const struct [[gnu::packed]] {
    uint16_t limit;
    const Gate* gates;
  } table = {sizeof gates - 1, gates};
  asm volatile("lidt %0" ::"m"(table));
}

// x87, SSE, AVX, AVX-512 and tiles, of what there is; protection keys stay off.
void SwitchOnVectors() {
  constexpr uint32_t kWanted = 0x600E7;
  uint32_t a = 13, b, c = 0, d;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  asm volatile("xsetbv" ::"c"(0), "a"(a & kWanted), "d"(0));
  Put("state components ");
  PutHex(a & kWanted);
  Put("\n");
}

struct ElfHeader {
  uint8_t id[16];
  uint16_t type, machine;
  uint32_t version;
  uint64_t entry, segments_at, sections_at;
  uint32_t flags;
  uint16_t bytes, segment_bytes, segments;
};
struct Segment {
  uint32_t type, flags;
  uint64_t offset, address, physical, file_bytes, memory_bytes, alignment;
};

// Brings the program's segments to where it is linked; returns where its program headers are then.
uint64_t Load(const uint8_t* file, const ElfHeader& header) {
  constexpr uint32_t kLoad = 1;
  uint64_t headers_at = 0;
  for (int i = 0; i < header.segments; ++i) {
    const auto& segment = reinterpret_cast<const Segment*>(file + header.segments_at)[i];
    if (segment.type != kLoad) continue;
    memcpy(At<void>(segment.address), file + segment.offset, segment.file_bytes);
    memset(At<void>(segment.address + segment.file_bytes), 0,
           segment.memory_bytes - segment.file_bytes);
    if (segment.offset == 0) headers_at = segment.address + header.segments_at;
  }
  return headers_at;
}

// argc, argv, environment and auxiliary vector as the ABI has them; returns the stack's end.
uint64_t MakeStack(const char* words, const ElfHeader& header, uint64_t headers_at) {
  static char text[4096];
  // Without it freed arrays would be mapped again and again, and nothing is given back here.
  static const char environment[] = "GLIBC_TUNABLES=glibc.malloc.mmap_threshold=1073741824";
  static const uint64_t random[2] = {0x0123456789ABCDEF, 0xFEDCBA9876543210};
  static uint64_t made[128];
  int count = 1, arguments = 0;
  char* to = text;
  while (*words != 0 && arguments < 64 && to < text + sizeof text - 2) {
    made[count++] = reinterpret_cast<uint64_t>(to);
    ++arguments;
    while (*words != 0 && *words != ' ' && to < text + sizeof text - 2) *to++ = *words++;
    *to++ = 0;
    while (*words == ' ') ++words;
  }
  made[0] = static_cast<uint64_t>(arguments);
  made[count++] = 0;
  made[count++] = reinterpret_cast<uint64_t>(environment);
  made[count++] = 0;
  // AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_ENTRY, AT_RANDOM, AT_SECURE, AT_NULL
  const uint64_t auxiliary[] = {3,  headers_at,
                                4,  header.segment_bytes,
                                5,  header.segments,
                                6,  kPage,
                                9,  header.entry,
                                25, reinterpret_cast<uint64_t>(random),
                                23, 0,
                                0,  0};
  for (const uint64_t word : auxiliary) made[count++] = word;
  const uint64_t stack = (kStackTop - sizeof made) & ~63ull;
  memcpy(At<void>(stack), made, sizeof made);
  return stack;
}

}  // namespace

// `boot`: Multiboot's information, of which only the first module matters: the program, and its
// words.
extern "C" [[noreturn]] void Main(uint32_t boot) {
  constexpr uint32_t kStar = 0xC0000081, kLstar = 0xC0000082, kMask = 0xC0000084;
  CatchFaults();
  SwitchOnVectors();
  WriteMsr(kStar, 8ull << 32);
  WriteMsr(kLstar, reinterpret_cast<uint64_t>(&SystemCallEntry));
  WriteMsr(kMask, 0x200);
  const uint32_t* const module = At<const uint32_t>(At<const uint32_t>(boot)[6]);
  const uint8_t* const file = At<const uint8_t>(module[0]);
  const auto& header = *reinterpret_cast<const ElfHeader*>(file);
  const uint64_t headers_at = Load(file, header);
  Begin(header.entry, MakeStack(At<const char>(module[2]), header, headers_at));
}
