#include "client/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "client/recipe_keys.h"
#include "client/yaml.h"

namespace nibble::client {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr char kHead[] = "base_model: /m\ndatasets: [{path: /d.jsonl}]\n";

absl::StatusOr<Recipe> Read(const std::string& text,
                            const std::vector<std::string>& overrides = {}) {
  return ReadRecipe(text, "r.yaml", "/recipes", overrides);
}

struct Row {
  std::string text;
  std::string spec;   // expected spec_json, or ""
  std::string error;  // expected part of the message, or ""
  Reason reason = Reason::kUnspecified;
  size_t notices = 0;
};

class RecipeTest : public testing::TestWithParam<Row> {};

TEST_P(RecipeTest, Row) {
  const Row& row = GetParam();
  const auto recipe = Read(kHead + row.text);
  if (!row.error.empty()) {
    ASSERT_FALSE(recipe.ok()) << recipe->spec_json;
    EXPECT_THAT(std::string(recipe.status().message()), HasSubstr(row.error));
    EXPECT_EQ(StatusReason(recipe.status()), row.reason) << recipe.status();
    return;
  }
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(json::parse(recipe->spec_json), json::parse(row.spec)) << recipe->spec_json;
  EXPECT_THAT(recipe->notices, SizeIs(row.notices));
}

constexpr auto kUnsupported = Reason::kUnsupportedOption;
constexpr auto kUnknown = Reason::kUnknownField;
constexpr auto kInvalid = Reason::kSpecInvalid;

INSTANTIATE_TEST_SUITE_P(
    Honoured, RecipeTest,
    testing::Values(
        Row{"", "{}"}, Row{"lora_r: 8", R"({"lora":{"r":8}})"}, Row{"lora_rank: 8", R"({"lora":{"r":8}})"},
        Row{"learning_rate: 2e-4", R"({"optimizer":{"learningRate":2e-4}})"},
        Row{"cutoff_len: 512", R"({"data":{"sequenceLen":512}})"}, Row{"lora_alpha:", "{}"},
        Row{"lora_target_modules: []", "{}"}, Row{"lora_target_linear: true", "{}"},
        Row{"lora_target_modules: [v_proj, q_proj]", R"({"lora":{"targetModules":["v_proj","q_proj"]}})"},
        Row{"lora_target: q_proj, k_proj", R"({"lora":{"targetModules":["q_proj","k_proj"]}})"},
        Row{"lora_target: all", "{}"}, Row{"lora_target_linear: true\nlora_target_modules: [q_proj]", "{}"},
        Row{"adapter: qlora\nload_in_4bit: true", "{}"},
        Row{"adapter: lora", R"({"quantization":{"type":"bf16"}})"},
        Row{"adapter: lora\nload_in_4bit: true", "{}"},
        Row{"adapter: lora\nload_in_8bit: false", R"({"quantization":{"type":"bf16"}})"},
        Row{"finetuning_type: lora\nquantization_bit: 4", "{}"},
        Row{"finetuning_type: lora", "{}", "", Reason::kUnspecified, 1},
        Row{"finetuning_type: lora\nadapter: lora", R"({"quantization":{"type":"bf16"}})"},
        Row{"bnb_4bit_quant_type: fp4", R"({"quantization":{"type":"fp4"}})"},
        Row{"disable_gradient_checkpointing: true", R"({"training":{"gradientCheckpointing":false}})"},
        Row{"max_steps: -1\nnum_epochs: 2", R"({"training":{"numEpochs":2}})"},
        Row{"max_steps: 20\nnum_epochs: 2", R"({"training":{"maxSteps":20,"numEpochs":2}})", "",
            Reason::kUnspecified, 1},
        Row{"warmup_ratio: 0.5\nwarmup_steps: 5", R"({"optimizer":{"warmupRatio":0.5,"warmupSteps":5}})", "",
            Reason::kUnspecified, 1},
        Row{"max_steps: -1", "{}"}, Row{"max_steps: 20", R"({"training":{"maxSteps":20}})"},
        Row{"optimizer: adamw_torch_fused", "{}"},
        Row{"optimizer: adamw_bnb_8bit", R"({"optimizer":{"type":"adamw8bit"}})"},
        Row{"optimizer: paged_adamw_8bit", R"({"optimizer":{"paged":true,"type":"adamw8bit"}})", "",
            Reason::kUnspecified, 1},
        Row{"optimizer: paged_adamw_32bit", R"({"optimizer":{"paged":true}})", "", Reason::kUnspecified, 1},
        Row{"optimizer: adamw_8bit\npaged_optimizer: true",
            R"({"optimizer":{"paged":true,"type":"adamw8bit"}})", "", Reason::kUnspecified, 1},
        Row{"activation_offloading: true", R"({"training":{"offloadActivations":true}})", "",
            Reason::kUnspecified, 1},
        Row{"activation_offloading: false", R"({"training":{"offloadActivations":false}})"},
        Row{"gradient_checkpointing: offload",
            R"({"training":{"gradientCheckpointing":true,"offloadActivations":true}})", "",
            Reason::kUnspecified, 1},
        Row{"recompute: keep_gemm_outputs", R"({"training":{"recompute":"keep_gemm_outputs"}})"},
        Row{"recompute: full\nkeep_blocks: 12", R"({"training":{"keepBlocks":12,"recompute":"full"}})"},
        Row{"base_cache: off\ncuda_graphs: auto", R"({"training":{"baseCache":"off","cudaGraphs":"auto"}})"},
        Row{"lr_scheduler: constant_with_warmup", R"({"optimizer":{"lrScheduler":"constant"}})"},
        Row{"lr_scheduler: constant", R"({"optimizer":{"lrScheduler":"constant","warmupSteps":0}})"},
        Row{"lr_scheduler: constant\nwarmup_steps: 5",
            R"({"optimizer":{"lrScheduler":"constant","warmupSteps":5}})"},
        Row{"val_set_size: 0.1\nsample_packing: no", R"({"data":{"valSetSize":0.1,"samplePacking":false}})"},
        Row{"num_epochs: 3", R"({"training":{"numEpochs":3}})"},
        Row{"seed: 1e3", R"({"training":{"seed":1000}})"},
        Row{"nibble: {quantization_type: int8, save_interval_seconds: 5}",
            R"({"quantization":{"type":"int8"},"training":{"saveIntervalSeconds":5}})"}));

INSTANTIATE_TEST_SUITE_P(
    Ignored, RecipeTest,
    testing::Values(
        Row{"wandb_project:", "{}"}, Row{"wandb_project: x", "{}", "", Reason::kUnspecified, 1},
        Row{"flash_attention: true", "{}", "", Reason::kUnspecified, 1},
        Row{"bf16: auto\ntf32: false\nstrict: false", "{}"},
        Row{"evals_per_epoch: 2\nsaves_per_epoch: 0",
            R"({"training": {"evalsPerEpoch": 2.0, "savesPerEpoch": 0.0}})"},
        Row{"evals_per_epoch: often", "", "must be a number", kInvalid},
        Row{"plugins: [axolotl.integrations.liger.LigerPlugin]", "{}", "", Reason::kUnspecified, 1},
        Row{"special_tokens: {pad_token: x}", "{}", "", Reason::kUnspecified, 1},
        Row{"use_peft: true\nbias: none\ntask_type: CAUSAL_LM\ncompletion_only_loss: true\n"
            "assistant_only_loss: true\ndataset_train_split: train\ndtype: bfloat16\nneat_packing: false",
            "{}"},
        Row{"use_gradient_checkpointing: unsloth",
            R"({"training":{"gradientCheckpointing":true,"offloadActivations":true}})", "",
            Reason::kUnspecified, 1},
        Row{"special_tokens:\n  pad_token:", "{}"}, Row{"resume_from_checkpoint:", "{}"},
        Row{"rl:\nfsdp:\ndeepspeed:", "{}"}, Row{"peft_use_dora: false", "{}"}));

INSTANTIATE_TEST_SUITE_P(
    Refused, RecipeTest,
    testing::Values(Row{"rl: dpo", "", "r.yaml:3:5: rl is not supported (\"dpo\")", kUnsupported},
                    Row{"load_in_8bit: true", "", "load_in_8bit is not supported", kUnsupported},
                    Row{"peft_use_dora: true", "", "plain LoRA", kUnsupported},
                    Row{"fsdp_config: {a: 1}", "", "fsdp_config", kUnsupported},
                    Row{"deepspeed: x.json", "", "one device", kUnsupported},
                    Row{"lora_modules_to_save: [embed_tokens]", "", "only LoRA matrices", kUnsupported},
                    Row{"lora_target_modules: model.*proj", "", "patterns are not matched", kUnsupported},
                    Row{"adapter: ia3", "", "adapter is qlora or lora", kUnsupported},
                    Row{"optimizer: lion", "", "use adamw", kUnsupported},
                    Row{"lr_scheduler: polynomial", "", "cosine, linear or constant", kUnsupported},
                    Row{"fp16: true", "", "fp16", kUnsupported},
                    Row{"early_stopping_patience: 3", "", "early_stopping_patience", kUnsupported},
                    Row{"stage: dpo", "", "supervised", kUnsupported},
                    Row{"s2_attention: true", "", "attends to all", kUnsupported},
                    Row{"train_on_eos: all", "", "the end of every answer", kUnsupported},
                    Row{"assistant_only_loss: false", "", "train_on_inputs: true trains", kUnsupported},
                    Row{"system_prompt: be kind", "", "a message of the role system", kUnsupported},
                    Row{"eos_token: x", "", "tokenizer_config.json", kUnsupported},
                    Row{"random_state: 3407", "", "seed decides", kUnsupported},
                    Row{"plugins: [axolotl.integrations.kd.KDPlugin]", "", "plugins", kUnsupported},
                    Row{"nibble: {retries: 2}", "", "nibble.retries", kUnsupported},
                    Row{"lora_rr: 8", "", "r.yaml:3:10: lora_rr is not a key we know; did you mean lora_r?",
                        kUnknown},
                    Row{"lerning_rate: 1", "", "did you mean learning_rate?", kUnknown},
                    Row{"xyzzy_plugh: 1", "", "is not a key we know", kUnknown},
                    Row{"nibble: {nmae: x}", "", "did you mean name?", kUnknown},
                    Row{"lora_r: eight", "", "lora_r must be a whole number, got \"eight\"", kInvalid},
                    Row{"lora_r: 99999999999", "", "between 0 and 2147483647", kInvalid},
                    Row{"lora_r: -1", "", "between 0 and", kInvalid},
                    Row{"lora_r: 99999999999999999999", "", "between 0 and 2147483647", kInvalid},
                    Row{"lora_r: -1e300", "", "between 0 and 2147483647", kInvalid},
                    Row{"lora_r: .inf", "", "a whole number", kInvalid},
                    Row{"max_steps: -5", "", "above 0; -1 and 0 mean by epochs", kInvalid},
                    Row{"learning_rate: .nan", "", "a number", kInvalid},
                    Row{"lora_r: 8\nlora_rank: 16", "", "means the same as lora_r", kInvalid},
                    Row{"adapter: qlora\nload_in_4bit: false", "", "means 4 bit", kInvalid},
                    Row{"lora_r: 8\nlora_r: 9", "", "r.yaml:4:1: the key lora_r stands twice", kInvalid},
                    Row{"nibble: {name: My_Job}", "", "nibble.name must be", kInvalid},
                    Row{"a: [", "", "not YAML", kInvalid}, Row{"<<: {a: 1}", "", "merge keys", kInvalid}));

TEST(Recipe, NullOnTheCommandLineTakesAKeyBack) {
  const std::string text = absl::StrCat(kHead, "test_datasets: [{path: /held.jsonl}]\n");
  EXPECT_EQ(Read(text)->eval_dataset, "/held.jsonl");
  for (const char* gone : {"test_datasets=null", "test_datasets=", "test_datasets=[]"}) {
    const auto recipe = Read(text, {gone});
    ASSERT_TRUE(recipe.ok()) << gone << ": " << recipe.status();
    EXPECT_EQ(recipe->eval_dataset, "") << gone;
  }
  EXPECT_EQ(Read(text, {"test_datasets=/other.jsonl"})->eval_dataset, "/other.jsonl");
}

TEST(RecipeDataTest, DatasetEntries) {
  const auto spec = [](const std::string& entry) {
    const auto recipe = Read("base_model: /m\ndatasets:\n  - " + entry);
    return recipe.ok() ? recipe->dataset + " " + recipe->spec_json
                       : std::string(recipe.status().message());
  };
  EXPECT_EQ(spec("{path: d.jsonl}"), "/recipes/d.jsonl {}");
  EXPECT_EQ(spec("d.jsonl"), "/recipes/d.jsonl {}");
  EXPECT_EQ(spec("{path: /d, type: alpaca}"), R"(/d {"data":{"format":"alpaca"}})");
  EXPECT_EQ(spec("{path: /d, type: chat_template}"), R"(/d {"data":{"format":"messages"}})");
  EXPECT_EQ(spec("{path: /d, type: chat_template, field_messages: conversations}"),
            R"(/d {"data":{"format":"sharegpt"}})");
  EXPECT_EQ(spec("{path: json, data_files: [a.jsonl]}"), "/recipes/a.jsonl {}");
  EXPECT_EQ(spec("{path: 'dataset:support'}"), "datasets/support {}");
  EXPECT_EQ(spec("{path: datasets/support}"), "datasets/support {}");
  EXPECT_THAT(spec("{path: hf://a/b}"), HasSubstr("download it first"));
  EXPECT_THAT(spec("{path: /d, ds_type: parquet}"), HasSubstr("convert the data to JSONL"));
  EXPECT_THAT(spec("{path: /d, field_instruction: q}"),
              HasSubstr("rename the field to instruction"));
  EXPECT_THAT(spec("{path: /d, typ: alpaca}"), HasSubstr("not a key we know"));
  EXPECT_THAT(spec("{type: alpaca}"), HasSubstr("datasets[0].path is required"));
  EXPECT_THAT(spec("{path: /a}\n  - {path: /b}"), HasSubstr("join the files"));
}

// Wherever it stands in the file.
TEST(RecipeDataTest, TheTemplateOfADataSetCountsBeforeThatOfTheRecipe) {
  const auto spec = [](const std::string& before, const std::string& after) {
    const auto recipe =
        Read("base_model: /m\n" + before + "datasets: [{path: /d, chat_template: chatml}]\n" + after);
    return recipe.ok() ? recipe->spec_json : std::string(recipe.status().message());
  };
  const std::string chatml = R"({"data":{"chatTemplate":"chatml"}})";
  EXPECT_EQ(spec("chat_template: llama3\n", ""), chatml);
  EXPECT_EQ(spec("", "chat_template: llama3\n"), chatml);
  EXPECT_EQ(spec("", "test_datasets: [{path: /e, chat_template: chatml}]\n"), chatml);
  EXPECT_THAT(spec("", "test_datasets: [{path: /e, chat_template: llama3}]\n"),
              HasSubstr("both data sets are read with one template"));
}

TEST(RecipeDataTest, RequiredKeysAndAllFaultsAtOnce) {
  const auto recipe = Read("lora_r: x\nrl: dpo\n");
  ASSERT_FALSE(recipe.ok());
  const auto violations = StatusViolations(recipe.status());
  ASSERT_THAT(violations, SizeIs(4));
  EXPECT_EQ(violations[0].field, "lora_r");
  EXPECT_EQ(violations[2].field, "base_model");
  EXPECT_FALSE(Read("").ok());
  EXPECT_FALSE(Read("[]").ok());
  EXPECT_FALSE(Read("a: 1\n---\nb: 2").ok());
}

TEST(RecipeDataTest, OverridesComeLastAndAreRelativeToHere) {
  const auto recipe = Read("base_model: m\ndatasets: [{path: d.jsonl, type: alpaca}]\nlora_r: 8\n",
                           {"lora_r=32", "datasets=other.jsonl", "base_model=x", "nibble.name=a-b",
                            "nibble.labels.team=ops"});
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->base_model, "x");
  EXPECT_EQ(recipe->dataset, "other.jsonl");
  EXPECT_EQ(recipe->name, "a-b");
  EXPECT_EQ(recipe->labels.at("team"), "ops");
  EXPECT_EQ(json::parse(recipe->spec_json),
            json::parse(R"({"lora":{"r":32},"data":{"format":"alpaca"}})"));
  EXPECT_THAT(std::string(Read(kHead, {"oops"}).status().message()), HasSubstr("is not key=value"));
  EXPECT_THAT(std::string(Read(kHead, {"lora_rr=1"}).status().message()),
              HasSubstr("override: lora_rr is not a key we know"));
  EXPECT_FALSE(Read(kHead, {"datasets[99999999].path=x"}).ok());
  const auto plain = Read("base_model: /m\ndatasets: d.jsonl\n", {"datasets=/x"});
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->dataset, "/x");
}

