#include "tests/oracle/fixture.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace nibble::oracle {
namespace {

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "oracle fixture: %s\n", message.c_str());
  std::abort();
}

template <typename T>
std::vector<T> CopyOf(std::string_view bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace

std::string FixturePath(std::string_view relative) {
  const char* root = std::getenv("NIBBLE_SOURCE_DIR");
  if (root == nullptr) Die("NIBBLE_SOURCE_DIR is not set; run the test through ctest");
  return std::string(root) + "/tests/oracle/fixtures/" + std::string(relative);
}

std::string ReadFileOrDie(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Die("cannot read " + path);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return std::move(bytes).str();
}

Fixture Fixture::Open(const std::string& path) {
  Fixture fixture;
  fixture.path_ = path;
  const std::string file = ReadFileOrDie(path);
  uint64_t header_bytes = 0;
  if (file.size() < 8) Die(path + " is shorter than its header");
  std::memcpy(&header_bytes, file.data(), 8);
  if (header_bytes > file.size() - 8) Die(path + " is shorter than its header");
  const auto header = nlohmann::json::parse(file.substr(8, header_bytes), nullptr, false);
  if (!header.is_object()) Die(path + " has no JSON header");
  fixture.data_ = file.substr(8 + header_bytes);
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    Tensor tensor{value.at("dtype"), value.at("shape"), value.at("data_offsets").at(0),
                  value.at("data_offsets").at(1)};
    if (tensor.begin > tensor.end || tensor.end > fixture.data_.size()) Die(path + ": " + name);
    fixture.tensors_[name] = std::move(tensor);
  }
  return fixture;
}

const Fixture::Tensor& Fixture::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) Die(path_ + " has no tensor " + std::string(name));
  return found->second;
}

std::string_view Fixture::Raw(const Tensor& tensor) const {
  return std::string_view(data_).substr(tensor.begin, tensor.end - tensor.begin);
}

bool Fixture::Has(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

std::vector<int64_t> Fixture::Shape(std::string_view name) const { return Find(name).shape; }

bool Fixture::IsBF16(std::string_view name) const { return Find(name).type == "BF16"; }

std::vector<float> Fixture::Floats(std::string_view name) const {
  const Tensor& tensor = Find(name);
  if (tensor.type == "F32") return CopyOf<float>(Raw(tensor));
  std::vector<float> values;
  for (const uint16_t bits : BF16Bits(name)) values.push_back(FloatOfBF16(bits));
  return values;
}

std::vector<uint16_t> Fixture::BF16Bits(std::string_view name) const {
  const Tensor& tensor = Find(name);
  if (tensor.type != "BF16") Die(path_ + ": " + std::string(name) + " is " + tensor.type);
  return CopyOf<uint16_t>(Raw(tensor));
}

std::vector<uint8_t> Fixture::Bytes(std::string_view name) const {
  const Tensor& tensor = Find(name);
  if (tensor.type != "U8") Die(path_ + ": " + std::string(name) + " is " + tensor.type);
  return CopyOf<uint8_t>(Raw(tensor));
}

std::vector<int32_t> Fixture::Ints(std::string_view name) const {
  const Tensor& tensor = Find(name);
  if (tensor.type == "I32") return CopyOf<int32_t>(Raw(tensor));
  const std::vector<uint8_t> bytes = Bytes(name);
  return std::vector<int32_t>(bytes.begin(), bytes.end());
}

std::vector<std::string> Fixture::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

float FloatOfBF16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t BF16OfFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

double RelativeL2(const std::vector<float>& actual, const std::vector<float>& expected) {
  if (actual.size() != expected.size()) return std::nan("");
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    difference += (double{actual[i]} - expected[i]) * (double{actual[i]} - expected[i]);
    norm += double{expected[i]} * expected[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace nibble::oracle
