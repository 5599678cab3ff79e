#include "engine/model/safetensors.h"
#include "engine/model/safetensors_write.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/model/floats.h"

namespace nibble::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string FileOf(std::string_view header, std::string_view data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return absl::StrCat(out, std::string(header), std::string(data));
}

std::string TwoTensors() {
  static const float a[6] = {1, 2, 3, 4, 5, 6};
  static const uint16_t b[2] = {0x3F80, 0xC000};
  return SerializeSafetensors(
      {{"b", TensorType::kBF16, {2}, b}, {"a", TensorType::kF32, {2, 3}, a}}, {{"format", "pt"}});
}

absl::Status OpenBytes(const std::string& bytes) {
  TempDir dir;
  CHECK_OK(WriteFileAtomic(dir.Join("x.safetensors"), bytes));
  return SafetensorsFile::Open(dir.Join("x.safetensors")).status();
}

TEST(Safetensors, WhatIsWrittenIsRead) {
  TempDir dir;
  CHECK_OK(WriteFileAtomic(dir.Join("x.safetensors"), TwoTensors()));
  auto file = SafetensorsFile::Open(dir.Join("x.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  const TensorInfo* a = (*file)->Find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_THAT(a->shape, ElementsAre(2, 3));
  float values[6];
  ASSERT_TRUE((*file)->ReadF32(*a, values).ok());
  EXPECT_THAT(values, ElementsAre(1, 2, 3, 4, 5, 6));
  const TensorInfo* b = (*file)->Find("b");
  ASSERT_NE(b, nullptr);
  ASSERT_TRUE((*file)->ReadF32(*b, values).ok());
  EXPECT_EQ(values[0], 1.0f);
  EXPECT_EQ(values[1], -2.0f);
  float second = 0;
  ASSERT_TRUE((*file)->Read(*a, 4, 4, &second).ok());
  EXPECT_EQ(second, 2.0f);
  EXPECT_EQ((*file)->Find("c"), nullptr);
  EXPECT_EQ(a->offset % 8, 0);
}

TEST(Safetensors, HalfPrecisionIsWidenedExactly) {
  const uint16_t half[5] = {0x3C00, 0xC000, 0x0001, 0x7C00, 0x03FF};
  TempDir dir;
  CHECK_OK(WriteFileAtomic(dir.Join("x.safetensors"),
                           SerializeSafetensors({{"h", TensorType::kF16, {5}, half}}, {})));
  auto file = SafetensorsFile::Open(dir.Join("x.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  float values[5];
  ASSERT_TRUE((*file)->ReadF32(*(*file)->Find("h"), values).ok());
  EXPECT_THAT(values, ElementsAre(1.0f, -2.0f, 0x1p-24f, std::numeric_limits<float>::infinity(),
                                  1023 * 0x1p-24f));
}

TEST(Floats, Bf16RoundsToNearestEven) {
  EXPECT_EQ(Bf16FromFloat(1.0f), 0x3F80);
  EXPECT_EQ(Bf16FromFloat(1.00390625f), 0x3F80);  // half way, to even
  EXPECT_EQ(Bf16FromFloat(1.01171875f), 0x3F82);  // half way, to even, upwards
  EXPECT_EQ(Bf16FromFloat(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_TRUE(std::isnan(FloatFromBf16(Bf16FromFloat(std::nanf("")))));
}

struct BadCase {
  std::string name;
  std::string header;
  std::string data;
  std::string message;
};

TEST(Safetensors, BadHeadersAreRefusedByName) {
  const std::string four(4, '\0');
  const BadCase cases[] = {
      {"not JSON", "{\"a\":", "", "not valid JSON"},
      {"no brace", "[1]", "", "does not begin with '{'"},
      {"hole", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})", four, "hole"},
      {"overlap",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       four, "overlapping"},
      {"too long", R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", four, "truncated"},
      {"left over", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", four, "take 2"},
      {"size", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", four, "need 8 bytes"},
      {"overflow", R"({"a":{"dtype":"F32","shape":[9223372036854775807,2],"data_offsets":[0,4]}})",
       four, "more than 2^63"},
      {"negative", R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", four,
       "whole number"},
      {"backwards", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", four,
       "begin <= end"},
      {"dtype", R"({"a":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}})", four, "'F9'"},
      {"twice",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}})",
       four, "twice"},
      {"field twice", R"({"a":{"dtype":"U8","shape":[4],"shape":[4],"data_offsets":[0,4]}})", four,
       "twice"},
      {"missing field", R"({"a":{"dtype":"U8","shape":[4]}})", four, "needs dtype"},
      {"rank", R"({"a":{"dtype":"U8","shape":[4,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})", four,
       "dimensions"},
      {"metadata", R"({"__metadata__":{"a":1}})", "", "no string"},
      {"depth", R"({"a":{"dtype":[[[[1]]]]}})", "", "deeper"},
      {"long name", absl::StrCat("{\"", std::string(513, 'n'), "\":{}}"), "", "513 bytes"},
  };
  for (const BadCase& c : cases) {
    const absl::Status status = OpenBytes(FileOf(c.header, c.data));
    EXPECT_EQ(StatusReason(status), Reason::kModelFileInvalid) << c.name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message)) << c.name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("x.safetensors")) << c.name;
  }
}

TEST(Safetensors, LyingLengthsAreRefusedBeforeAnythingIsAllocated) {
  EXPECT_THAT(std::string(OpenBytes("1234").message()), HasSubstr("has 4 bytes"));
  EXPECT_THAT(std::string(OpenBytes(std::string(8, '\xFF') + "{}").message()),
              HasSubstr("bound is"));
  std::string truncated = TwoTensors();
  truncated.resize(20);
  EXPECT_THAT(std::string(OpenBytes(truncated).message()), HasSubstr("truncated"));
  truncated = TwoTensors();
  truncated.pop_back();
  EXPECT_THAT(std::string(OpenBytes(truncated).message()), HasSubstr("truncated"));
}

// Whatever happens to the bytes, Open answers with a file that is consistent or an error.
TEST(Safetensors, MutatedFilesNeverBreakTheReader) {
  const std::string good = TwoTensors();
  TempDir dir;
  const std::string path = dir.Join("x.safetensors");
  Random random(7);
  int accepted = 0;
  for (int round = 0; round < 600; ++round) {
    std::string bytes = good;
    const int edits = 1 + static_cast<int>(random.Below(3));
    for (int e = 0; e < edits; ++e) {
      const size_t at = random.Below(bytes.size());
      switch (random.Below(4)) {
        case 0:
          bytes[at] = static_cast<char>(random.Below(256));
          break;
        case 1:
          bytes.erase(at, 1 + random.Below(4));
          break;
        case 2:
          bytes.insert(at, 1, "0123456789[]{},:\""[random.Below(17)]);
          break;
        default:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.Below(8)));
          break;
      }
      if (bytes.empty()) bytes = "x";
    }
    std::ofstream(path, std::ios::binary) << bytes;  // no fsync: hundreds of them
    auto file = SafetensorsFile::Open(path);
    if (!file.ok()) {
      EXPECT_EQ(StatusReason(file.status()), Reason::kModelFileInvalid) << file.status();
      continue;
    }
    ++accepted;
    for (const auto& [name, tensor] : (*file)->tensors()) {
      std::string out(static_cast<size_t>(tensor.size_bytes), '\0');
      EXPECT_TRUE((*file)->Read(tensor, 0, tensor.size_bytes, out.data()).ok());
    }
  }
  EXPECT_GT(accepted, 0);  // edits of data bytes leave a valid file
  EXPECT_LT(accepted, 600);
}

