// Who lets go for whom (docs/scheduling.md), and who is left alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/testing/contest.h"

namespace nibble::core {
namespace {

using ::testing::HasSubstr;
using testing::CallWithout;
using testing::Compete;
using testing::Driver;
using testing::IsAskedToLetGo;
using testing::kHourUs;
using testing::kMB;
using testing::kMinuteUs;
using testing::Lasting;
using testing::Of;
using testing::WorkerOfJob;

// Past the time in which nobody is asked.
void RunOn(Driver& d, const std::vector<std::string>& workers) {
  d.Advance(d.core().options.min_run_us + kSecondUs);
  for (const std::string& worker : workers) d.Must(Synchronize(d.SyncOf(worker)));
}

// Of all devices the one is chosen where the fewest have to let go.
TEST(Preemption, AsFewAsPossibleLetGo) {
  Driver d;
  d.AddWorker("w2", 200 * kMB);
  const auto add = [&](const char* id, int32_t r, int64_t work_us, int32_t priority = 0) {
    CreateJob create = Lasting(id, work_us);
    create.spec.lora_r = r;
    create.priority = priority;
    d.Must(create);
    d.Place();
  };
  add("one", 60, 10 * kHourUs);
  d.AddWorker("w1", 200 * kMB);
  add("two", 30, 20 * kHourUs);  // not beside the first; the weaker ones: more is left
  add("three", 30, 20 * kHourUs);
  ASSERT_EQ(WorkerOfJob(d, "one"), "w2");
  ASSERT_EQ(WorkerOfJob(d, "two"), "w1");
  ASSERT_EQ(WorkerOfJob(d, "three"), "w1");
  d.Advance(d.core().options.min_run_us + kSecondUs);
  for (const char* worker : {"w1", "w2"}) d.Must(Synchronize(d.SyncOf(worker)));
  add("big", 75, 15 * kHourUs, 1);  // 10 + 100 + 75 + 1: beside nobody
  EXPECT_TRUE(IsAskedToLetGo(d, "one"));
  EXPECT_FALSE(IsAskedToLetGo(d, "two") || IsAskedToLetGo(d, "three"));
}

// Two are found before three, and stay the plan.
TEST(Preemption, NoMoreThanTheFewestFoundSoFar) {
  Driver d;
  const auto fill = [&](const char* worker, int32_t r, int64_t work_us,
                        std::initializer_list<const char*> ids) {
    d.AddWorker(worker, 200 * kMB);
    for (const char* id : ids) {
      CreateJob create = Lasting(id, work_us);
      create.spec.lora_r = r;
      d.Must(create);
      d.Place();
      ASSERT_EQ(WorkerOfJob(d, id), worker);
    }
  };
  fill("w1", 40, 30 * kHourUs, {"a", "b"});
  fill("w2", 25, 20 * kHourUs, {"c", "d", "e"});
  RunOn(d, {"w1", "w2"});
  CreateJob big = Lasting("big", 15 * kHourUs, 1);
  big.spec.lora_r = 75;  // beside nobody
  d.Must(big);
  d.Place();
  EXPECT_TRUE(IsAskedToLetGo(d, "a") && IsAskedToLetGo(d, "b"));
  for (const char* id : {"c", "d", "e"}) EXPECT_FALSE(IsAskedToLetGo(d, id)) << id;
}

TEST(Preemption, WhoIsOverdueTakesThePlaceOfWhoHasMoreLeft) {
  Driver d;
  d.core().options.preempt_work_ratio = 0;
  Compete(d, Lasting("long", 400 * kHourUs), Lasting("short", kHourUs));
  EXPECT_FALSE(IsAskedToLetGo(d, "long"));
  d.Advance(13 * kHourUs);  // half of 24 hours, not two thirds
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Place();
  ASSERT_TRUE(IsAskedToLetGo(d, "long"));
  EXPECT_THAT(d.job("long").Current()->release_reason, HasSubstr("is overdue"));
}

TEST(Preemption, NobodyLetsGoForWhoStartsInAMinuteAnyway) {
  for (const int64_t left_us : {kMinuteUs / 2, 5 * kMinuteUs}) {
    Driver d;
    d.core().options.preempt_work_ratio = 0;
    Compete(d, Lasting("low", d.core().options.min_run_us + kSecondUs + left_us),
            Lasting("high", kHourUs, 1));
    EXPECT_EQ(IsAskedToLetGo(d, "low"), left_us > kMinuteUs) << left_us;
  }
}

// Of those on a device only who has run for long enough; alone it does not make room, so nobody is asked.
TEST(Preemption, OneThatRunsLongEnoughDoesNotDrawInAnother) {
  Driver d;
  d.AddWorker("w1", 200 * kMB);
  CreateJob first = Lasting("first", 10 * kHourUs), second = Lasting("second", 10 * kHourUs);
  first.spec.lora_r = second.spec.lora_r = 40;  // 10 + 100 + 40 + 40 + 1
  d.Must(first);
  d.Place();
  RunOn(d, {"w1"});
  d.Must(second);
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "second"), "w1");
  CreateJob high = Lasting("high", 10 * kHourUs, 1);
  high.spec.lora_r = 80;  // beside neither
  d.Must(high);
  d.Place();
  EXPECT_FALSE(IsAskedToLetGo(d, "first") || IsAskedToLetGo(d, "second"));
  RunOn(d, {"w1"});
  d.Place();
  EXPECT_TRUE(IsAskedToLetGo(d, "first") && IsAskedToLetGo(d, "second"));
}

