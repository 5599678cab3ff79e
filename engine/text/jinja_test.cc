#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_parse.h"

namespace nibble::engine::jinja {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

Value From(const json& value) {
  if (value.is_boolean()) return Value(value.get<bool>());
  if (value.is_number_integer()) return Value(value.get<int64_t>());
  if (value.is_string()) return Value(value.get<std::string>());
  if (value.is_array()) {
    List items;
    for (const json& item : value) items.push_back(From(item));
    return Value::Of(std::move(items));
  }
  if (!value.is_object()) return Value(None{});
  Dict dict;
  for (const auto& [key, item] : value.items()) dict.emplace_back(key, From(item));
  return Value::Of(std::move(dict));
}

absl::StatusOr<std::string> RunText(const std::string& source, const Named& values = {}) {
  ASSIGN_OR_RETURN(const auto program, Parse(source));
  return Render(*program, values);
}

std::string FailureOf(const std::string& source) {
  const auto text = RunText(source);
  EXPECT_EQ(StatusReason(text.status()), Reason::kChatTemplateInvalid) << source;
  return std::string(text.status().message());
}

std::vector<json> Cases() {
  const char* root = std::getenv("NIBBLE_SOURCE_DIR");
  std::ifstream file(absl::StrCat(root ? root : ".", "/engine/testdata/chat_templates.jsonl"));
  std::vector<json> cases;
  for (std::string line; std::getline(file, line);) cases.push_back(json::parse(line));
  return cases;
}

TEST(Jinja, RendersAsTheReferenceDoes) {
  const auto cases = Cases();
  ASSERT_GE(cases.size(), 50u);
  int refused = 0;
  for (const json& c : cases) {
    Named values;
    for (const auto& [key, value] : c["values"].items()) values.emplace_back(key, From(value));
    const auto text = RunText(c["template"].get<std::string>(), values);
    if (c.contains("error")) {
      ++refused;
      EXPECT_THAT(std::string(text.status().message()), HasSubstr(c["error"].get<std::string>()));
      continue;
    }
    ASSERT_TRUE(text.ok()) << text.status() << "\n" << c["template"];
    EXPECT_EQ(*text, c["text"].get<std::string>()) << c["template"];
  }
  EXPECT_GT(refused, 0);
}

TEST(Jinja, WhatIsNotUnderstoodIsRefusedWithItsPlace) {
  EXPECT_THAT(FailureOf("a\n{% include 'x' %}"),
              HasSubstr("line 2): the tag 'include' is not supported"));
  EXPECT_THAT(FailureOf("{{ x | shout }}"), HasSubstr("'shout'"));
  EXPECT_THAT(FailureOf("{{ 1 is happy }}"), HasSubstr("'happy'"));
  EXPECT_THAT(FailureOf("{{ 'a'.encode() }}"), HasSubstr("'encode'"));
  EXPECT_THAT(FailureOf("{% for i in [1] %}{% filter trim %}{% break %}{% endfilter %}{% endfor %}"),
              HasSubstr("inside of a filter"));
  EXPECT_THAT(FailureOf("{% filter shout %}x{% endfilter %}"), HasSubstr("'shout'"));
  EXPECT_THAT(FailureOf("{{ today() }}"), HasSubstr("'today'"));
  EXPECT_THAT(FailureOf("{{ strftime_now('%Q') }}"), HasSubstr("'%Q'"));
  EXPECT_THAT(FailureOf("{{ strftime_now('%') }}"), HasSubstr("'%'"));
  EXPECT_THAT(FailureOf("{{ strftime_now() }}"), HasSubstr("without a format"));
  EXPECT_THAT(FailureOf("{{ x.y.z }}"), HasSubstr("undefined"));
  EXPECT_THAT(FailureOf("{{ x + 'a' }}"), HasSubstr("'x', which is undefined"));
  EXPECT_THAT(FailureOf("{{ 1 // 0 }}"), HasSubstr("divides by zero"));
  EXPECT_THAT(FailureOf("{{ raise_exception('no') }}"), HasSubstr("'no'"));
  for (const char* broken : {"{{", "{% if x %}", "{% endif %}", "{{ 'a }}", "{{ 1 + }}", "{# x",
                             "{{ [1, }}", "{% for %}", "{% set x %}", "{{ x[ }}", "{{ a b }}",
                             "{% macro f( %}", "{{ f(a=1, 2) }}", "{{ ! }}", "{% filter %}x{% endfilter %}",
                             "{% filter trim %}x", "{% endfilter %}"}) {
    FailureOf(broken);
  }
}

// Numbers beyond 64 bits, and counts that are none: Python's are larger, or it refuses them, too.
TEST(Jinja, NumbersOutOfBoundsAreRefused) {
  const std::string large = "(10.0 * 1000000000000000000 * 1000000000000000000)";
  for (const std::string& number :
       {large, "(0 - " + large + ")", std::string("'1e300'"), std::string("'99999999999999999999'"),
        "(" + std::string(400, '9') + ".0)"}) {
    EXPECT_THAT(FailureOf("{{ " + number + " | int }}"), HasSubstr("a number is too large"));
  }
  EXPECT_THAT(FailureOf("{{ -(-9223372036854775807 - 1) }}"), HasSubstr("too large"));
  EXPECT_THAT(FailureOf("{{ (-9223372036854775807 - 1) // -1 }}"), HasSubstr("too large"));
  EXPECT_THAT(FailureOf("{{ 'a' | indent(" + large + ") }}"),
              HasSubstr("'width', which takes a whole number"));
  EXPECT_THAT(FailureOf("{{ 'a b'.split(' ', " + large + ") }}"),
              HasSubstr("'maxsplit', which takes a whole number"));
  EXPECT_THAT(FailureOf("{{ 'a b'.replace(' ', '', " + large + ") }}"),
              HasSubstr("'count', which takes a whole number"));
  EXPECT_THAT(FailureOf("{{ [1] | tojson(indent=" + large + ") }}"),
              HasSubstr("'indent', which takes a whole number"));
  EXPECT_THAT(FailureOf("{{ 'a' | indent(9223372036854775807) }}"), HasSubstr("out of bounds"));
  EXPECT_THAT(FailureOf("{{ [1] | tojson(indent=9223372036854775807) }}"), HasSubstr("out of bounds"));
  EXPECT_THAT(FailureOf("{{ range(-9223372036854775807 - 1, 9223372036854775807) }}"),
              HasSubstr("too many numbers"));
  EXPECT_THAT(FailureOf("{{ -'a' }}"), HasSubstr("does not fit"));
}

// Left out in silence, they would change the text unseen.
TEST(Jinja, ArgumentsThatAreNotSupportedAreRefused) {
  EXPECT_THAT(FailureOf("{{ {} | dictsort(reverse=true) }}"), HasSubstr("'dictsort' the argument 'reverse'"));
  EXPECT_THAT(FailureOf("{{ [1] | tojson(2) }}"), HasSubstr("of which 0 are supported"));
  EXPECT_THAT(FailureOf("{{ [1] | tojson(separators=(',', ':')) }}"), HasSubstr("'separators'"));
  EXPECT_THAT(FailureOf("{{ [1] | tojson(ensure_ascii=true) }}"), HasSubstr("'ensure_ascii'"));
  EXPECT_THAT(FailureOf("{{ 'ff' | int(0, 16) }}"), HasSubstr("of which 1 are supported"));
  EXPECT_THAT(FailureOf("{{ 'a b'.split(1) }}"), HasSubstr("no text"));
}

// What is deep takes stack.
TEST(Jinja, NothingIsDeeperThanTheStack) {
  std::string sum = "{{ 1";
  for (int i = 0; i < 45'000; ++i) sum += "+1";
  EXPECT_THAT(FailureOf(sum + " }}"), HasSubstr("nested too deeply"));
  std::string filters;
  for (int i = 0; i < 990; ++i) filters += "|list";
  EXPECT_THAT(FailureOf("{% macro f() %}{{ [f()]" + filters + " }}{% endmacro %}{{ f() }}"),
              HasSubstr("nested too deeply"));
  // As deep as it may be, in all that takes stack.
  std::string blocks = "{% macro f(x) %}";
  for (int i = 0; i < 20; ++i) blocks += "{% if x %}{% for i in [x] %}{% set y %}";
  for (int i = 0; i < 20; ++i) blocks += "{% endset %}{{ y }}{% endfor %}{% endif %}";
  for (const int macros : {1, 2, 40}) {
    std::string source = blocks;
    source.insert(source.find("{% endset %}"), "{{ f(x - 1) }}");
    source += absl::StrCat("{% endmacro %}{{ f(", macros, ") }}");
    const auto text = RunText(source);
    EXPECT_EQ(text.ok(), macros < 3) << text.status();
  }
  const std::string deep =
      "{% set ns = namespace(v=[]) %}{% for i in range(20000) %}{% set ns.v = [ns.v] %}{% endfor %}";
  EXPECT_THAT(FailureOf(deep), HasSubstr("grows too deep"));
  const std::string wide =
      "{% set ns = namespace(v=range(100000) | list) %}{% for i in range(30) %}{% set ns.v = [ns.v] %}{% "
      "endfor %}";
  EXPECT_THAT(FailureOf(wide + "{{ ns.v | tojson(indent=16) }}"), HasSubstr("grows too long"));
  const std::string million =
      "{% set ns = namespace(v='a') %}{% for i in range(21) %}{% set ns.v = ns.v + ns.v %}{% endfor %}";
  EXPECT_THAT(FailureOf(million + "{{ ns.v | list }}"), HasSubstr("1048576 bytes apart"));
  const auto text = RunText(million + "{{ ns.v | length }} {{ ns.v[-1] }} {{ ns.v[:2] }}");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "2097152 a aa");
}

TEST(Jinja, ATemplateThatIsNotUtf8IsRefused) {
  EXPECT_THAT(FailureOf("{{ '\xF0' | lower }}"), HasSubstr("is not UTF-8"));
}

TEST(Jinja, NothingGrowsWithoutBound) {
  const std::string doubling =
      "{% set ns = namespace(v='aaaaaaaaaaaaaaaa') %}{% for i in range(99) %}";
  EXPECT_THAT(FailureOf(doubling + "{% set ns.v = ns.v + ns.v %}{% endfor %}"), HasSubstr("grows"));
  EXPECT_THAT(FailureOf(doubling + "{% set ns.v = [ns.v, ns.v] %}{% endfor %}{{ ns.v }}"),
              HasSubstr("grows"));
  EXPECT_THAT(FailureOf(doubling + "{% set ns.v = {'a': ns.v, 'b': ns.v} %}{% endfor %}"),
              HasSubstr("grows"));
  const std::string long_text =
      "{% set ns = namespace(v='aaaaaaaaaaaaaaaa') %}"
      "{% for i in range(19) %}{% set ns.v = ns.v + ns.v %}{% endfor %}";
  EXPECT_THAT(FailureOf(long_text + "{{ ns.v.replace('a', ns.v) }}"), HasSubstr("grows too long"));
  EXPECT_THAT(FailureOf(long_text + "{{ ns.v | replace('a', ns.v) }}"), HasSubstr("grows too long"));
  EXPECT_THAT(FailureOf(long_text + "{{ ns.v.join(range(100000)) }}"), HasSubstr("grows too long"));
  EXPECT_THAT(FailureOf(long_text + "{{ range(100000) | join(ns.v) }}"), HasSubstr("grows too long"));
  EXPECT_THAT(FailureOf(long_text + "{% for i in range(99999) %}{% set x = ns.v %}{% endfor %}"),
              HasSubstr("steps"));
  EXPECT_THAT(FailureOf("{{ range(1001) | unique | list }}"), HasSubstr("unique of more than 1000"));
  EXPECT_THAT(FailureOf("{{ 'a'.replace('', 'b') }}"), HasSubstr("empty text"));
  EXPECT_THAT(
      FailureOf("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"),
      HasSubstr("steps"));
  EXPECT_THAT(FailureOf("{{ range(1000000000) }}"), HasSubstr("range"));
  EXPECT_THAT(FailureOf("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
              HasSubstr("too deeply"));
  EXPECT_THAT(FailureOf("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + "}}"),
              HasSubstr("nested too deeply"));
  EXPECT_THAT(FailureOf("{{ " + std::string(5000, '-') + "1 }}"), HasSubstr("nested too deeply"));
  EXPECT_THAT(FailureOf("{{ 9223372036854775807 + 1 }}"), HasSubstr("too large"));
  std::string nested;
  for (int i = 0; i < 3000; ++i) nested += "{% if 1 %}";
  EXPECT_THAT(FailureOf(nested), HasSubstr("nested too deeply"));
  // A namespace may hold itself; it is printed by name and leaves nothing behind.
  const auto text =
      RunText("{% set ns = namespace() %}{% set ns.me = [ns, ns] %}{{ ns.me }}{{ ns == ns }}");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "[<Namespace>, <Namespace>]True");
}

TEST(Jinja, MutatedTemplatesNeverBreakTheInterpreter) {
  const auto cases = Cases();
  Random random(12);
  int rendered = 0;
  for (int round = 0; round < 1500; ++round) {
    const json& c = cases[random.Below(cases.size())];
    std::string source = c["template"].get<std::string>();
    for (uint64_t edits = 1 + random.Below(3); edits > 0; --edits) {
      const size_t at = random.Below(source.size());
      switch (random.Below(3)) {
        case 0:
          source[at] = "{}%|()[]'\"+-.,:~ \n0a"[random.Below(20)];
          break;
        case 1:
          source.erase(at, 1 + random.Below(6));
          break;
        default:
          source.insert(at, 1, "{}%|()[]'\"+-.,:~ \n0a"[random.Below(20)]);
          break;
      }
    }
    Named values;
    for (const auto& [key, value] : c["values"].items()) values.emplace_back(key, From(value));
    const auto text = RunText(source, values);
    rendered += text.ok();
    if (!text.ok()) {
      EXPECT_EQ(StatusReason(text.status()), Reason::kChatTemplateInvalid) << text.status();
    }
  }
  EXPECT_GT(rendered, 0);
}

}  // namespace
}  // namespace nibble::engine::jinja