TEST(RecipeDataTest, APresetStandsBehindWhatTheRecipeSays) {
  const auto spec = [](const std::string& text) {
    const auto recipe = Read(std::string(kHead) + "nibble: {preset: qlora-paper}\n" + text);
    EXPECT_TRUE(recipe.ok()) << recipe.status();
    return recipe.ok() ? json::parse(recipe->spec_json) : json();
  };
  json paper = json::parse(
      R"({"data":{"excessLengthStrategy":"truncate","samplePacking":false,"sequenceLen":528},
          "lora":{"alpha":16,"dropout":0.1,"r":64},
          "optimizer":{"adamBeta1":0.9,"adamBeta2":0.999,"learningRate":2e-4,"lrScheduler":"constant",
                       "maxGradNorm":0.3,"paged":true,"warmupRatio":0.03,"weightDecay":0},
          "training":{"gradientAccumulationSteps":16,"maxSteps":1875,"microBatchSize":1,"seed":0}})");
  EXPECT_EQ(spec(""), paper);
  // By its own name or another, and by the key that is there instead.
  paper["lora"]["r"] = 8;
  paper["optimizer"]["lrScheduler"] = "cosine";
  paper["optimizer"].erase("warmupRatio");
  paper["optimizer"]["warmupSteps"] = 7;
  paper["optimizer"].erase("paged");
  paper["training"].erase("maxSteps");
  paper["training"]["numEpochs"] = 2;
  EXPECT_EQ(spec("lora_rank: 8\nlr_scheduler_type: cosine\nwarmup_steps: 7\noptim: adamw\n"
                 "num_epochs: 2\n"),
            paper);
  EXPECT_THAT(std::string(Read(kHead, {"nibble.preset=alpaca"}).status().message()),
              HasSubstr("must be qlora-paper"));
}