// Two of which either would do: the weaker by priority.
TEST(Preemption, TheWeakestLetsGo) {
  for (const bool turned : {false, true}) {
    Driver d;
    d.AddWorker("w1", 200 * kMB);
    for (const char* id : {"one", "two"}) {
      CreateJob create = Lasting(id, 10 * kHourUs, (id[0] == 'o') != turned ? 1 : 0);
      create.spec.lora_r = 40;
      d.Must(create);
    }
    d.Place();
    ASSERT_EQ(WorkerOfJob(d, "one"), "w1");
    ASSERT_EQ(WorkerOfJob(d, "two"), "w1");
    RunOn(d, {"w1"});
    CreateJob high = Lasting("high", 10 * kHourUs, 2);
    high.spec.lora_r = 40;
    d.Must(high);
    d.Place();
    EXPECT_EQ(IsAskedToLetGo(d, "one"), turned);
    EXPECT_EQ(IsAskedToLetGo(d, "two"), !turned);
  }
}

// Priority, work left, project: what takes a place inside a project and what does not, case by case.
TEST(Preemption, InsideAProject) {
  struct Case {
    const char* name;
    CreateJob first, second;
    bool lets_go;
  };
  const Case cases[] = {
      {"equal", Lasting("a", 10 * kHourUs), Lasting("b", 10 * kHourUs), false},
      {"higher priority", Lasting("a", 10 * kHourUs), Lasting("b", 10 * kHourUs, 1), true},
      {"much less work", Lasting("a", 90 * kHourUs), Lasting("b", 10 * kHourUs), true},
      {"not so much less", Lasting("a", 70 * kHourUs), Lasting("b", 10 * kHourUs), false},
      {"much less, of a lower priority", Lasting("a", 90 * kHourUs, 1), Lasting("b", 10 * kHourUs), false},
  };
  for (const Case& c : cases) {
    Driver d;
    Compete(d, c.first, c.second);
    EXPECT_EQ(IsAskedToLetGo(d, "a"), c.lets_go) << c.name;
  }
}

