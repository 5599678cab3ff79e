#include "engine/model/base_model.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/model/base_tensors.h"
#include "engine/model/floats.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_write.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/memory_plan.h"
#include "engine/testing/bnb_checkpoint.h"
#include "engine/testing/full_disk.h"
#include "kernels/nf4.h"

namespace nibble::engine {
namespace {

using spec::BasePart;
using spec::Module;
using spec::QuantKind;
using ::testing::HasSubstr;

// A model of two layers with random weights, in HF layout.
const kernels::WeightView& LinearOf(const BaseModel& base, int64_t layer, Module module) {
  return base.view().layers[static_cast<size_t>(layer)].linear[static_cast<int>(module)];
}

class BaseModelTest : public ::testing::Test {
 protected:
  BaseModelTest() { Write(true); }

  void Write(bool tied, const std::string& leave_out = "", const std::string& wrong_shape = "") {
    const std::string config = absl::StrCat(
        R"({"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":)", hidden_, ",",
        R"("intermediate_size":48,"num_hidden_layers":2,"num_attention_heads":4,)",
        R"("num_key_value_heads":2,"vocab_size":20,"max_position_embeddings":64,)",
        R"("rms_norm_eps":1e-5,"hidden_act":"silu","tie_word_embeddings":)",
        tied ? "true" : "false", "}");
    CHECK_OK(WriteFileAtomic(model_.Join("config.json"), config));
    auto parsed = spec::ParseModelConfig(config);
    CHECK_OK(parsed.status());
    config_ = *parsed;
    tensors_.clear();
    values_.clear();
    Random random(4);
    const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
      if (name == leave_out) return;
      if (name == wrong_shape) shape[0] += 1;
      int64_t count = 1;
      for (const int64_t dim : shape) count *= dim;
      auto& values = values_[name];
      for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(random.Unit() - 0.5));
      tensors_.push_back({name, TensorType::kF32, shape, values.data()});
    };
    for (const spec::CheckpointTensor& tensor : spec::CheckpointTensors(config_))
      add(tensor.name, tensor.shape);
    Save();
  }
  void Save() {
    CHECK_OK(WriteFileAtomic(model_.Join("model.safetensors"), SerializeSafetensors(tensors_, {})));
  }
  BaseModelOptions Options(QuantKind quant, bool double_quant = true) {
    BaseModelOptions options;
    options.model_dir = model_.path();
    options.cache_dir = cache_.path();
    options.quant = quant;
    options.double_quant = double_quant;
    options.threads = 2;
    return options;
  }
  std::string Refused() {
    const auto status = BaseModel::Open(Options(QuantKind::kNF4)).status();
    EXPECT_EQ(StatusReason(status), Reason::kModelFileInvalid) << status;
    return std::string(status.message());
  }

  TempDir model_, cache_;
  int64_t hidden_ = 32;
  spec::ModelConfig config_;
  std::vector<TensorToWrite> tensors_;
  std::map<std::string, std::vector<float>> values_;
};

