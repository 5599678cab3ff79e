// Mutated input for everything that reads bytes from outside.
//
// A target is a reader with the inputs it is made for; the driver mutates those and feeds them in.
// A reader may refuse whatever it likes, but it must come back, and what it accepts must hold the
// property the target checks (Require). Seeded: the same (target, seed, run) is the same input, so
// a find replays.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::fuzz {

struct Target {
  std::string name;
  std::vector<std::string> corpus;
  std::vector<std::string> words;  // pieces this format is made of; mutations insert them
  std::function<void(std::string_view input)> run;
};

std::vector<Target> EngineTargets();
std::vector<Target> EdgeTargets();  // server, worker, client

// Ends the program with the sentence; the driver has said which input it was.
void Require(bool holds, std::string_view what);

// The bytes of a file of the repository, at most `limit` of them.
std::string RepositoryFile(std::string_view path, size_t limit = size_t{1} << 16);

// A counter-based source: input `run` of `seed` needs no earlier one.
class Random {
 public:
  Random(uint64_t seed, uint64_t run) : state_(seed * 0x9e3779b97f4a7c15ull + run) { Next(); }
  uint64_t Next();
  uint64_t Below(uint64_t bound) { return bound == 0 ? 0 : Next() % bound; }

 private:
  uint64_t state_;
};

std::string Mutate(const Target& target, Random& random);

}  // namespace nibble::fuzz