// In another project: who would still hold less of the fleet afterwards, and a few minutes of much more work.
TEST(Preemption, BetweenProjects) {
  // How many are asked to let go for one more of "mine", which holds so many of the devices.
  const auto asked_for = [](int held, int64_t left_us, int64_t work_us, bool for_share, int devices = 3) {
    Driver d;
    d.core().options.max_attempts_per_device = 1;
    d.core().options.preempt_for_share = for_share;
    d.core().options.brief_milli = 1'000;
    d.Must(ServerStart{"timeline-1"});
    std::vector<std::string> workers;
    for (int i = 0; i < devices; ++i) {
      workers.push_back(absl::StrCat("w", i));
      d.AddWorker(workers.back());
      d.Must(Of(i < held ? "mine" : "theirs", Lasting(absl::StrCat("j", i), left_us)));
    }
    d.Place();
    RunOn(d, workers);
    d.Must(Of("mine", Lasting("more", work_us)));
    d.Place();
    int asked = 0;
    for (int i = held; i < devices; ++i) asked += IsAskedToLetGo(d, absl::StrCat("j", i)) ? 1 : 0;
    return asked;
  };
  EXPECT_EQ(asked_for(0, 50 * kHourUs, 50 * kHourUs, true), 1) << "then one against two";
  EXPECT_EQ(asked_for(1, 50 * kHourUs, 50 * kHourUs, true), 0) << "then it would be turned round";
  EXPECT_EQ(asked_for(1, 50 * kHourUs, 50 * kHourUs, true, 4), 0) << "one against three: two against two";
  EXPECT_EQ(asked_for(1, 50 * kHourUs, 50 * kHourUs, true, 5), 1) << "one against four: two against three";
  EXPECT_EQ(asked_for(0, 50 * kHourUs, 50 * kHourUs, false), 0);
  EXPECT_EQ(asked_for(0, 50 * kHourUs, kHourUs, false), 0) << "much less work is for its own project";
  EXPECT_EQ(asked_for(0, 50 * kHourUs, 5 * kMinuteUs, false), 1);
  EXPECT_EQ(asked_for(0, 30 * kMinuteUs, 5 * kMinuteUs, false), 0) << "not much less";
}

// Who lets go is counted as gone, and who waits for that as there: so that many that wait at one time take no
// more than one after the other would, neither in one pass nor while who was asked has not let go yet.
TEST(Preemption, AProjectTakesNoMoreThanItsShareAtOnce) {
  Driver d;
  d.core().options.max_attempts_per_device = 1;
  d.Must(ServerStart{"timeline-1"});
  std::vector<std::string> workers;
  for (int i = 0; i < 8; ++i) {
    workers.push_back(absl::StrCat("w", i));
    d.AddWorker(workers.back());
    d.Must(Of("theirs", Lasting(absl::StrCat("theirs-", i), 50 * kHourUs)));
  }
  d.Place();
  RunOn(d, workers);
  const auto add = [&](int i) {
    CreateJob more = Of("mine", Lasting(absl::StrCat("mine-", i), 50 * kHourUs));
    more.spec.lora_r += i;  // of one kind only the first is looked at
    d.Must(more);
  };
  const auto asked = [&] {
    int count = 0;
    for (int i = 0; i < 8; ++i) count += IsAskedToLetGo(d, absl::StrCat("theirs-", i)) ? 1 : 0;
    return count;
  };
  add(0);
  d.Place();
  EXPECT_EQ(asked(), 1);
  for (int i = 1; i < 8; ++i) add(i);
  for (int pass = 0; pass < 3; ++pass) {
    d.Place();
    EXPECT_EQ(asked(), 3) << "three against five; four against four would be turned round, pass " << pass;
  }
}

// Several on a device that have to go together leave their project what they leave it together.
TEST(Preemption, WhatGoesTogetherIsCountedTogether) {
  for (const int elsewhere : {1, 3}) {
    Driver d;
    d.core().options.default_load_milli = 100;
    d.Must(ServerStart{"timeline-1"});
    const auto add = [&](const char* project, const std::string& id, int32_t r) {
      CreateJob create = Of(project, Lasting(id, 50 * kHourUs));
      create.spec.lora_r = r;
      d.Must(create);
      d.Place();
      return WorkerOfJob(d, id);
    };
    d.AddWorker("w1", 200 * kMB);
    ASSERT_EQ(add("theirs", "a", 40), "w1");
    ASSERT_EQ(add("theirs", "b", 40), "w1");
    std::vector<std::string> workers{"w1"};
    for (int i = 0; i < elsewhere; ++i) {
      workers.push_back(absl::StrCat("other", i));
      d.AddWorker(workers.back(), 170 * kMB);
      ASSERT_EQ(add("theirs", absl::StrCat("c", i), 50), workers.back());
    }
    RunOn(d, workers);
    // Too large for all but the first device, and for that beside either. It would hold 186 MB;
    // with one of the two gone theirs would hold more, with both the 161 of each device elsewhere.
    ASSERT_EQ(add("mine", "big", 75), "");
    EXPECT_EQ(IsAskedToLetGo(d, "a"), elsewhere == 3);
    EXPECT_EQ(IsAskedToLetGo(d, "b"), elsewhere == 3);
  }
}

