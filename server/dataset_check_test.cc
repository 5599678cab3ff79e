#include "server/dataset_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/spec/row_keys.h"

namespace nibble::server {
namespace {

ReadBytes From(const std::string& data, int64_t at_most) {
  return [&data, at_most](int64_t offset, int64_t max_bytes) -> absl::StatusOr<std::string> {
    return data.substr(static_cast<size_t>(offset), static_cast<size_t>(std::min(max_bytes, at_most)));
  };
}

absl::StatusOr<DatasetFacts> Check(const std::string& data) {
  // The same bytes in any pieces must give the same answer.
  auto whole = CheckDataset(From(data, 1 << 20));
  for (int64_t piece : {int64_t{1}, int64_t{3}, int64_t{17}}) {
    auto cut = CheckDataset(From(data, piece));
    EXPECT_EQ(cut.ok(), whole.ok());
    EXPECT_EQ(cut.status().message(), whole.status().message());
    if (cut.ok() && whole.ok()) {
      EXPECT_EQ(cut->rows, whole->rows);
    }
  }
  return whole;
}

TEST(CheckDataset, DetectsEveryFormat) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]})", "messages"},
      {R"({"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]})", "sharegpt"},
      {R"({"instruction":"a","input":"","output":"b"})", "alpaca"},
      {R"({"instruction":"a","output":"b"})", "alpaca"},
      {R"({"prompt":"a","completion":"b"})", "completion"},
      {R"({"prompt":"a","response":"b"})", "completion"},
      {R"({"question":"a","answer":"b"})", "completion"},
      {R"({"input":"a","output":"b"})", "completion"},
      {R"({"instruction":"a","context":"c","response":"b"})", "alpaca"},
      {R"({"text":"a"})", "text"},
  };
  for (const auto& [row, format] : cases) {
    for (const std::string& file : {absl::StrCat(row, "\n", row, "\n"), absl::StrCat(row, "\r\n\n  \n", row),
                                    absl::StrCat("[", row, ",\n ", row, "]\n"),
                                    absl::StrCat("\xEF\xBB\xBF \n[ ", row, " , ", row, " ]")}) {
      auto facts = Check(file);
      ASSERT_TRUE(facts.ok()) << file << facts.status();
      EXPECT_EQ(facts->format, format);
      EXPECT_EQ(facts->rows, 2) << file;
    }
  }
}

// What a recipe may call the rows: an alpaca row often has its prompt and answer once more as text.
TEST(CheckDataset, FindsTheFormatsThatAllRowsHaveTheKeysOf) {
  using testing::ElementsAre;
  const auto formats = [](const std::string& file) { return Check(file)->formats; };
  EXPECT_THAT(formats(R"({"messages":[{"role":"user","content":"a"}]})"), ElementsAre("messages"));
  EXPECT_THAT(formats(R"({"prompt":"a","completion":"b"})"), ElementsAre("completion"));
  const std::string both = R"({"instruction":"a","output":"b","text":"a b"})";
  EXPECT_THAT(formats(both + "\n" + both), ElementsAre("alpaca", "text"));
  EXPECT_THAT(formats(both + "\n" + R"({"instruction":"a","output":"b","text":null})"), ElementsAre("alpaca"));
  EXPECT_THAT(formats(R"({"text":"a","input":"b"})"), ElementsAre("text")) << "an input without an output";
}

TEST(CheckDataset, NamesBadRows) {
  auto facts = Check(R"({"text":"a"}
not json
{"text":7}
{"text":"fine"}
{"prompt":"a","completion":"b"}
["text"]
)");
  ASSERT_FALSE(facts.ok());
  EXPECT_EQ(StatusReason(facts.status()), Reason::kDatasetSchemaMismatch);
  const auto violations = StatusViolations(facts.status());
  ASSERT_EQ(violations.size(), 4u);
  EXPECT_EQ(violations[0].field, "rows[1]");
  EXPECT_EQ(violations[1].field, "rows[2].text");
  EXPECT_EQ(violations[2].field, "rows[4].text");
  EXPECT_EQ(violations[3].field, "rows[5]");
  EXPECT_EQ(StatusMetadata(facts.status())["bad_rows"], "4");
}