TEST(RecipeDataTest, AnOverrideCountsByWhicheverNameTheRecipeHasTheKey) {
  const std::string text = "model_name_or_path: /m\ndataset: d.jsonl\nlora_rank: 8\neval_dataset: e.jsonl\n";
  const auto recipe =
      Read(text, {"base_model=/x", "datasets=/y", "lora_r=4", "r=32", "test_datasets[0].path=/z"});
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->base_model, "/x");
  EXPECT_EQ(recipe->dataset, "/y");
  EXPECT_EQ(recipe->eval_dataset, "/z");
  EXPECT_EQ(json::parse(recipe->spec_json), json::parse(R"({"lora":{"r":32}})"));
  const auto other = Read(kHead, {"dataset=/y", "model_name_or_path=/x"});
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->base_model + other->dataset, "/x/y");
  EXPECT_EQ(Read(text, {"eval_datasets="})->eval_dataset, "");
  // Of keys without effect each has its own notice, and what stands twice in the recipe is still refused.
  EXPECT_THAT(Read("report_to: x\n" + text, {"run_name=y"})->notices, SizeIs(2));
  EXPECT_THAT(std::string(Read("lr: 1\nlearning_rate: 2\n" + text, {"lr=3"}).status().message()),
              HasSubstr("means the same as"));
}

