#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/data/dataset_format.h"
#include "engine/model/safetensors.h"
#include "engine/protocol.h"
#include "engine/spec/compile_plan.h"
#include "engine/spec/memory_plan.h"
#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"
#include "engine/text/chat_template.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_parse.h"
#include "engine/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace nibble::fuzz {
namespace {

constexpr int64_t kDataBytes = 4096;

std::string SafetensorsSeed() {
  return R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[4,16],"data_offsets":[0,128]},)"
         R"("b":{"dtype":"F32","shape":[992],"data_offsets":[128,4096]}})";
}

void Safetensors(std::string_view input) {
  const auto header = engine::ParseSafetensorsHeader("fuzz", input, kDataBytes);
  if (!header.ok()) return;
  for (const auto& [name, tensor] : header->tensors) {
    Require(tensor.offset >= 0 && tensor.size_bytes >= 0 &&
                tensor.offset <= kDataBytes - tensor.size_bytes,
            "an accepted tensor lies outside the data");
  }
}

void ModelConfig(std::string_view input) {
  const auto model = spec::ParseModelConfig(input);
  if (!model.ok()) return;
  Require(model->TotalParameters() > 0,
          "an accepted model has no parameters, or too many to count");
  const auto resolved = spec::ResolveTrainSpec(spec::TrainSpec(), *model);
  if (!resolved.ok()) return;
  const auto plan = spec::CompilePlan(*model, *resolved, spec::DeviceProfile());
  if (plan.ok())
    Require(plan->base_bytes > 0 && plan->TotalBytes() > plan->base_bytes, "a plan overflows");
}

void TrainSpec(std::string_view input) {
  const auto parsed = spec::TrainSpecFromJson(input);
  if (!parsed.ok()) return;
  const auto again = spec::TrainSpecFromJson(spec::TrainSpecToJson(*parsed));
  Require(again.ok() && *again == *parsed, "a spec does not survive its own JSON");
}

void Profile(std::string_view input) {
  const auto parsed = spec::DeviceProfileFromJson(input);
  if (!parsed.ok()) return;
  const auto again = spec::DeviceProfileFromJson(spec::DeviceProfileToJson(*parsed));
  Require(again.ok() && *again == *parsed, "a profile does not survive its own JSON");
}

void ReadTokenizer(std::string_view input) {
  const auto tokenizer = engine::Tokenizer::FromJson(input, "{}");
  if (!tokenizer.ok()) return;
  for (const int32_t id : tokenizer->Encode("Ann's 12 \xc3\xa9\xff fish.\n", true))
    Require(id >= 0 && id < tokenizer->vocab_size(), "an id lies outside the vocabulary");
}

// Fixed tokenizers, one that cuts texts into words and one that does not, meet any text; what they say must
// be the text again where that is UTF-8.
void EncodeText(std::string_view input) {
  static const auto tokenizers = [] {
    std::vector<absl::StatusOr<engine::Tokenizer>> made;
    for (const char* path : {"demo/base/tokenizer.json", "engine/testdata/tokenizers/gemma/tokenizer.json"})
      made.push_back(engine::Tokenizer::FromJson(RepositoryFile(path, size_t{1} << 20), "{}"));
    return made;
  }();
  for (const auto& tokenizer : tokenizers) {
    Require(tokenizer.ok(), "the fixed tokenizers load");
    const std::vector<int32_t> ids = tokenizer->Encode(input, false);
    for (const int32_t id : ids)
      Require(id >= 0 && id < tokenizer->vocab_size(), "an id lies outside the vocabulary");
    const std::string once = tokenizer->Decode(ids, false);
    Require(tokenizer->Decode(tokenizer->Encode(once, false), false) == once, "decoding is not stable");
  }
}

void Template(std::string_view input) {
  const auto program = engine::jinja::Parse(input);
  if (!program.ok()) return;
  using engine::jinja::Dict;
  using engine::jinja::Value;
  const auto text_value = [](const char* text) { return Value(Value::Variant(std::string(text))); };
  engine::jinja::List messages;
  for (const char* role : {"system", "user", "assistant"})
    messages.push_back(Value::Of(Dict{{text_value("role"), text_value(role)},
                                      {text_value("content"), text_value("some text")}}));
  const engine::jinja::Named globals = {{"messages", Value::Of(std::move(messages))},
                        {"add_generation_prompt", Value(Value::Variant(true))},
                        {"bos_token", text_value("<s>")},
                        {"eos_token", text_value("</s>")}};
  const auto text = engine::jinja::Render(**program, globals);
  if (text.ok())
    Require(text->size() <= engine::jinja::kMaxTextBytes, "a template wrote more than it may");
}

void Row(std::string_view input) {
  engine::RowReader reader(std::nullopt, false);
  engine::ParsedRow row;
  if (reader.Read(input, row)) return;
  Require(reader.format().has_value(), "a row was read without a format");
}