TEST_F(BaseModelTest, CodesAreThoseOfTheKernels) {
  auto base = BaseModel::Open(Options(QuantKind::kNF4));
  ASSERT_TRUE(base.ok()) << base.status();
  EXPECT_FALSE((*base)->cached());
  EXPECT_EQ((*base)->bytes(), spec::LayoutBase(config_, QuantKind::kNF4, true).file_bytes);
  EXPECT_EQ((*base)->bytes(), spec::BaseBytes(config_, QuantKind::kNF4, true));
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (const Module module : spec::ModulesOf(config_)) {
      const auto& source = values_[spec::CheckpointName(config_, BasePart::kCodes, layer, module)];
      const auto count = static_cast<int64_t>(source.size());
      const int64_t blocks = kernels::AbsmaxCount(count, 64);
      std::vector<uint8_t> codes((count + 1) / 2), absmax_codes(blocks);
      std::vector<float> absmax(blocks), nested(kernels::NestedCount(blocks));
      float offset = 0;
      kernels::QuantizeTensor(source.data(), count, kernels::QuantType::kNF4, 64, codes.data(),
                              absmax.data(), nullptr);
      kernels::QuantizeAbsmax(absmax.data(), blocks, absmax_codes.data(), nested.data(), &offset);
      const kernels::WeightView& view = LinearOf(**base, layer, module);
      EXPECT_EQ(std::memcmp(view.data, codes.data(), codes.size()), 0);
      EXPECT_EQ(std::memcmp(view.absmax_codes, absmax_codes.data(), absmax_codes.size()), 0);
      EXPECT_EQ(std::memcmp(view.nested_absmax, nested.data(), nested.size() * 4), 0);
      EXPECT_EQ(view.offset, offset);
      EXPECT_EQ(view.absmax, nullptr);
      EXPECT_EQ(view.n * view.k, count);
      std::vector<float> decoded(source.size());
      kernels::DequantizeRange(view, 0, count, decoded.data());
      for (size_t i = 0; i < source.size(); ++i) EXPECT_NEAR(decoded[i], source[i], 0.09);
      EXPECT_EQ((*base)->view().layers[static_cast<size_t>(layer)].bias[static_cast<int>(module)].data,
                nullptr);
    }
  }
  EXPECT_TRUE((*base)->tied());
  const auto* embedding = static_cast<const uint16_t*>((*base)->view().embedding.data);
  EXPECT_EQ(embedding[7], Bf16FromFloat(values_["model.embed_tokens.weight"][7]));
  const auto* norm = static_cast<const uint16_t*>((*base)->view().layers[1].post_norm.data);
  EXPECT_EQ(norm[31], Bf16FromFloat(values_["model.layers.1.post_attention_layernorm.weight"][31]));
}

TEST_F(BaseModelTest, TheSecondOpenMapsTheSameFile) {
  int64_t calls = 0;
  BaseModelOptions options = Options(QuantKind::kNF4);
  options.progress = [&](int64_t done, int64_t all) { calls += done <= all; };
  auto first = BaseModel::Open(options);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_GT(calls, 10);
  calls = 0;
  auto second = BaseModel::Open(options);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE((*second)->cached());
  EXPECT_EQ(calls, 0);
  EXPECT_EQ((*first)->digest(), (*second)->digest());
  // Other quantization, other weights: another base.
  auto flat = BaseModel::Open(Options(QuantKind::kNF4, false));
  ASSERT_TRUE(flat.ok()) << flat.status();
  EXPECT_NE((*flat)->digest(), (*first)->digest());
  EXPECT_NE(LinearOf(**flat, 0, Module::kQ).absmax, nullptr);
  values_["model.norm.weight"][0] += 1;
  Save();
  auto changed = BaseModel::Open(options);
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_NE((*changed)->digest(), (*first)->digest());
  EXPECT_FALSE((*changed)->cached());
}

TEST_F(BaseModelTest, OtherKindsAndExactMode) {
  Write(/*tied=*/false);
  for (const QuantKind quant :
       {QuantKind::kFP4, QuantKind::kINT4, QuantKind::kINT8, QuantKind::kBF16}) {
    auto base = BaseModel::Open(Options(quant));
    ASSERT_TRUE(base.ok()) << base.status();
    EXPECT_FALSE((*base)->tied());
    const auto& source = values_["model.layers.1.mlp.down_proj.weight"];
    std::vector<float> decoded(source.size());
    const kernels::WeightView& view = LinearOf(**base, 1, Module::kDown);
    kernels::DequantizeRange(view, 0, static_cast<int64_t>(source.size()), decoded.data());
    for (size_t i = 0; i < source.size(); ++i) EXPECT_NEAR(decoded[i], source[i], 0.11);
  }
  BaseModelOptions options = Options(QuantKind::kBF16);
  options.exact = true;
  auto exact = BaseModel::Open(options);
  ASSERT_TRUE(exact.ok()) << exact.status();
  EXPECT_EQ((*exact)->view().embedding.type, kernels::DType::kF32);
  EXPECT_EQ(LinearOf(**exact, 0, Module::kUp).type, kernels::QuantType::kF32);
  EXPECT_EQ(static_cast<const float*>(LinearOf(**exact, 0, Module::kUp).data)[5],
            values_["model.layers.0.mlp.up_proj.weight"][5]);
  // Quantized exactly like the mapped file, with fp32 around it.
  options = Options(QuantKind::kNF4);
  auto mapped = BaseModel::Open(options);
  options.exact = true;
  exact = BaseModel::Open(options);
  ASSERT_TRUE(mapped.ok() && exact.ok());
  const auto& source = values_["model.layers.1.self_attn.v_proj.weight"];
  std::vector<float> a(source.size()), b(source.size());
  kernels::DequantizeRange(LinearOf(**mapped, 1, Module::kV), 0, static_cast<int64_t>(a.size()), a.data());
  kernels::DequantizeRange(LinearOf(**exact, 1, Module::kV), 0, static_cast<int64_t>(b.size()), b.data());
  EXPECT_EQ(a, b);
}

