// PlanJob over real gRPC: random models and recipes get a plan whose promises hold, or a refusal that
// names what is wrong; absurd sizes are refused by field and bound. NIBBLE_FULL=1 takes 2,000 instead of 40.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/status.h"
#include "nibble/v1/job.grpc.pb.h"
#include "nibble/worker/v1/worker.grpc.pb.h"
#include "server/core/excerpt.h"
#include "server/core/known_cards.h"
#include "server/plan_desk.h"
#include "server/testing/absurd_specs.h"
#include "server/testing/served.h"

namespace nibble::server {
namespace {

using testing::HasSubstr;

// The refusal as the server meant it.
absl::Status Decoded(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const Details details = DetailsOf(status);
  Error error(ReasonFromName(details.info.reason()), details.status.message());
  for (const auto& v : details.bad.field_violations()) error.Violation(v.field(), v.description());
  return error.ToStatus();
}

class PlanJobTest : public ServedTest {
 protected:
  void SetUp() override {
    ServedTest::SetUp();
    jobs_ = v1::JobService::NewStub(channel_);
  }

  absl::StatusOr<v1::PlanJobResponse> Plan(const v1::PlanJobRequest& request) {
    grpc::ClientContext context;
    v1::PlanJobResponse response;
    RETURN_IF_ERROR(Decoded(jobs_->PlanJob(&context, request, &response)));
    return response;
  }

 private:
  std::unique_ptr<v1::JobService::Stub> jobs_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t Below(int64_t bound) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(bound)); }
  bool OneIn(int64_t n) { return Below(n) == 0; }
  template <typename T>
  T Of(std::initializer_list<T> values) {
    return values.begin()[Below(static_cast<int64_t>(values.size()))];
  }

 private:
  std::mt19937_64 engine_;
};

std::string RandomConfig(Random& random) {
  const int64_t kv_heads = random.Of<int64_t>({1, 2, 4, 8});
  const int64_t heads = kv_heads * random.Of<int64_t>({1, 2, 4});
  const int64_t head_dim = random.Of<int64_t>({32, 64, 128});
  return absl::StrFormat(
      R"({"model_type":"%s","vocab_size":%d,"hidden_size":%d,"intermediate_size":%d,"head_dim":%d,)"
      R"("num_hidden_layers":%d,"num_attention_heads":%d,"num_key_value_heads":%d,)"
      R"("max_position_embeddings":%d,"tie_word_embeddings":%s})",
      random.Of<const char*>({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"}),
      100 + random.Below(150'000), heads * head_dim, 64 * (1 + random.Below(200)), head_dim,
      1 + random.Below(12), heads, kv_heads, random.Of<int64_t>({256, 2048, 32768}),
      random.Of<const char*>({"true", "false"}));
}

// Mostly sensible; now and then one field is not.
v1::JobSpec RandomSpec(Random& random, const std::string& config) {
  v1::JobSpec spec;
  spec.mutable_lora()->set_r(random.OneIn(30) ? -3 : static_cast<int32_t>(1 + random.Below(128)));
  std::vector<const char*> modules = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                      "gate_proj", "up_proj", "down_proj"};
  if (config.find("phi3") != std::string::npos) modules = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"};
  for (const char* module : modules) {
    if (random.OneIn(3)) spec.mutable_lora()->add_target_modules(module);
  }
  spec.mutable_quantization()->set_type(random.Of<const char*>({"nf4", "fp4", "int4", "int8", "bf16"}));
  spec.mutable_quantization()->set_double_quant(random.OneIn(2));
  spec.mutable_optimizer()->set_type(random.Of<const char*>({"adamw", "adamw8bit"}));
  v1::TrainingSpec* training = spec.mutable_training();
  training->set_micro_batch_size(random.OneIn(30) ? 0 : static_cast<int32_t>(1 << random.Below(11)));
  training->set_gradient_accumulation_steps(static_cast<int32_t>(1 + random.Below(8)));
  training->set_recompute(random.Of<const char*>({"none", "keep_gemm_outputs", "full"}));
  if (random.OneIn(2)) {
    spec.mutable_data()->set_sequence_len(random.OneIn(20) ? 1 << 30
                                                           : static_cast<int32_t>(8 + random.Below(4096)));
  }
  return spec;
}

// Applies "training.micro_batch_size" = "4" and the like by name.
void Apply(const v1::SpecChange& change, v1::JobSpec& spec) {
  google::protobuf::Message* part = &spec;
  const google::protobuf::FieldDescriptor* field = nullptr;
  for (absl::string_view name : absl::StrSplit(change.field(), '.')) {
    if (field != nullptr) part = part->GetReflection()->MutableMessage(part, field);
    field = part->GetDescriptor()->FindFieldByName(std::string(name));
    ASSERT_NE(field, nullptr) << change.field();
  }
  const auto* reflection = part->GetReflection();
  if (field->is_repeated()) {
    reflection->ClearField(part, field);
    for (absl::string_view item : absl::StrSplit(change.value(), ',')) {
      reflection->AddString(part, field, std::string(item));
    }
  } else if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_INT32) {
    reflection->SetInt32(part, field, std::stoi(change.value()));
  } else if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_BOOL) {
    reflection->SetBool(part, field, change.value() == "true");
  } else {
    reflection->SetString(part, field, change.value());
  }
}