TEST(RecipeDataTest, NibbleBlock) {
  const auto recipe =
      Read(std::string(kHead) +
           "nibble:\n  name: support-bot\n  priority: -3\n  labels: {team: support}\n"
           "  queue: default\n  resources: {gpus: 1}\n");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->name, "support-bot");
  EXPECT_EQ(recipe->priority, -3);
  EXPECT_EQ(recipe->labels.at("team"), "support");
  EXPECT_THAT(recipe->notices, SizeIs(1));
}

TEST(RecipeDataTest, BytesThatAreNoTextAndNumbersThatAreNone) {
  const std::string head(kHead);
  for (const char* line : {"chat_template: \xff", "bnb_4bit_quant_type: \"nf4\xc3\"", "lora_\xff: 8",
                           "nibble: {labels: {team: \xed\xa0\x80}}"}) {
    EXPECT_THAT(std::string(Read(head + line + "\n").status().message()), HasSubstr("not UTF-8")) << line;
  }
  EXPECT_THAT(std::string(Read(head, {"chat_template=\xff"}).status().message()), HasSubstr("not UTF-8"));
  for (const char* priority : {"-9223372036854775808", "9223372036854775807", "1001", "-1e300"}) {
    EXPECT_FALSE(Read(absl::StrCat(head, "nibble: {priority: ", priority, "}\n")).ok()) << priority;
  }
}