TEST_F(BaseModelTest, FaultsOfTheCheckpointAreNamed) {
  Write(true, "model.layers.1.mlp.up_proj.weight");
  EXPECT_THAT(Refused(), HasSubstr("'model.layers.1.mlp.up_proj.weight' is missing"));
  Write(true, "", "model.layers.0.self_attn.k_proj.weight");
  EXPECT_THAT(Refused(), HasSubstr("has shape [17, 32], config.json asks for [16, 32]"));
  Write(false, "lm_head.weight");
  EXPECT_THAT(Refused(), HasSubstr("'lm_head.weight' is missing"));
  Write(true);
  const float stray[4] = {};
  tensors_.push_back({"model.layers.0.self_attn.q_proj.bias", TensorType::kF32, {4}, stray});
  Save();
  EXPECT_THAT(Refused(), HasSubstr("has no place"));
  Write(true);
  values_["model.layers.1.self_attn.o_proj.weight"][3] = std::numeric_limits<float>::infinity();
  Save();
  EXPECT_THAT(Refused(),
              HasSubstr("'model.layers.1.self_attn.o_proj.weight' holds inf at element 3"));
  // Nothing half made is left behind.
  auto names = ListDir(cache_.path());
  ASSERT_TRUE(names.ok());
  for (const std::string& name : *names) EXPECT_THAT(name, ::testing::StartsWith("digest-"));
  CHECK_OK(RemoveFile(model_.Join("model.safetensors")));
  EXPECT_THAT(Refused(), HasSubstr("neither model.safetensors"));
  CHECK_OK(RemoveFile(model_.Join("config.json")));
  EXPECT_THAT(Refused(), HasSubstr("config.json is missing"));
}

// What a base says of its values, in flat order.
std::vector<float> Decoded(const BaseModel& base) {
  std::vector<float> all;
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (const Module module : spec::ModulesOf(base.config())) {
      const kernels::WeightView& view = LinearOf(base, layer, module);
      const size_t before = all.size();
      all.resize(before + static_cast<size_t>(view.n * view.k));
      kernels::DequantizeRange(view, 0, view.n * view.k, all.data() + before);
    }
  }
  return all;
}