void ExpectSound(const v1::DeviceFit& fit) {
  if (!fit.refusal().empty()) {  // more tokens than a GPU counts
    EXPECT_THAT(fit.refusal(), HasSubstr("a GPU takes at most"));
    EXPECT_EQ(fit.verdict(), v1::DeviceFit::NEVER);
    return;
  }
  const v1::MemoryPlan& plan = fit.plan();
  EXPECT_GT(plan.base_bytes(), 0);
  EXPECT_GT(plan.step_bytes(), 0);
  EXPECT_GE(plan.total_bytes(), plan.lower_bound_bytes());
  EXPECT_GE(plan.total_bytes(),
            plan.base_bytes() + plan.persistent_bytes() + plan.step_bytes() + plan.fixed_bytes());
  const bool never = fit.verdict() == v1::DeviceFit::NEVER;
  EXPECT_EQ(never, plan.total_bytes() > fit.capacity_bytes());
  EXPECT_EQ(fit.shortfall_bytes(), never ? plan.total_bytes() - fit.capacity_bytes() : 0);
  for (const v1::Suggestion& s : fit.suggestions()) {
    EXPECT_LE(s.total_bytes(), fit.capacity_bytes());
    EXPECT_EQ(s.saved_bytes(), plan.total_bytes() - s.total_bytes());
    EXPECT_FALSE(s.cost().empty());
  }
}

TEST_F(PlanJobTest, RandomModelsAndRecipesGetASoundPlanOrAClearRefusal) {
  const char* full = std::getenv("NIBBLE_FULL");
  const int cases = full != nullptr && std::string(full) == "1" ? 2'000 : 40;
  int planned = 0, refused = 0, mended = 0;
  for (int seed = 0; seed < cases; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Random random(static_cast<uint64_t>(seed));
    v1::PlanJobRequest request;
    request.set_model_config_json(RandomConfig(random));
    *request.mutable_spec() = RandomSpec(random, request.model_config_json());
    const auto plan = Plan(request);
    if (!plan.ok()) {
      ++refused;
      EXPECT_EQ(StatusReason(plan.status()), Reason::kSpecInvalid) << plan.status();
      ASSERT_FALSE(StatusViolations(plan.status()).empty()) << plan.status();
      EXPECT_TRUE(StatusViolations(plan.status())[0].field.starts_with("spec.")) << plan.status();
      continue;
    }
    ++planned;
    ASSERT_EQ(plan->fits_size(), 4);
    for (const v1::DeviceFit& fit : plan->fits()) ExpectSound(fit);
    // What is said to fit does: the dearest suggestion of the smallest card, planned as a recipe.
    if (plan->fits(1).suggestions_size() == 0) continue;
    const v1::DeviceFit& small = plan->fits(1);
    const v1::Suggestion& last = small.suggestions(small.suggestions_size() - 1);
    v1::PlanJobRequest again = request;
    for (const v1::SpecChange& change : last.changes()) Apply(change, *again.mutable_spec());
    const auto better = Plan(again);
    ASSERT_TRUE(better.ok()) << better.status() << " after " << last.description();
    for (const v1::DeviceFit& fit : better->fits()) {
      if (fit.worker() != small.worker()) continue;
      EXPECT_NE(fit.verdict(), v1::DeviceFit::NEVER) << last.description();
      EXPECT_EQ(fit.plan().total_bytes(), last.total_bytes()) << last.description();
    }
    ++mended;
  }
  EXPECT_GT(planned, cases / 2);
  EXPECT_GT(refused, 0);
  EXPECT_GT(mended, 0);
}

constexpr char kLarge[] =
    R"({"model_type":"llama","vocab_size":32000,"hidden_size":5120,"intermediate_size":13824,)"
    R"("num_hidden_layers":40,"num_attention_heads":40,"max_position_embeddings":4096})";