TEST(CheckDataset, SaysOnWhichLine) {
  const auto line_of = [](const std::string& file) {
    const auto violations = StatusViolations(CheckDataset(From(file, 3)).status());
    if (violations.size() != 1) return std::string("none");
    const std::string& text = violations[0].description;
    return text.substr(text.rfind('('));
  };
  EXPECT_EQ(line_of("{}"), "(line 1)");
  EXPECT_EQ(line_of("\xEF\xBB\xBF\n\n{\"text\":\"a\"}\r\n \n{\"text\":1}\n"), "(line 5)");
  EXPECT_EQ(line_of("\n[{\"text\":\n\"a\"},\n\n{\n\"text\":1},\n{\"text\":\"b\"}]\n"), "(line 5)");
}

TEST(CheckDataset, NamesOtherFormats) {
  for (const auto& [data, says] : {std::pair{std::string("PAR1\x15\x04"), "Parquet"},
                                   {std::string("\x1f\x8b\x08"), "gzip"},
                                   {std::string("\xff\xfe{"), "UTF-16"},
                                   {std::string("PK\x03\x04"), "zip"}}) {
    const auto facts = CheckDataset(From(data, 1 << 20));
    EXPECT_EQ(StatusReason(facts.status()), Reason::kDatasetSchemaMismatch);
    EXPECT_NE(std::string(facts.status().message()).find(says), std::string::npos)
        << facts.status();
  }
}

TEST(CheckDataset, NamesTheTurn) {
  auto facts = Check(R"({"messages":[{"role":"user","content":"a"},{"role":"assistant"}]})");
  EXPECT_EQ(StatusViolations(facts.status()).at(0).field, "rows[0].messages[1].content");
  facts = Check(R"({"messages":[]})");
  EXPECT_EQ(StatusViolations(facts.status()).at(0).field, "rows[0].messages");
  facts = Check(R"({"conversations":["x"]})");
  EXPECT_EQ(StatusViolations(facts.status()).at(0).field, "rows[0].conversations[0]");
  facts = Check(R"({"system":["a"],"messages":[{"role":"user","content":"a"}]})");
  EXPECT_EQ(StatusViolations(facts.status()).at(0).field, "rows[0].system");
}

// As the engine: contents in parts, and keys that stand there for other rows of the table it was made of.
TEST(CheckDataset, TakesTextInPartsAndKeysWithoutAValue) {
  const auto said = [](const std::string& content) {
    return Check(R"({"messages":[{"role":"user","content":)" + content + "}]}");
  };
  EXPECT_TRUE(said(R"([{"type":"text","text":"a"},{"type":"text","text":"b"}])").ok());
  const auto violation = StatusViolations(
      said(R"([{"type":"text","text":"a"},{"type":"image_url","image_url":"b"}])").status());
  ASSERT_EQ(violation.size(), 1u);
  EXPECT_EQ(violation[0].field, "rows[0].messages[0].content[1]");
  EXPECT_THAT(violation[0].description, testing::HasSubstr("nothing else can be trained on"));
  for (const char* bad : {"7", "[7]", R"([{"type":"text","text":7}])", R"([{"text":"a"}])", "null"})
    EXPECT_EQ(StatusReason(said(bad).status()), Reason::kDatasetSchemaMismatch) << bad;
  const auto table = Check(R"({"messages":null,"text":"a"})");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->format, "text");
}

TEST(CheckDataset, KeepsTheFirstHundred) {
  std::string file = "{\"text\":\"a\"}\n";
  for (int i = 0; i < 250; ++i) file += "{}\n";
  auto facts = CheckDataset(From(file, 1 << 20));
  EXPECT_EQ(StatusViolations(facts.status()).size(), 100u);
  EXPECT_EQ(StatusMetadata(facts.status())["bad_rows"], "250");
}

TEST(CheckDataset, RefusesEmptyFiles) {
  for (const std::string& file : {std::string(), std::string("\n\n"), std::string("[]"), std::string(" [ ] "),
                                  std::string(100, ' '), std::string("\xEF\xBB\xBF")}) {
    auto facts = Check(file);
    EXPECT_EQ(StatusReason(facts.status()), Reason::kDatasetEmpty) << '"' << file << '"';
  }
}

TEST(CheckDataset, RefusesBrokenArrays) {
  for (const char* file : {R"([{"text":"a"})", R"([{"text":"a"}] x)", R"([,{"text":"a"}])",
                           R"([{"text":"a"},])", R"([{"text":"a"},,{"text":"b"}])"}) {
    auto facts = Check(file);
    EXPECT_EQ(StatusReason(facts.status()), Reason::kDatasetSchemaMismatch) << file;
  }
}