TEST(RecipeDataTest, FilesAreFoundBesideTheRecipe) {
  TempDir dir;
  ASSERT_TRUE(WriteFileAtomic(dir.Join("r.yaml"), "base_model: base\ndatasets: [d.jsonl]\n").ok());
  const auto recipe = LoadRecipe(dir.Join("r.yaml"), {});
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->base_model, dir.Join("base"));
  EXPECT_EQ(recipe->dataset, dir.Join("d.jsonl"));
  EXPECT_FALSE(LoadRecipe(dir.Join("none.yaml"), {}).ok());
}

TEST(YamlTest, RemembersPlaces) {
  const auto yaml = ParseYaml("a: 1\nb:\n  - 'x'\n  - {c: ~}\n", "f");
  ASSERT_TRUE(yaml.ok()) << yaml.status();
  EXPECT_EQ(yaml->Find("a")->text, "1");
  EXPECT_FALSE(yaml->Find("a")->quoted);
  EXPECT_TRUE(yaml->Find("b")->items[0].quoted);
  EXPECT_EQ(yaml->Find("b")->items[1].line, 4);
  EXPECT_TRUE(yaml->Find("b")->items[1].IsEmpty());
  EXPECT_EQ(yaml->Find("c"), nullptr);
}

TEST(YamlTest, AliasBombIsRefused) {
  std::string text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    text += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int j = 0; j < 10; ++j) text += "*a" + std::to_string(i - 1) + (j < 9 ? ", " : "]\n");
  }
  const auto bomb = ParseYaml(text, "f");
  ASSERT_FALSE(bomb.ok());
  EXPECT_THAT(std::string(bomb.status().message()), HasSubstr("aliases expanded"));
  EXPECT_TRUE(ParseYaml("a: &x [1, 2]\nb: *x\n", "f").ok());
  EXPECT_FALSE(ParseYaml("a: &x [*x]\n", "f").ok());
}

