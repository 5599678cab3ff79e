#include "client/draw.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nibble::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
const Style kUnicode{false, true};
const Style kAscii{false, false};
const Style kColor{true, true};

TEST(DrawTest, Bytes) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.0 KiB");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(200LL << 20), "200 MiB");
  EXPECT_EQ(FormatBytes(-(3LL << 30)), "-3.0 GiB");
}

TEST(DrawTest, Counts) {
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1900), "1.9k");
  EXPECT_EQ(FormatCount(12'300'000), "12.3M");
  EXPECT_EQ(FormatCount(kNan), "-");
}

TEST(DrawTest, Durations) {
  EXPECT_EQ(FormatDuration(-1), "-");
  EXPECT_EQ(FormatDuration(0), "0s");
  EXPECT_EQ(FormatDuration(185), "3m05s");
  EXPECT_EQ(FormatDuration(2 * 3600 + 4 * 60 + 59), "2h04m");
  EXPECT_EQ(FormatDuration(3 * 86400 + 2 * 3600), "3d02h");
}

TEST(DrawTest, Losses) {
  EXPECT_EQ(FormatLoss(0.41236), "0.4124");
  EXPECT_EQ(FormatLoss(12.345), "12.35");
  EXPECT_EQ(FormatLoss(0.00001234), "1.2e-05");
  EXPECT_EQ(FormatLoss(0), "0.0000");
  EXPECT_EQ(FormatLoss(kNan), "nan");
  EXPECT_EQ(FormatLoss(-std::numeric_limits<double>::infinity()), "-inf");
  EXPECT_EQ(FormatRate(2e-4), "2.0e-04");
}

TEST(DrawTest, WidthIgnoresEscapesAndCountsCodePoints) {
  EXPECT_EQ(DisplayWidth("abc"), 3);
  EXPECT_EQ(DisplayWidth("▁▂█"), 3);
  EXPECT_EQ(DisplayWidth(Paint(kColor, Ink::kRed, "abc")), 3);
}

TEST(DrawTest, EllipsizeCutsByCellAndKeepsTheReset) {
  EXPECT_EQ(Ellipsize("abcdef", 6, kUnicode), "abcdef");
  EXPECT_EQ(Ellipsize("abcdef", 4, kUnicode), "abc…");
  EXPECT_EQ(Ellipsize("abcdef", 0, kUnicode), "");
  const std::string painted = Ellipsize(Paint(kColor, Ink::kRed, "abcdef"), 4, kUnicode);
  EXPECT_EQ(DisplayWidth(painted), 4);
  EXPECT_THAT(painted, testing::EndsWith("\x1b[0m"));
}

TEST(DrawTest, BarFillsInEighths) {
  EXPECT_EQ(Bar(0, 4, kUnicode), "····");
  EXPECT_EQ(Bar(1, 4, kUnicode), "████");
  EXPECT_EQ(Bar(0.5, 4, kUnicode), "██··");
  EXPECT_EQ(Bar(0.375, 1, kUnicode), "▍");
  EXPECT_EQ(Bar(0.5, 4, kAscii), "##..");
  EXPECT_EQ(Bar(7, 2, kUnicode), "██");
  EXPECT_EQ(Bar(kNan, 2, kUnicode), "··");
  for (int i = 0; i <= 100; ++i) EXPECT_EQ(DisplayWidth(Bar(i / 100.0, 13, kColor)), 13) << i;
}

TEST(DrawTest, SparklineKeepsOrderGapsAndWidth) {
  EXPECT_EQ(Sparkline({0, 1, 2, 3, 4, 5, 6, 7}, 8, kUnicode), "▁▂▃▄▅▆▇█");
  EXPECT_EQ(Sparkline({1, kNan, 0}, 3, kUnicode), "█ ▁");
  EXPECT_EQ(Sparkline({5, 5}, 4, kUnicode), "▄▄");
  EXPECT_EQ(Sparkline({}, 4, kUnicode), "");
  EXPECT_EQ(DisplayWidth(Sparkline(std::vector<double>(1000, 1.0), 30, kUnicode)), 30);
  // Averaged, not sampled: both halves of a bucket count.
  EXPECT_EQ(Sparkline({0, 0, 4, 4, 8, 8}, 3, kUnicode), "▁▅█");
}