// From half of its bound for those of its project with more left, from two thirds for anybody.
TEST(Preemption, TheBoundOnWaiting) {
  const auto lets_go = [](const char* project, int64_t work_us, int64_t waited_us) {
    Driver d;
    d.core().options.preempt_work_ratio = 0;
    d.core().options.preempt_for_share = false;
    Compete(d, Lasting("runs", 100 * kHourUs), Of(project, Lasting("waits", work_us)));
    d.Advance(waited_us);
    d.Must(Synchronize(d.SyncOf("w1")));
    d.Place();
    return IsAskedToLetGo(d, "runs");
  };
  EXPECT_FALSE(lets_go("default", 50 * kHourUs, 11 * kHourUs));
  EXPECT_TRUE(lets_go("default", 50 * kHourUs, 13 * kHourUs));
  EXPECT_FALSE(lets_go("default", 150 * kHourUs, 13 * kHourUs)) << "who has less left ends first";
  EXPECT_FALSE(lets_go("default", 90 * kHourUs, 13 * kHourUs)) << "it has done 13 of its 100 hours";
  EXPECT_FALSE(lets_go("theirs", 50 * kHourUs, 13 * kHourUs));
  EXPECT_TRUE(lets_go("theirs", 150 * kHourUs, 17 * kHourUs));
}

// Who should have ended by now is no reason to wait another minute.
TEST(Preemption, NobodyWaitsForAnEndThatIsLate) {
  Driver d;
  d.core().options.preempt_work_ratio = 0;
  Compete(d, Lasting("late", kHourUs), Lasting("waits", 10 * kHourUs));
  ASSERT_FALSE(IsAskedToLetGo(d, "late"));
  d.Advance(kHourUs);
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Must(Lasting("high", 10 * kHourUs, 1));
  d.Place();
  EXPECT_TRUE(IsAskedToLetGo(d, "late"));
}

// What one is asked for is kept for it: nobody slips in, and nobody else is asked for the same.
TEST(Preemption, WhatIsLetGoIsKeptForWhoAsked) {
  Driver d;
  d.core().options.max_attempts_per_device = 2;
  d.Must(ServerStart{"timeline-1"});
  d.AddWorker("w1", 200 * kMB);
  CreateJob low = Lasting("low", 50 * kHourUs);
  low.spec.lora_r = 60;
  d.Must(low);
  d.Place();
  RunOn(d, {"w1"});
  CreateJob high = Lasting("high", 50 * kHourUs, 1);
  high.spec.lora_r = 70;  // not beside it
  d.Must(high);
  CreateJob small = Lasting("small", 40 * kHourUs);
  small.spec.lora_r = 20;  // beside the first, not beside the second
  small.spec.sequence_len = 2'000;
  d.Must(small);
  d.Place();
  EXPECT_TRUE(IsAskedToLetGo(d, "low"));
  EXPECT_EQ(WorkerOfJob(d, "small"), "") << "it would be in the way of who asked";
  d.Advance(kMinuteUs);
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "small"), "");
  EXPECT_EQ(WorkerOfJob(d, "high"), "") << "its worker has not let go yet";
  d.Must(ReportReleased{d.FenceOf("low"), 0});
  CallWithout(d, "w1", "low");
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "high"), "w1");
}

