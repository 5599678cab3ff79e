// nibble-bench-generate: one stream of generation at the shape of a known model, beside what reading the
// same bytes from memory takes.
//
//   nibble-bench-generate --shape 1.1b --threads 2 --length 512 --tokens 8 [--order flat]
//
// A token is every kernel call of the decoder on a base of random weights: norms, seven linear layers of one
// row, attention over `length` cached tokens, logits. Reading memory is measured before every token, by as
// many threads; the share is of that.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/device.h"
#include "kernels/cpu/workspace.h"
#include "kernels/nf4.h"
#include "kernels/parallel.h"
#include "tests/bench/flags.h"
#include "tests/bench/random_base.h"

namespace nibble::bench {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Bytes a second of reading more than the caches hold.
double ReadRate(kernels::ThreadPool* pool, std::span<const uint64_t> memory) {
  constexpr int64_t kPiece = 1 << 17;
  std::vector<uint64_t> out(memory.size() / kPiece);
  const double began = Seconds();
  kernels::RunPieces(pool, static_cast<int64_t>(out.size()), [&](int64_t piece, int) {
    uint64_t sums[16] = {};
    const uint64_t* at = memory.data() + piece * kPiece;
    for (int64_t i = 0; i < kPiece; i += 16)
      for (int64_t j = 0; j < 16; ++j) sums[j] ^= at[i + j];
    for (const uint64_t sum : sums) out[static_cast<size_t>(piece)] ^= sum;
  });
  const double seconds = Seconds() - began;
  asm volatile("" : : "r"(out.data()) : "memory");
  return 8.0 * static_cast<double>(memory.size()) / seconds;
}

double WeightBytes(const kernels::WeightView& w) {
  const int64_t count = w.n * w.k, blocks = kernels::AbsmaxCount(count, w.block);
  const int64_t scales = !kernels::IsQuantized(w.type) ? 0 : w.absmax != nullptr ? 4 * blocks : blocks;
  return static_cast<double>(kernels::WeightBytes(w.type, count) + scales);
}

// The buffers and calls of one token.
class Stream {
 public:
  Stream(const kernels::KernelTable& table, const spec::ModelConfig& model, const engine::BaseView& base,
         kernels::Context* context, int64_t length)
      : table_(table), model_(model), base_(base), context_(context), length_(length),
        x_(Room(model)), h_(x_), q_(x_), o_(x_), gate_(x_), up_(x_),
        keys_(static_cast<size_t>(length * model.kv_heads * model.head_dim), 0x3C00),
        logits_(static_cast<size_t>(model.vocab_size)) {}

  void Token() {
    for (const engine::BaseView::Layer& layer : base_.layers) {
      Norm(layer.input_norm);
      Linear(layer, spec::Module::kQ, h_, q_);
      Linear(layer, spec::Module::kK, h_, up_);
      Linear(layer, spec::Module::kV, h_, up_);
      kernels::AttentionArgs args;
      args.heads = model_.heads;
      args.kv_heads = model_.kv_heads;
      args.head_dim = model_.head_dim;
      args.scale = 0.1f;
      table_.attention_decode(context_, o_.data(), q_.data(), keys_.data(), keys_.data(), length_, args);
      Linear(layer, spec::Module::kO, o_, h_);
      Norm(layer.post_norm);
      Linear(layer, spec::Module::kGate, h_, gate_);
      Linear(layer, spec::Module::kUp, h_, up_);
      table_.gated_forward(context_, gate_.data(), gate_.data(), up_.data(),
                           {.width = model_.intermediate_size});
      Linear(layer, spec::Module::kDown, gate_, h_);
    }
    table_.logits(context_, logits_.data(), x_.data(), base_.head, 1, model_.hidden_size, model_.vocab_size,
                  0.0f);
  }

  double Bytes() const {
    double bytes = 2.0 * static_cast<double>(model_.vocab_size * model_.hidden_size);
    for (const engine::BaseView::Layer& layer : base_.layers) {
      for (const kernels::WeightView& w : layer.linear) bytes += WeightBytes(w);
      bytes += 4.0 * static_cast<double>(keys_.size());
    }
    return bytes;
  }

 private:
  static std::vector<uint16_t> Room(const spec::ModelConfig& model) {
    return std::vector<uint16_t>(static_cast<size_t>(std::max(model.hidden_size, model.intermediate_size)),
                                 0x3C00);
  }
  void Norm(const kernels::ParamView& weight) {
    table_.rmsnorm_forward(context_, h_.data(), nullptr, x_.data(), weight, 1, model_.hidden_size, 1e-5f, 0);
  }
  void Linear(const engine::BaseView::Layer& layer, spec::Module module, const std::vector<uint16_t>& in,
              std::vector<uint16_t>& out) {
    kernels::LinearArgs args;
    args.m = 1;
    args.w = layer.linear[static_cast<int>(module)];
    table_.linear_forward(context_, out.data(), in.data(), args);
  }

  const kernels::KernelTable& table_;
  const spec::ModelConfig& model_;
  const engine::BaseView& base_;
  kernels::Context* context_;
  int64_t length_;
  std::vector<uint16_t> x_, h_, q_, o_, gate_, up_, keys_;
  std::vector<float> logits_;
};

absl::Status Run(const Flags& flags) {
  const std::string shape = Text(flags, "shape", "1.1b");
  const int threads = static_cast<int>(Number(flags, "threads", 2));
  const int64_t length = Number(flags, "length", 512);
  const spec::ModelConfig model = NamedShape(shape, Number(flags, "layers", 0));
  if (model.layers == 0) return absl::InvalidArgumentError("--shape: demo, 135m, 1.1b, 7b or 13b");
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Backend> backend, engine::OpenBackend("cpu", threads));
  ASSIGN_OR_RETURN(const RandomBase base,
                   RandomBase::Make(*backend, model, spec::QuantKind::kNF4, true, 1,
                                    Text(flags, "order", "tiles") != "flat"));
  kernels::Context& context = backend->context();
  context.workspace_bytes = int64_t{8} << 20;
  context.workspace = backend->Allocate(context.workspace_bytes);
  if (context.workspace == nullptr) return absl::ResourceExhaustedError("no memory");
  // Of the backend as the base is, so that both are in pages of one size.
  constexpr int64_t kReadBytes = int64_t{256} << 20;
  void* const read = backend->Allocate(kReadBytes);
  if (read == nullptr) return absl::ResourceExhaustedError("no memory");
  backend->Fill(read, 1, kReadBytes);
  const std::span<const uint64_t> memory(static_cast<const uint64_t*>(read), kReadBytes / 8);
  Stream stream(backend->table(), model, base.view(), &context, length);
  stream.Token();
  std::vector<double> tokens, shares, reads;
  for (int64_t i = 0; i < Number(flags, "tokens", 8); ++i) {
    reads.push_back(ReadRate(context.pool, memory));
    const double began = Seconds();
    stream.Token();
    const double seconds = Seconds() - began;
    tokens.push_back(1 / seconds);
    shares.push_back(stream.Bytes() / seconds / reads.back());
  }
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  const nlohmann::json line = {{"shape", shape},
                               {"body", backend->table().body},
                               {"threads", threads},
                               {"length", length},
                               {"tokens_per_second", median(tokens)},
                               {"bytes_per_token", stream.Bytes()},
                               {"read_bytes_per_second", median(reads)},
                               {"share", median(shares)}};
  std::printf("%s\n", line.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  return nibble::bench::RunMain("nibble-bench-generate", argc, argv, nibble::bench::Run);
}