TEST_F(BaseModelTest, ATiledBaseHasTheValuesOfAFlatOne) {
  hidden_ = 128;
  Write(true);
  for (const bool double_quant : {true, false}) {
    for (const QuantKind quant : {QuantKind::kNF4, QuantKind::kFP4, QuantKind::kINT4, QuantKind::kINT8}) {
      BaseModelOptions options = Options(quant, double_quant);
      auto tiled = BaseModel::Open(options);
      ASSERT_TRUE(tiled.ok()) << tiled.status();
      EXPECT_TRUE((*tiled)->tiles());
      EXPECT_EQ(LinearOf(**tiled, 0, Module::kUp).order, kernels::WeightOrder::kTiles);
      EXPECT_EQ(LinearOf(**tiled, 0, Module::kDown).order, kernels::WeightOrder::kFlat);  // 48 inputs
      const TempDir other;
      options.cache_dir = other.path();
      options.tiles = false;
      auto flat = BaseModel::Open(options);
      ASSERT_TRUE(flat.ok()) << flat.status();
      EXPECT_FALSE((*flat)->tiles());
      EXPECT_EQ(LinearOf(**flat, 0, Module::kUp).order, kernels::WeightOrder::kFlat);
      EXPECT_EQ((*flat)->digest(), (*tiled)->digest());
      EXPECT_EQ((*flat)->bytes(), (*tiled)->bytes());
      EXPECT_EQ(Decoded(**flat), Decoded(**tiled));
      // Undone on the way to a device, whatever the pieces.
      const auto want = (*flat)->file();
      for (const int64_t piece : {int64_t{4096}, int64_t{1 << 20}}) {
        std::vector<std::byte> got(want.size());
        for (int64_t at = 0; at < (*tiled)->bytes(); at += piece) {
          (*tiled)->CopyFlat(at, std::min(piece, (*tiled)->bytes() - at), got.data() + at);
        }
        EXPECT_TRUE(std::equal(got.begin() + 4096, got.end(), want.begin() + 4096)) << piece;
      }
    }
  }
}

TEST_F(BaseModelTest, AFlatFileIsTranscodedOnce) {
  hidden_ = 128;
  Write(true);
  BaseModelOptions options = Options(QuantKind::kNF4);
  options.tiles = false;
  auto flat = BaseModel::Open(options);
  ASSERT_TRUE(flat.ok()) << flat.status();
  const std::string path = cache_.Join("base-" + (*flat)->digest());
  const std::string before = *ReadFile(path);
  options.tiles = true;
  {  // No room for two: it is used as it is.
    const FullDisk full(4096);
    auto same = BaseModel::Open(options);
    ASSERT_TRUE(same.ok()) << same.status();
    EXPECT_FALSE((*same)->tiles());
    EXPECT_EQ(Decoded(**same), Decoded(**flat));
  }
  EXPECT_EQ(*ReadFile(path), before);
  auto tiled = BaseModel::Open(options);
  ASSERT_TRUE(tiled.ok()) << tiled.status();
  EXPECT_TRUE((*tiled)->tiles());
  EXPECT_TRUE((*tiled)->cached());
  EXPECT_EQ(Decoded(**tiled), Decoded(**flat));  // whose mapping is still the file of before
  const std::string after = *ReadFile(path);
  EXPECT_NE(after, before);
  // As if made so.
  const TempDir other;
  BaseModelOptions anew = options;
  anew.cache_dir = other.path();
  ASSERT_TRUE(BaseModel::Open(anew).ok());
  EXPECT_EQ(*ReadFile(other.Join("base-" + (*flat)->digest())), after);
  // It stays, also for one who would have made it flat.
  options.tiles = false;
  auto taken = BaseModel::Open(options);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_TRUE((*taken)->tiles());
  EXPECT_EQ(*ReadFile(path), after);
  auto names = ListDir(cache_.path());
  ASSERT_TRUE(names.ok());
  for (const std::string& name : *names) EXPECT_FALSE(name.ends_with(".tmp")) << name;
}