TEST(CheckDataset, RefusesNestingAndBadUtf8) {
  std::string deep = R"({"text":"a","x":)" + std::string(40, '[') + std::string(40, ']') + "}";
  EXPECT_EQ(StatusReason(Check(deep).status()), Reason::kDatasetSchemaMismatch);
  std::string brackets = R"({"text":")" + std::string(40, '[') + "\\\"" + std::string(40, '{') + "\"}";
  EXPECT_TRUE(Check(brackets).ok()) << "brackets in text are text";
  EXPECT_EQ(StatusReason(Check("{\"text\":\"\xFF\xFE\"}").status()), Reason::kDatasetSchemaMismatch);
}

TEST(CheckDataset, SaysWhatIsWrongWithBytesAndJson) {
  const auto says = [](const std::string& row) { return std::string(Check(row).status().message()); };
  EXPECT_THAT(says("{\"text\":\"\xFF\xFE\"}"), testing::HasSubstr("rows[0] has bytes that are not UTF-8"));
  EXPECT_THAT(says("a,b,c"), testing::HasSubstr("rows[0] is not valid JSON;"));
}

// Which of the values counts is another matter from one reader to the next.
TEST(CheckDataset, RefusesAKeyThatStandsTwice) {
  const auto says = [](const std::string& row) { return std::string(Check(row).status().message()); };
  EXPECT_THAT(says(R"({"prompt":"a","completion":"b","prompt":"c"})"),
              testing::HasSubstr(R"(rows[0] has the key "prompt" twice in one object (line 1))"));
  EXPECT_THAT(
      says(
          R"({"messages":[{"role":"user","content":"a"},{"role":"user","content":"b","r\u006fle":"assistant"}]})"),
      testing::HasSubstr(R"(the key "role" twice)"));
  EXPECT_TRUE(Check(R"({"text":"a: \"b\": {\\","x":{"text":1},"y":[{"text":"\\"},{"text":":"}]})").ok());
}

TEST(CheckDataset, RefusesAnEndlessLineWithoutReadingIt) {
  for (const std::string& head : {std::string("{\"text\":\""), std::string("[{\"text\":\"")}) {
    int64_t asked = 0;
    const auto read = [&](int64_t offset, int64_t max_bytes) -> absl::StatusOr<std::string> {
      asked = offset + max_bytes;
      return offset == 0 ? head : std::string(static_cast<size_t>(max_bytes), 'x');
    };
    auto facts = CheckDataset(read);
    EXPECT_EQ(StatusReason(facts.status()), Reason::kRequestTooLarge);
    EXPECT_EQ(StatusViolations(facts.status()).at(0).field, "rows[0]");
    EXPECT_LE(asked, spec::kMaxRowBytes + (2 << 20));
  }
}

TEST(CheckDataset, PiecesOfAnySizeAreTheSameRows) {
  const std::string mark = "\xEF\xBB\xBF";
  const std::string blanks(spec::kMaxRowBytes, ' ');
  const std::pair<std::string, int64_t> files[] = {
      {mark + "{\"text\":\"a\"}\r\n\r\n {\"text\":\"b\"}", 2},
      {mark + " [{\"text\":\"],\\\"\"} , {\"text\":\"b\"}]\n", 2},
      {"[" + blanks + "{\"text\":\"a\"}]", 1},
      {blanks + "\n{\"text\":\"a\"}\n", 1}};
  for (const auto& [file, rows] : files) {
    for (const int64_t piece : {int64_t{1}, int64_t{2}, int64_t{5}, int64_t{1} << 20}) {
      if (file.size() > 1000 && piece < 1000) continue;
      const auto facts = CheckDataset(From(file, piece));
      ASSERT_TRUE(facts.ok()) << piece << ": " << facts.status();
      EXPECT_EQ(facts->rows, rows);
    }
  }
  for (const std::string& file : {mark.substr(0, 2), mark.substr(0, 1) + " {}", mark + mark + "{}"}) {
    EXPECT_EQ(StatusReason(CheckDataset(From(file, 1)).status()), Reason::kDatasetSchemaMismatch);
  }
}

TEST(FirstRows, StopsWhenItHasThem) {
  const std::string lines = "{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"}";
  auto rows = FirstRows(From(lines, 5), 2);
  ASSERT_TRUE(rows.ok());
  EXPECT_EQ(*rows, (std::vector<std::string>{"{\"text\":\"a\"}", "{\"text\":\"b\"}"}));
  EXPECT_EQ(FirstRows(From(lines, 100), 9)->size(), 3u);
}

}  // namespace
}  // namespace nibble::server