TEST(YamlTest, Bounds) {
  EXPECT_FALSE(ParseYaml(std::string(2 << 20, 'a'), "f").ok());
  EXPECT_FALSE(ParseYaml(std::string(200, '['), "f").ok());
  EXPECT_FALSE(ParseYaml(std::string(100'000, '['), "f").ok());
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += "- ";
  EXPECT_FALSE(ParseYaml(deep, "f").ok());
  std::string many = "a: [";
  for (int i = 0; i < 30'000; ++i) many += "1,";
  EXPECT_FALSE(ParseYaml(many + "1]", "f").ok());
  EXPECT_FALSE(ParseYaml("a: !!python/object:os.system x", "f").ok());
  EXPECT_FALSE(ParseYaml("? [a, b]\n: c\n", "f").ok());
}

TEST(KeyTableTest, NamesAreUnique) {
  auto names = KnownKeys();
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end())
      << *std::adjacent_find(names.begin(), names.end());
  EXPECT_EQ(FindKeyRule("fsdp_config")->key, "fsdp");
  EXPECT_EQ(FindKeyRule("no_such_key"), nullptr);
  EXPECT_EQ(ClosestKey("micro_bach_size", KnownKeys()), "micro_batch_size");
  EXPECT_EQ(ClosestKey("rr", KnownKeys()), "r");
  EXPECT_EQ(ClosestKey("q", KnownKeys()), "");
  EXPECT_EQ(ClosestKey("completely_other_thing", KnownKeys()), "");
}

TEST(KeyTableTest, EveryHonouredKeyIsDocumented) {
  const char* source = std::getenv("NIBBLE_SOURCE_DIR");
  if (!source) GTEST_SKIP() << "NIBBLE_SOURCE_DIR is not set; ctest sets it";
  const auto docs = ReadFile(JoinPath(source, "docs/recipes.md"));
  ASSERT_TRUE(docs.ok()) << docs.status();
  for (const KeyRule& rule : KeyRules()) {
    const bool honoured = rule.action != KeyAction::kIgnored &&
                          rule.action != KeyAction::kRefused && rule.action != KeyAction::kMustBe;
    if (!honoured || rule.key == "plugins") continue;
    EXPECT_THAT(*docs, HasSubstr(std::string(rule.key))) << "docs/recipes.md leaves it out";
  }
}

}  // namespace
}  // namespace nibble::client