TEST_F(BaseModelTest, CheckpointsOfBitsandbytesAreTakenAsTheyAre) {
  auto plain = BaseModel::Open(Options(QuantKind::kNF4));
  ASSERT_TRUE(plain.ok()) << plain.status();
  // The same model, its linears stored as bitsandbytes does.
  const testing::BnbLinears linears(**plain);
  std::vector<TensorToWrite> stored = linears.tensors;
  for (const TensorToWrite& tensor : tensors_) {
    if (tensor.name.find("_proj.") == std::string::npos) stored.push_back(tensor);
  }
  const auto good = stored;
  tensors_ = stored;
  Save();
  auto taken = BaseModel::Open(Options(QuantKind::kNF4));
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_FALSE((*taken)->cached());
  auto flat = BaseModel::Open(Options(QuantKind::kNF4, false));
  ASSERT_TRUE(flat.ok()) << flat.status();
  for (const Module module : spec::ModulesOf(config_)) {
    const kernels::WeightView& a = LinearOf(**plain, 1, module);
    const kernels::WeightView& b = LinearOf(**taken, 1, module);
    const kernels::WeightView& c = LinearOf(**flat, 1, module);
    const int64_t count = a.n * a.k;
    EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(count / 2)), 0);
    EXPECT_EQ(a.offset, b.offset);
    // Made anew with other scales, the values stay what they were.
    std::vector<float> x(count), y(count), z(count);
    kernels::DequantizeRange(a, 0, count, x.data());
    kernels::DequantizeRange(b, 0, count, y.data());
    kernels::DequantizeRange(c, 0, count, z.data());
    EXPECT_EQ(x, y);
    EXPECT_EQ(x, z);
  }
  // Descriptions that do not fit what they describe.
  const auto without = [&](const std::string& suffix) {
    tensors_.clear();
    for (const TensorToWrite& tensor : good) {
      if (!tensor.name.ends_with(suffix)) tensors_.push_back(tensor);
    }
    Save();
    return Refused();
  };
  EXPECT_THAT(without("layers.0.mlp.up_proj.weight.nested_absmax"),
              HasSubstr(".nested_absmax is missing"));
  EXPECT_THAT(without("layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"),
              HasSubstr("has type U8"));
  const auto with_state = [&](const std::string& state) {
    tensors_ = good;
    for (TensorToWrite& tensor : tensors_) {
      if (!tensor.name.ends_with("layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4"))
        continue;
      tensor.data = state.data();
      tensor.shape = {static_cast<int64_t>(state.size())};
    }
    Save();
    return Refused();
  };
  EXPECT_THAT(with_state("{"), HasSubstr("no JSON object"));
  EXPECT_THAT(with_state(R"({"shape":[32,31],"blocksize":64})"), HasSubstr("asks for [32,32]"));
  EXPECT_THAT(with_state(R"({"shape":[32,32],"blocksize":63})"), HasSubstr("blocksize"));
  EXPECT_THAT(
      with_state(R"({"shape":[32,32],"blocksize":128,"nested_offset":0,"nested_blocksize":256})"),
      HasSubstr(".absmax"));
  EXPECT_THAT(with_state(R"({"shape":[32,32],"blocksize":64,"nested_offset":"x"})"),
              HasSubstr("not supported"));
}

TEST_F(BaseModelTest, AKilledMakerLeavesNothingInTheWay) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    BaseModelOptions options = Options(QuantKind::kNF4);
    options.threads = 1;
    options.progress = [](int64_t done, int64_t) {
      if (done == 12) ::_exit(9);  // half way: the temporary file stays
    };
    (void)BaseModel::Open(options);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 9);
  auto base = BaseModel::Open(Options(QuantKind::kNF4));
  ASSERT_TRUE(base.ok()) << base.status();
  EXPECT_FALSE((*base)->cached());
}