// Also where another device would have been free first: there nobody could let go for it. The small one waits
// in the very pass that has the other asked, and in the next, when that one is about to go.
TEST(Preemption, WhatIsLetGoIsKeptWhereItIs) {
  Driver d;
  d.core().options.max_attempts_per_device = 2;
  d.core().options.preempt_work_ratio = 0;
  d.Must(ServerStart{"timeline-1"});
  const auto add = [&](CreateJob create, int32_t r) {
    create.spec.lora_r = r;
    d.Must(create);
  };
  d.AddWorker("w1", 200 * kMB);
  add(Lasting("mid", 3 * kHourUs, 1), 80);
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "mid"), "w1");
  d.AddWorker("w2", 200 * kMB);
  add(Lasting("low", 50 * kHourUs), 60);
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "low"), "w2");
  RunOn(d, {"w1", "w2"});
  add(Lasting("high", 50 * kHourUs, 1), 70);
  add(Lasting("small", 40 * kHourUs), 20);
  for (int pass = 0; pass < 2; ++pass) {
    d.Place();
    ASSERT_TRUE(IsAskedToLetGo(d, "low"));
    EXPECT_EQ(WorkerOfJob(d, "high"), "");
    EXPECT_EQ(WorkerOfJob(d, "small"), "") << "beside the low one it would fit, pass " << pass;
  }
}

// One lets go for the first that waits, and what that leaves is too little for the second: then nobody
// lets go for the second there, since it could not start.
TEST(Preemption, NobodyLetsGoWhereThePlaceIsAnothers) {
  Driver d;
  d.AddWorker("w1", 200 * kMB);
  const auto add = [&](CreateJob create, int32_t r) {
    create.spec.lora_r = r;
    d.Must(create);
  };
  add(Lasting("long", 50 * kHourUs), 40);
  add(Lasting("short", 40 * kHourUs), 40);
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "long") + WorkerOfJob(d, "short"), "w1w1");
  RunOn(d, {"w1"});
  add(Lasting("first", 30 * kHourUs, 2), 48);   // beside either
  add(Lasting("second", 30 * kHourUs, 1), 45);  // beside either, not beside the first
  d.Place();
  EXPECT_TRUE(IsAskedToLetGo(d, "long"));
  EXPECT_FALSE(IsAskedToLetGo(d, "short"));
}

// One lets go already: that is who is waited for, also where a second one could be asked.
TEST(Preemption, WhoPausesIsAboutToGo) {
  Driver d;
  d.AddWorker("w1", 300 * kMB);
  for (const char* id : {"pauses", "stays"}) {
    CreateJob create = Lasting(id, 50 * kHourUs);
    create.spec.lora_r = 90;
    d.Must(create);
  }
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "stays"), "w1");
  RunOn(d, {"w1"});
  d.Must(PauseJob{"pauses"});
  CreateJob high = Lasting("high", 50 * kHourUs, 1);
  high.spec.lora_r = 90;
  d.Must(high);
  d.Place();
  EXPECT_FALSE(IsAskedToLetGo(d, "stays"));
  // Who needs the place of both has the other asked at once.
  CreateJob higher = Lasting("higher", 50 * kHourUs, 2);
  higher.spec.lora_r = 180;
  d.Must(higher);
  d.Place();
  EXPECT_TRUE(IsAskedToLetGo(d, "stays"));
}

// Two that wait each have one let go, on devices of their own.
TEST(Preemption, EachHasADeviceOfItsOwn) {
  Driver d;
  d.core().options.max_attempts_per_device = 1;
  d.Must(ServerStart{"timeline-1"});
  for (const char* worker : {"w1", "w2"}) d.AddWorker(worker);
  for (const char* id : {"low-1", "low-2"}) d.Must(Lasting(id, 50 * kHourUs));
  d.Place();
  RunOn(d, {"w1", "w2"});
  for (const char* id : {"high-1", "high-2"}) {
    CreateJob high = Lasting(id, 50 * kHourUs, 1);
    high.spec.lora_r += id[5];  // of one kind only the first is looked at
    d.Must(high);
  }
  d.Place();
  ASSERT_TRUE(IsAskedToLetGo(d, "low-1") && IsAskedToLetGo(d, "low-2"));
  EXPECT_NE(d.job("low-1").Current()->release_reason, d.job("low-2").Current()->release_reason);
}

}  // namespace
}  // namespace nibble::core
