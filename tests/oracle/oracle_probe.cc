// What the live comparisons ask of the engine: reads one request (JSON) from a file, writes the answer.
//
//   oracle_probe REQUEST.json
//
// {"op": "nf4", "input": raw f32 file, "out": prefix}
//     writes PREFIX.codes, PREFIX.absmax, PREFIX.absmax_nested (raw), element order flat
// {"op": "logits", "model", "cache", "adapter", "table", "quant": "nf4" | "bf16", "documents", "out"}
//     raw f32 [tokens, vocabulary] of the documents, one behind the other, to "out"
// {"op": "one_by_one", "model", "cache", "device", "documents", "out"}
//     the same over the NF4 base as generation comes by them, a token at a time, to "out".one, and many at
//     once, to "out".many; "device" as nibble-engine takes it ("cpu:avx2")
// {"op": "bodies"}
//     prints such devices: the bodies of this machine, one a line
// {"op": "steps", "model", "cache", "adapter", "table", "learning_rate", "max_grad_norm", "tokens",
//  "steps": [[[ids]]], "out": adapter directory}
//     prints one JSON line a step, then writes the trained adapter
// {"op": "tokenize", "model", "input": file with one JSON string a line, "out": ids, one array a line}
//
// "table" is "ref" or "cpu".

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/decoder.h"
#include "engine/device.h"
#include "engine/model/adapter.h"
#include "engine/text/tokenizer.h"
#include "kernels/nf4.h"
#include "kernels/tables.h"
#include "tests/oracle/fixture.h"
#include "tests/oracle/rig.h"

namespace nibble::oracle {
namespace {

using nlohmann::json;

template <typename T>
void WriteRaw(const std::string& path, const std::vector<T>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(T)));
  CHECK(file.good());
}

absl::Status Nf4(const json& request) {
  const std::string bytes = ReadFileOrDie(request.at("input"));
  const auto* values = reinterpret_cast<const float*>(bytes.data());
  const int64_t count = static_cast<int64_t>(bytes.size() / sizeof(float));
  constexpr int64_t kBlock = 64;
  std::vector<uint8_t> codes(kernels::WeightBytes(kernels::QuantType::kNF4, count));
  std::vector<float> absmax(kernels::AbsmaxCount(count, kBlock));
  kernels::QuantizeTensor(values, count, kernels::QuantType::kNF4, kBlock, codes.data(), absmax.data(),
                          nullptr);
  const int64_t blocks = static_cast<int64_t>(absmax.size());
  std::vector<uint8_t> absmax_codes(blocks);
  std::vector<float> nested(kernels::NestedCount(blocks)), decoded(blocks);
  kernels::WeightView w{.absmax_codes = absmax_codes.data(),
                        .nested_absmax = nested.data(),
                        .nested_map = kernels::SignedDynamicMap()};
  kernels::QuantizeAbsmax(absmax.data(), blocks, absmax_codes.data(), nested.data(), &w.offset);
  for (int64_t b = 0; b < blocks; ++b) decoded[b] = kernels::WeightAbsmax(w, b);
  const std::string out = request.at("out");
  WriteRaw(out + ".codes", codes);
  WriteRaw(out + ".absmax", absmax);
  WriteRaw(out + ".absmax_nested", decoded);
  return absl::OkStatus();
}

RigOptions OptionsOf(const json& request) {
  RigOptions options;
  options.model_dir = request.at("model");
  options.cache_dir = request.at("cache");
  options.adapter_dir = request.value("adapter", "");
  options.table = request.at("table") == "ref" ? &kernels::RefTable() : &kernels::CpuTable();
  options.quant =
      request.value("quant", "nf4") == "bf16" ? spec::QuantKind::kBF16 : spec::QuantKind::kNF4;
  options.tokens = request.value("tokens", 256);
  options.max_grad_norm = request.value("max_grad_norm", 1.0);
  return options;
}

absl::Status LogitsOf(const json& request) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Rig> rig, Rig::Open(OptionsOf(request)));
  std::vector<float> all;
  for (const std::vector<int32_t>& ids : request.at("documents").get<Documents>()) {
    const std::vector<float> logits = rig->Logits({ids});
    all.insert(all.end(), logits.begin(), logits.end());
  }
  WriteRaw(request.at("out"), all);
  return absl::OkStatus();
}