// Who waits for a base that another process makes, which may take half an hour, is let go all the same.
TEST_F(BaseModelTest, WaitingForAnotherMakerIsGivenUp) {
  const auto made = BaseModel::Open(Options(QuantKind::kNF4));
  ASSERT_TRUE(made.ok()) << made.status();
  const std::string name = "base-" + (*made)->digest();
  const TempDir other;
  const int lock = open(other.Join(name + ".tmp").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  ASSERT_EQ(flock(lock, LOCK_EX), 0);
  // Who does not ask would wait for ever, and the test with it: after this long it gets the lock.
  std::atomic<bool> over{false};
  std::thread maker([&] {
    for (int i = 0; i < 1000 && !over; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    close(lock);
  });
  BaseModelOptions options = Options(QuantKind::kNF4);
  options.cache_dir = other.path();
  int asked = 0;
  options.stop = [&] { return ++asked == 2; };
  const absl::Status status = BaseModel::Open(options).status();
  over = true;
  maker.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(asked, 2);
  EXPECT_FALSE(FileExists(other.Join(name)));
}

TEST_F(BaseModelTest, AFullDiskLeavesNothingInTheWay) {
  {
    const FullDisk full(4096);
    const auto base = BaseModel::Open(Options(QuantKind::kNF4));
    EXPECT_EQ(StatusReason(base.status()), Reason::kStorageFull) << base.status();
    const auto names = ListDir(cache_.path());
    ASSERT_TRUE(names.ok());
    for (const std::string& name : *names) EXPECT_TRUE(name.starts_with("digest-")) << name;
  }
  const auto base = BaseModel::Open(Options(QuantKind::kNF4));
  EXPECT_TRUE(base.ok()) << base.status();
}

TEST_F(BaseModelTest, TheCacheFileNamesTheLayoutOfEveryTensor) {
  auto base = BaseModel::Open(Options(QuantKind::kNF4));
  ASSERT_TRUE(base.ok()) << base.status();
  auto bytes = ReadFile(cache_.Join("base-" + (*base)->digest()), int64_t{1} << 30);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  const std::string header = bytes->substr(0, bytes->find('\0'));
  EXPECT_THAT(header, HasSubstr("\nlayout 2\n"));
  for (const char* name : {"embedding", "layers.*.q_proj.codes", "layers.*.down_proj.absmax_codes"})
    EXPECT_THAT(header, HasSubstr(absl::StrCat("\ntensor ", name, " flat 1\n")));
  // Layers are alike, so a line stands for all of them.
  EXPECT_EQ(header.find("layers.0"), std::string::npos);
  hidden_ = 64;
  Write(true);
  base = BaseModel::Open(Options(QuantKind::kNF4));
  ASSERT_TRUE(base.ok()) << base.status();
  bytes = ReadFile(cache_.Join("base-" + (*base)->digest()), int64_t{1} << 30);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  for (const char* line : {"embedding flat 1", "layers.*.q_proj.codes tile 1",
                           "layers.*.q_proj.absmax_codes tile 1", "layers.*.q_proj.nested_absmax flat 1",
                           "layers.*.down_proj.codes flat 1"})
    EXPECT_THAT(*bytes, HasSubstr(absl::StrCat("\ntensor ", line, "\n")));
}

TEST_F(BaseModelTest, ADamagedCacheFileIsMadeAnew) {
  for (const bool cut : {true, false}) {
    std::string path;
    {
      auto base = BaseModel::Open(Options(QuantKind::kNF4));
      ASSERT_TRUE(base.ok()) << base.status();
      path = cache_.Join("base-" + (*base)->digest());
    }
    const std::string sound = *ReadFile(path);
    if (cut) {
      ASSERT_EQ(::truncate(path.c_str(), 5000), 0);
    } else {  // one bit of a weight
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(sound.size()) - 100);
      file.put(static_cast<char>(sound[sound.size() - 100] ^ 0x10));
    }
    ASSERT_NE(*ReadFile(path), sound);
    auto base = BaseModel::Open(Options(QuantKind::kNF4));
    ASSERT_TRUE(base.ok()) << base.status();
    EXPECT_FALSE((*base)->cached());
    EXPECT_EQ(*ReadFile(path), sound);
    auto again = BaseModel::Open(Options(QuantKind::kNF4));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_TRUE((*again)->cached());
  }
}

TEST(RealBases, AreQuantized) {
  const char* root = std::getenv("NIBBLE_TEST_DATA");
  if (root == nullptr) GTEST_SKIP() << "NIBBLE_TEST_DATA names no folder with the collected models";
  TempDir cache;
  for (const char* name : {"stories260K", "stories260K-bf16-sharded", "babyllama-105"}) {
    BaseModelOptions options;
    options.model_dir = absl::StrCat(root, "/models/", name);
    options.cache_dir = cache.path();
    auto base = BaseModel::Open(options);
    ASSERT_TRUE(base.ok()) << name << ": " << base.status();
    EXPECT_TRUE((*base)->tied());
    EXPECT_EQ((*base)->bytes(), spec::BaseBytes((*base)->config(), QuantKind::kNF4, true));
  }
}

}  // namespace
}  // namespace nibble::engine
