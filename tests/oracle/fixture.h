// A committed fixture: a safetensors file read by code of its own, so that what checks the engine does
// not depend on the engine's reader.
//
// Immutable after Open. Reading a tensor that is missing or of another type ends the test program with
// its name: a fixture is part of the test.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::oracle {

// The folder of committed fixtures, from NIBBLE_SOURCE_DIR.
std::string FixturePath(std::string_view relative);
// The whole file; ends the program when it cannot be read.
std::string ReadFileOrDie(const std::string& path);

class Fixture {
 public:
  static Fixture Open(const std::string& path);

  bool Has(std::string_view name) const;
  std::vector<int64_t> Shape(std::string_view name) const;
  bool IsBF16(std::string_view name) const;
  // F32 as stored; BF16 widened.
  std::vector<float> Floats(std::string_view name) const;
  std::vector<uint16_t> BF16Bits(std::string_view name) const;
  std::vector<uint8_t> Bytes(std::string_view name) const;   // U8
  std::vector<int32_t> Ints(std::string_view name) const;    // I32 or U8
  std::vector<std::string> Names() const;

 private:
  struct Tensor {
    std::string type;
    std::vector<int64_t> shape;
    size_t begin = 0;
    size_t end = 0;
  };
  const Tensor& Find(std::string_view name) const;
  std::string_view Raw(const Tensor& tensor) const;

  std::string path_;
  std::string data_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

float FloatOfBF16(uint16_t bits);
// Round to nearest, ties to even; finite values.
uint16_t BF16OfFloat(float value);

// |a - b| / |b| over all elements, in double.
double RelativeL2(const std::vector<float>& actual, const std::vector<float>& expected);

}  // namespace nibble::oracle