TEST(Checkpoint, ShardsAndTheirFaults) {
  TempDir dir;
  EXPECT_THAT(std::string(Checkpoint::Open(dir.path()).status().message()), HasSubstr("neither"));
  const float one = 1, two = 2;
  const auto write = [&](const std::string& name, const std::string& bytes) {
    CHECK_OK(WriteFileAtomic(dir.Join(name), bytes));
  };
  write("m-1.safetensors", SerializeSafetensors({{"a", TensorType::kF32, {1}, &one}}, {}));
  write(
      "model.safetensors.index.json",
      R"({"metadata":{"total_size":8},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  auto opened = Checkpoint::Open(dir.path());
  EXPECT_EQ(StatusReason(opened.status()), Reason::kModelFileInvalid);
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("m-2.safetensors: is missing"));
  write("m-2.safetensors", SerializeSafetensors({{"c", TensorType::kF32, {1}, &two}}, {}));
  EXPECT_THAT(std::string(Checkpoint::Open(dir.path()).status().message()), HasSubstr("'b'"));
  write("m-2.safetensors", SerializeSafetensors({{"b", TensorType::kF32, {1}, &two}}, {}));
  opened = Checkpoint::Open(dir.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_THAT((*opened)->Names(), ElementsAre("a", "b"));
  float value = 0;
  ASSERT_TRUE((*opened)->ReadF32(*(*opened)->Find("b"), &value).ok());
  EXPECT_EQ(value, 2.0f);
  write("model.safetensors.index.json", R"({"weight_map":{"a":"../m-1.safetensors"}})");
  EXPECT_THAT(std::string(Checkpoint::Open(dir.path()).status().message()),
              HasSubstr("not the name of a file"));
}

TEST(Checkpoint, RealModels) {
  const char* root = std::getenv("NIBBLE_TEST_DATA");
  if (root == nullptr) GTEST_SKIP() << "NIBBLE_TEST_DATA names no folder with the collected models";
  auto single = Checkpoint::Open(absl::StrCat(root, "/models/stories260K"));
  auto sharded = Checkpoint::Open(absl::StrCat(root, "/models/stories260K-bf16-sharded"));
  ASSERT_TRUE(single.ok()) << single.status();
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  EXPECT_EQ((*single)->Names(), (*sharded)->Names());
  EXPECT_EQ((*sharded)->Paths().size(), 2u);
  for (const std::string& name : (*single)->Names()) {
    const TensorInfo* a = (*single)->Find(name);
    const TensorInfo* b = (*sharded)->Find(name);
    ASSERT_EQ(a->shape, b->shape);
    std::vector<float> wide(a->Elements()), narrow(a->Elements());
    ASSERT_TRUE((*single)->ReadF32(*a, wide.data()).ok());
    ASSERT_TRUE((*sharded)->ReadF32(*b, narrow.data()).ok());
    for (size_t i = 0; i < wide.size(); ++i) {
      ASSERT_EQ(FloatFromBf16(Bf16FromFloat(wide[i])), narrow[i]) << name << " " << i;
    }
  }
}

}  // namespace
}  // namespace nibble::engine