absl::Status Bodies() {
  for (const std::string_view body : kernels::CpuBodies())
    std::printf("cpu:%s\n", std::string(body).c_str());
  return absl::OkStatus();
}

absl::Status OneByOne(const json& request) {
  engine::DeviceOptions options;
  options.device = request.at("device");
  options.base.model_dir = request.at("model");
  options.base.cache_dir = request.at("cache");
  ASSIGN_OR_RETURN(const auto backend, engine::OpenBackend(options.device, 1));
  ASSIGN_OR_RETURN(const auto device,
                   engine::Device::Open(options, *backend, engine::MeasureProfile(*backend)));
  const Documents documents = request.at("documents");
  size_t longest = 0;
  for (const std::vector<int32_t>& ids : documents) longest = std::max(longest, ids.size());
  const auto most = static_cast<int64_t>(longest);
  ASSIGN_OR_RETURN(const auto decoder, engine::Decoder::Make(*device, nullptr, most, most));
  std::vector<float> one, many;
  for (const std::vector<int32_t>& ids : documents) {
    const std::vector<float> together = decoder->AllLogits(ids);
    many.insert(many.end(), together.begin(), together.end());
    decoder->Reset();
    for (const int32_t& id : ids) {
      const std::span<const float> logits = decoder->Feed({&id, 1});
      one.insert(one.end(), logits.begin(), logits.end());
    }
  }
  const std::string out = request.at("out");
  WriteRaw(out + ".one", one);
  WriteRaw(out + ".many", many);
  return absl::OkStatus();
}

absl::Status Steps(const json& request) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Rig> rig, Rig::Open(OptionsOf(request)));
  for (const json& documents : request.at("steps")) {
    const Rig::StepRow row = rig->Step(documents.get<Documents>(), request.at("learning_rate"));
    std::printf("%s\n", json{{"loss", row.loss}, {"grad_norm", row.grad_norm},
                             {"target_tokens", row.target_tokens}}.dump().c_str());
  }
  const engine::Adapter trained = rig->TrainedAdapter();
  engine::AdapterExport out{.config = trained.config, .model = rig->model()};
  for (const engine::AdapterPair& pair : trained.pairs) {
    out.pairs.push_back({pair.layer, pair.module, pair.a.data(), pair.b.data()});
  }
  out.config.base_model_name = request.at("model");
  out.base_digest = rig->base().digest();
  return engine::ExportAdapter(request.at("out"), out).status();
}

absl::Status Tokenize(const json& request) {
  ASSIGN_OR_RETURN(const engine::Tokenizer tokenizer, engine::Tokenizer::Load(request.at("model")));
  std::ifstream lines(std::string(request.at("input")));
  std::ofstream out(std::string(request.at("out")));
  for (std::string line; std::getline(lines, line);) {
    const std::string text = json::parse(line);
    out << json(tokenizer.Encode(text, request.value("add_special", false))).dump() << "\n";
  }
  return absl::OkStatus();
}

absl::Status Run(const std::string& path) {
  const json request = json::parse(ReadFileOrDie(path));
  const std::string op = request.at("op");
  if (op == "nf4") return Nf4(request);
  if (op == "logits") return LogitsOf(request);
  if (op == "bodies") return Bodies();
  if (op == "one_by_one") return OneByOne(request);
  if (op == "steps") return Steps(request);
  if (op == "tokenize") return Tokenize(request);
  return absl::InvalidArgumentError("unknown op");
}

}  // namespace
}  // namespace nibble::oracle

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: oracle_probe REQUEST.json\n");
    return 2;
  }
  try {
    const absl::Status status = nibble::oracle::Run(argv[1]);
    if (status.ok()) return 0;
    std::fprintf(stderr, "oracle_probe: %s\n", status.ToString().c_str());
  } catch (const std::exception& error) {   // a request that is not what the top of this file says
    std::fprintf(stderr, "oracle_probe: %s\n", error.what());
  }
  return 1;
}