TEST(DrawTest, PlotDrawsAFallingLine) {
  const auto lines = Plot({{"loss", {0, 10}, {4, 1}}}, 30, 4, kUnicode);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_THAT(lines[0], HasSubstr("4.0000 ┤⠉⠑"));
  EXPECT_THAT(lines[3], testing::StartsWith("1.0000 ┤"));
  EXPECT_THAT(lines[4], testing::EndsWith("10"));
  for (const auto& line : lines) EXPECT_LE(DisplayWidth(line), 30);
}

TEST(DrawTest, PlotSkipsHolesAndRefusesTheImpossible) {
  EXPECT_TRUE(Plot({}, 40, 5, kUnicode).empty());
  EXPECT_TRUE(Plot({{"a", {1}, {kNan}}}, 40, 5, kUnicode).empty());
  EXPECT_TRUE(Plot({{"a", {1}, {1}}}, 5, 5, kUnicode).empty());
  const auto two = Plot({{"loss", {1, 2}, {1, 2}}, {"eval", {1, 2}, {2, 1}}}, 40, 5, kAscii);
  ASSERT_EQ(two.size(), 7u);
  EXPECT_THAT(two.back(), HasSubstr("* loss   o eval"));
}

TEST(DrawTest, TableAligns) {
  EXPECT_EQ(Table({{"NAME", "SIZE"}, {"a", "1"}, {"long", "100"}}, kUnicode, {1}),
            "NAME  SIZE\na        1\nlong   100\n");
}

TEST(DrawTest, WideCharactersTakeTwoCellsAndMarksNone) {
  EXPECT_EQ(DisplayWidth("数据"), 4);
  EXPECT_EQ(DisplayWidth("e\u0301"), 1);
  EXPECT_EQ(DisplayWidth("\U0001F600!"), 3);
  EXPECT_EQ(DisplayWidth("\xff\xc3"), 2);
  EXPECT_EQ(Ellipsize("数据集", 4, kUnicode), "数…");
  EXPECT_EQ(Ellipsize("abcdef", 4, kAscii), "abc.");
  EXPECT_EQ(Table({{"A", "B"}, {"数", "x"}, {"abc", "y"}}, kUnicode), "A    B\n数   x\nabc  y\n");
}

TEST(DrawTest, ControlCharactersAreNotShown) {
  EXPECT_EQ(Printable("a\x1b[2Jb\nc\td\x7f\u009b"), "a?[2Jb?c?d??");
  EXPECT_EQ(Printable("übersicht 数"), "übersicht 数");
  EXPECT_EQ(Printable("a\xff\xe6\x95"), "a???");
  EXPECT_EQ(ValidUtf8("数\xe6\x95\n"), "数??\n");
}

TEST(DrawTest, SeriesWithoutColourHaveMarks) {
  const auto lines = Plot({{"loss", {1, 2}, {1, 2}}, {"eval", {1, 2}, {2, 1}}}, 40, 5, kUnicode);
  EXPECT_THAT(lines.back(), HasSubstr("* loss   o eval"));
  EXPECT_THAT(lines[0], HasSubstr("o"));
  EXPECT_THAT(lines[0], HasSubstr("*"));
}

TEST(DrawTest, TablesFitTheTerminal) {
  const std::vector<std::vector<std::string>> rows = {
      {"NAME", "STEP", "WHAT IS IN THE WAY"},
      {"job-1", "1/20", "512 MiB too few, held by job-2 and job-3"},
      {"job-2", "-", "nothing"}};
  Style narrow{false, true, 40};
  EXPECT_EQ(Table(rows, narrow, {1}),
            "NAME   STEP  WHAT IS IN THE WAY\n"
            "job-1  1/20  512 MiB too few, held by\n"
            "             job-2 and job-3\n"
            "job-2     -  nothing\n");
  narrow.columns = 20;
  EXPECT_EQ(Table(rows, narrow, {1}),
            "job-1\n    step 1/20\n    what is in the way 512 MiB too few, held by job-2 and job-3\n"
            "job-2\n    what is in the way nothing\n");
  EXPECT_EQ(Table({rows[0]}, narrow, {1}), "NAME  STEP  WHAT IS…\n");
  EXPECT_EQ(Table(rows, kUnicode, {1}), Table(rows, Style{false, true, 200}, {1}));
  // Paint does not run on into the next column.
  const Style colored{true, true, 30};
  const std::string red = Paint(colored, Ink::kRed, "never, 18.9 GiB too short");
  const std::string painted = Table({{"A", "B", "C"}, {"x", red, "1"}}, colored);
  EXPECT_THAT(painted, testing::Not(HasSubstr("\x1b[31m")));
}

}  // namespace
}  // namespace nibble::client