// Where recomputation is left to the server each card says what it takes; asked for, that is the same plan.
TEST_F(PlanJobTest, ToldIsHowEachCardRecomputes) {
  v1::PlanJobRequest request;
  request.set_model_config_json(kLarge);
  request.mutable_spec()->mutable_data()->set_sequence_len(2048);
  request.mutable_spec()->mutable_training()->set_micro_batch_size(2);
  const auto plan = Plan(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::set<std::string> told;
  bool some_kept = false;
  for (const v1::DeviceFit& fit : plan->fits()) {
    const std::string& policy = fit.plan().recompute();
    const int32_t kept = fit.plan().keep_blocks();
    EXPECT_EQ(fit.plan().base_cache(), "off") << "what a card must have, not what it could";
    told.insert(policy);
    some_kept = some_kept || kept > 0;
    v1::PlanJobRequest again = request;
    again.mutable_spec()->mutable_training()->set_recompute(policy);
    again.mutable_spec()->mutable_training()->set_keep_blocks(kept);
    const auto asked = Plan(again);
    ASSERT_TRUE(asked.ok()) << asked.status();
    for (const v1::DeviceFit& same : asked->fits()) {
      if (same.worker() != fit.worker()) continue;
      EXPECT_EQ(same.plan().recompute(), policy);
      EXPECT_EQ(same.plan().keep_blocks(), kept);
      EXPECT_EQ(same.plan().total_bytes(), fit.plan().total_bytes()) << fit.worker() << ' ' << policy;
    }
  }
  EXPECT_GE(told.size(), 2u) << "a card of 24 GB has to recompute what one of 141 GB keeps";
  EXPECT_TRUE(some_kept) << "memory for the products of some blocks is not used";
}

// A fleet that is copied in more than one turn of the loop: all of it is there.
TEST_F(PlanJobTest, AFleetOfTwoPartsIsThereWhole) {
  constexpr int kWorkers = static_cast<int>(core::Excerpt::kRowsAtOnce) + 10;
  const auto workers = worker::v1::WorkerService::NewStub(channel_);
  for (int i = 0; i < kWorkers; ++i) {
    worker::v1::RegisterRequest request;
    request.set_worker_id(absl::StrCat("w", i));
    request.set_incarnation("one");
    worker::v1::DeviceProfile* device = request.add_devices();
    device->set_id("cpu0");
    device->set_backend("cpu");
    device->set_capacity_bytes(int64_t{1} << 30);
    device->set_profile_json(R"({"act_bytes":2,"backend":"cpu","body":"avx2","build":"test",)"
                             R"("capacity_bytes":1073741824,"fixed_bytes":1048576,"threads":1})");
    worker::v1::RegisterResponse response;
    grpc::ClientContext context;
    ASSERT_TRUE(workers->Register(&context, request, &response).ok());
  }
  Random random(3);
  v1::PlanJobRequest request;
  request.set_model_config_json(RandomConfig(random));
  const auto plan = Plan(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::set<std::string> named;
  for (const v1::DeviceFit& fit : plan->fits()) named.insert(fit.worker());
  EXPECT_EQ(named.size(), static_cast<size_t>(kWorkers) + core::KnownCards().size());
}

// What is shown for a device is what a job created now would be placed with there.
TEST(PlanDeskTest, TheDecodedBaseIsKeptWhereCreateJobWouldKeepIt) {
  core::Model model;
  model.id = "m";
  model.config = spec::ParseModelConfig(
                     R"({"model_type":"llama","vocab_size":32000,"hidden_size":4096,)"
                     R"("intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,)"
                     R"("max_position_embeddings":4096})")
                     .value();
  PlanDesk desk(core::CoreOptions(), core::RealSpecFunctions());
  const auto plan = [&](const std::vector<int64_t>& gpus_gib) {
    core::State state;
    for (const int64_t gib : gpus_gib) {
      core::Worker& worker = state.workers[absl::StrCat("w", gib)];
      worker.id = absl::StrCat("w", gib);
      core::Device& device = worker.devices["cuda0"];
      device.id = "cuda0";
      device.profile.backend = "cuda";
      device.profile.fixed_bytes = int64_t{600} << 20;
      device.capacity_bytes = device.profile.capacity_bytes = gib << 30;
    }
    state.BuildIndexes();
    PlanDesk::Question question;
    question.model = model;
    question.fit.spec = spec::ResolveTrainSpec({.sequence_len = 512}, model.config).value();
    question.fit.any_recompute = true;
    return desk.Plan(state, question).value();
  };
  const PlanDesk::Answer large = plan({140});
  EXPECT_EQ(large.device_spec.base_cache, spec::BaseCache::kOn);
  EXPECT_EQ(large.devices.fits[0].plan.choices.base_cache, spec::BaseCache::kOn);
  EXPECT_EQ(large.cards.fits[3].plan.choices.base_cache, spec::BaseCache::kOff);
  const PlanDesk::Answer mixed = plan({140, 20});
  EXPECT_EQ(mixed.device_spec.base_cache, spec::BaseCache::kOff) << "20 GiB have no room for it";
  for (const core::DeviceFit& fit : mixed.devices.fits) {
    EXPECT_EQ(fit.plan.choices.base_cache, spec::BaseCache::kOff) << fit.worker_id;
    EXPECT_EQ(fit.plan.choices.recompute, mixed.device_spec.recompute) << fit.worker_id;
  }
  EXPECT_LT(mixed.devices.fits[0].plan.TotalBytes(), large.devices.fits[0].plan.TotalBytes());
}

constexpr char kWide[] =
    R"({"model_type":"llama","vocab_size":512,"hidden_size":16400,"intermediate_size":128,"head_dim":100,)"
    R"("num_hidden_layers":1,"num_attention_heads":164,"num_key_value_heads":2,"max_position_embeddings":512})";

// All known cards are GPUs: that they take no such model says nothing of a processor that may still come.
TEST_F(PlanJobTest, WhatOnlyGpusRefuseIsPlannedAllTheSame) {
  v1::PlanJobRequest request;
  request.set_model_config_json(kWide);
  const auto plan = Plan(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->fits_size(), 4);
  for (const v1::DeviceFit& fit : plan->fits()) {
    EXPECT_EQ(fit.verdict(), v1::DeviceFit::NEVER);
    EXPECT_THAT(fit.refusal(), HasSubstr("16400 wide"));
    EXPECT_FALSE(fit.has_plan());
  }
}

TEST(PlanDeskTest, WhatNoDeviceOfTheFleetTakesIsRefusedAsCreateJobWould) {
  PlanDesk desk(core::CoreOptions(), core::RealSpecFunctions());
  const auto plan = [&](const std::vector<std::string>& backends) {
    core::State state;
    for (const std::string& backend : backends) {
      core::Worker& worker = state.workers[backend];
      worker.id = backend;
      core::Device& device = worker.devices["d0"];
      device.id = "d0";
      device.profile.backend = backend;
      device.capacity_bytes = device.profile.capacity_bytes = int64_t{140} << 30;
    }
    state.BuildIndexes();
    PlanDesk::Question question;
    question.model.id = "m";
    question.model.config = spec::ParseModelConfig(kWide).value();
    question.fit.spec = spec::ResolveTrainSpec({.sequence_len = 256}, question.model.config).value();
    question.fit.any_recompute = true;
    return desk.Plan(state, question);
  };
  EXPECT_EQ(StatusReason(plan({"cuda"}).status()), Reason::kUnsupportedArchitecture);
  const auto mixed = plan({"cpu", "cuda"});
  ASSERT_TRUE(mixed.ok()) << mixed.status();
  EXPECT_EQ(mixed->devices.fits[0].verdict, core::DeviceFit::Verdict::kFitsNow);
  EXPECT_FALSE(mixed->devices.fits[1].refusal.ok());
  EXPECT_TRUE(plan({"cpu"}).ok());
}

TEST_F(PlanJobTest, TheLayoutIsThePlan) {
  Random random(7);
  v1::PlanJobRequest request;
  request.set_model_config_json(
      R"({"model_type":"llama","vocab_size":32000,"hidden_size":256,"intermediate_size":688,)"
      R"("num_hidden_layers":3,"num_attention_heads":4,"max_position_embeddings":2048})");
  request.set_layout(true);
  request.set_methods(true);
  request.set_layout_worker("card-48gb");
  const auto plan = Plan(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const v1::MemoryLayout& layout = plan->layout();
  EXPECT_EQ(layout.worker(), "card-48gb");
  EXPECT_EQ(plan->methods_at(), "card-48gb");
  EXPECT_EQ(plan->methods_size(), 4);
  ASSERT_GT(layout.operations(), 100);
  ASSERT_GT(layout.phases_size(), 6);
  EXPECT_EQ(layout.phases(0).first_use(), 0);
  for (int i = 0; i < layout.buffers_size(); ++i) {
    const v1::PlannedBuffer& a = layout.buffers(i);
    const int64_t region =
        a.persistent() ? layout.plan().persistent_bytes() : layout.plan().step_bytes();
    EXPECT_LE(a.offset() + a.size_bytes(), region) << a.name();
    for (int j = 0; j < i; ++j) {
      const v1::PlannedBuffer& b = layout.buffers(j);
      const bool in_time = a.first_use() <= b.last_use() && b.first_use() <= a.last_use();
      const bool in_space =
          a.offset() < b.offset() + b.size_bytes() && b.offset() < a.offset() + a.size_bytes();
      EXPECT_FALSE(a.persistent() == b.persistent() && in_time && in_space)
          << a.name() << " lies on " << b.name();
    }
  }
  request.set_layout_worker("card-1pb");
  EXPECT_EQ(StatusReason(Plan(request).status()), Reason::kWorkerNotFound);
}

// A caller that left, or whose deadline has passed, must not keep others from their plans.
TEST(PlanDeskTest, WhatNobodyWaitsForIsNotPlannedToItsEnd) {
  int plans = 0, until = 0;
  core::SpecFunctions functions = core::RealSpecFunctions();
  functions.plan = [&plans, real = functions.plan](const auto& model, const auto& spec, const auto& profile) {
    ++plans;
    return real(model, spec, profile);
  };
  PlanDesk::Question question;
  question.model.digest = "d";
  question.model.config = spec::ParseModelConfig(kLarge).value();
  const spec::TrainSpec given = {.sequence_len = 2048, .micro_batch_size = 4};
  question.fit.spec = spec::ResolveTrainSpec(given, question.model.config).value();
  const auto plan = [&](int most) {
    PlanDesk desk(core::CoreOptions(), functions);
    plans = 0;
    until = most;
    question.fit.unwanted = [&] { return plans >= until; };
    return desk.Plan(core::State(), question).status();
  };
  ASSERT_TRUE(plan(1'000'000).ok());
  const int all = plans;
  ASSERT_GT(all, 20);
  // A search for what would make it fit asks nobody, and is of a card at most.
  EXPECT_TRUE(absl::IsCancelled(plan(0)));
  EXPECT_EQ(plans, 0) << "there was a line";
  for (const int left : {1, 5, all / 2, all - 2}) {
    const absl::Status status = plan(left);
    EXPECT_TRUE(absl::IsCancelled(status)) << left << ": " << status;
    EXPECT_LE(plans, left + all / 4) << left << " of " << all;
  }
}

constexpr char kFine[] =
    R"({"model_type":"llama","vocab_size":32000,"hidden_size":64,"intermediate_size":128,)"
    R"("num_hidden_layers":1,"num_attention_heads":2,"max_position_embeddings":2048})";

TEST_F(PlanJobTest, AbsurdRecipesAreRefusedByFieldAndBound) {
  for (const AbsurdSpec& c : AbsurdSpecs()) {
    v1::PlanJobRequest request;
    request.set_model_config_json(kFine);
    c.spoil(*request.mutable_spec());
    const absl::Status status = Plan(request).status();
    EXPECT_EQ(StatusReason(status), Reason::kSpecInvalid) << c.field;
    ASSERT_FALSE(StatusViolations(status).empty()) << c.field << ": " << status;
    EXPECT_EQ(StatusViolations(status)[0].field, c.field);
    EXPECT_THAT(StatusViolations(status)[0].description, HasSubstr(c.bound)) << c.field;
  }
}

TEST_F(PlanJobTest, AbsurdModelsAreRefusedByKey) {
  const auto spoilt = [](const char* key, const char* value) {
    std::string config = kFine;
    const size_t at = config.find(absl::StrCat("\"", key, "\":")) + std::string(key).size() + 3;
    return config.replace(at, config.find_first_of(",}", at) - at, value);
  };
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "max_position_embeddings"}) {
    for (const char* value : {"-1", "0", "9223372036854775807", "1e30", "\"many\"", "18446744073709551616"}) {
      v1::PlanJobRequest request;
      request.set_model_config_json(spoilt(key, value));
      const absl::Status status = Plan(request).status();
      EXPECT_EQ(StatusReason(status), Reason::kModelFileInvalid) << key << " " << value << ": " << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(key)) << value;
    }
  }
  v1::PlanJobRequest request;
  for (const std::string& config :
       {std::string("{"), std::string("[]"), std::string(100'000, '['),
        std::string("{\"model_type\":\"mamba\"}")}) {
    request.set_model_config_json(config);
    EXPECT_FALSE(Plan(request).ok()) << config.substr(0, 40);
  }
  request.set_model_config_json(kFine + std::string(2 << 20, ' '));
  EXPECT_EQ(StatusReason(Plan(request).status()), Reason::kRequestTooLarge);
  request.set_model_config_json(kFine);
  request.mutable_spec()->set_base_model("models/other");
  EXPECT_EQ(StatusViolations(Plan(request).status())[0].field, "model_config_json");
}

}  // namespace
}  // namespace nibble::server
