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
  EXPECT_EQ(Ellipsize("abcdef", 6), "abcdef");
  EXPECT_EQ(Ellipsize("abcdef", 4), "abc…");
  EXPECT_EQ(Ellipsize("abcdef", 0), "");
  const std::string painted = Ellipsize(Paint(kColor, Ink::kRed, "abcdef"), 4);
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
  EXPECT_THAT(two.back(), HasSubstr("* loss   * eval"));
}

TEST(DrawTest, TableAligns) {
  EXPECT_EQ(Table({{"NAME", "SIZE"}, {"a", "1"}, {"long", "100"}}, kUnicode, {1}),
            "NAME  SIZE\na        1\nlong   100\n");
}

}  // namespace
}  // namespace nibble::client