void WorkerLine(std::string_view input) {
  std::string attempt;
  const auto command = engine::ParseCommand(input, attempt);
  if (command.ok() && command->type != engine::CommandType::kShutdown)
    Require(!command->attempt.empty(), "a command names no attempt");
}

std::vector<std::string> Templates() {
  return {
      "{% for m in messages %}{% if m['role'] != 'system' %}<|{{ m.role }}|>{{ m['content'] | trim "
      "}}"
      "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
      "{%- macro turn(m, n=2) -%}{{ '[' ~ m.content[:n] + ']' }}{%- endmacro -%}"
      "{%- set ns = namespace(i=0) -%}{%- for m in messages -%}{%- set ns.i = ns.i + 1 -%}"
      "{{ turn(m) }}{{ loop.index0 % 2 }}{%- endfor -%}{{ ns.i }}",
      "{{ bos_token }}{{ messages | length }}{{ (messages | map(attribute='role') | list) | "
      "join(',') }}"
      "{{ 'x' * 3 if messages is defined and messages[0].role == 'system' else "
      "raise_exception('no') }}"};
}

}  // namespace

std::vector<Target> EngineTargets() {
  const std::vector<std::string> json_words = {"\"", ":", ",",       "{",       "}",
                                               "[",  "]", "\\u0000", "\\ud800", "1e99"};
  const std::string spec = spec::TrainSpecToJson(spec::TrainSpec());
  std::vector<Target> targets;
  targets.push_back({"safetensors",
                     {SafetensorsSeed()},
                     {"BF16", "F64", "\"shape\":[", "data_offsets", "I8"},
                     Safetensors});
  targets.push_back({"model_config",
                     {RepositoryFile("demo/base/config.json"),
                      RepositoryFile("tests/oracle/fixtures/tiny-qwen3/config.json"),
                      RepositoryFile("tests/oracle/fixtures/tiny-gemma2/config.json"),
                      RepositoryFile("tests/oracle/fixtures/tiny-gemma3/config.json"),
                      RepositoryFile("tests/oracle/fixtures/tiny-gemma3/config.by-kind.json"),
                      RepositoryFile("tests/oracle/fixtures/tiny-phi3/config.longrope.json")},
                     {"rope_scaling", "llama3", "yarn", "longrope", "\"short_factor\":[", "null",
                      "\"factor\":", "head_dim", "sliding_window", "layer_types", "\"full_attention\"",
                      "\"sliding_attention\"", "rope_parameters", "attn_logit_softcapping",
                      "query_pre_attn_scalar", "hidden_activation"},
                     ModelConfig});
  targets.push_back({"train_spec", {spec}, json_words, TrainSpec});
  targets.push_back(
      {"device_profile", {spec::DeviceProfileToJson(spec::DeviceProfile())}, json_words, Profile});
  targets.push_back({"tokenizer",
                     {RepositoryFile("engine/testdata/tokenizers/digits/tokenizer.json"),
                      RepositoryFile("engine/testdata/tokenizers/llama2/tokenizer.json"),
                      RepositoryFile("engine/testdata/tokenizers/qwen2/tokenizer.json"),
                      RepositoryFile("engine/testdata/tokenizers/gemma/tokenizer.json"),
                      RepositoryFile("engine/testdata/tokenizers/gemma3/tokenizer.json")},
                     {"ByteLevel", "Split", "Sequence", "Metaspace", "\"Regex\":", "byte_fallback",
                      "TemplateProcessing", "\"Replace\"", "MergedWithPrevious", "\"add_prefix_space\":"},
                     ReadTokenizer});
  targets.push_back({"encode",
                     {RepositoryFile("README.md", 3000), "\xf0\x9f\x98\x80 <|bos|> 1,234 ..\t\r\n"},
                     {"<|eos|>", "\xe2\x80\x8b", "\xff\xfe", "'re"},
                     EncodeText});
  targets.push_back({"chat_template",
                     Templates(),
                     {"{%", "%}", "{{", "}}", "|", "loop.", "range(", "for x in", "endfor", "if",
                      "else", "set", "tojson"},
                     Template});
  targets.push_back(
      {"row",
       {R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]})",
        R"({"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]})",
        R"({"instruction":"a","input":"","output":"b"})", R"({"prompt":"a","completion":"b"})",
        R"({"text":"a"})"},
       json_words,
       Row});
  targets.push_back(
      {"worker_line",
       {R"({"type":"attach","attempt":"a/1","dir":"/d","spec":)" + spec +
            R"(,"dataset":"/f","eval_dataset":"","resume":"","numerics_id":"","base_name":"b",)"
            R"("display_name":"n","planned":{"base_bytes":1,"persistent_bytes":2,"step_bytes":3}})",
        R"({"type":"detach","attempt":"a/1","checkpoint":true})", R"({"type":"shutdown"})"},
       json_words,
       WorkerLine});
  return targets;
}

}  // namespace nibble::fuzz
