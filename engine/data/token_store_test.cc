#include "engine/data/token_store.h"

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "engine/testing/full_disk.h"
#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

Example RandomExample(Random& random) {
  Example example;
  for (int64_t n = random.Between(1, 3000); n > 0; --n) {
    example.ids.push_back(static_cast<int32_t>(random.Below(uint64_t{1} << 31)));
  }
  example.labels.assign(example.ids.size(), kNoLabel);
  for (size_t i = 0; i + 1 < example.ids.size(); ++i) {
    if (random.Chance(0.5)) example.labels[i] = example.ids[i + 1];
  }
  return example;
}

TEST(TokenStore, GivesBackWhatWasAdded) {
  const TempDir directory;
  auto store = TokenStore::Create(directory.path());
  ASSERT_TRUE(store.ok()) << store.status();
  Random random(5);
  std::vector<Example> examples;
  for (int i = 0; i < 600; ++i) {  // more than one buffer of them
    examples.push_back(RandomExample(random));
    ASSERT_TRUE(store->Add(examples.back()).ok());
  }
  ASSERT_TRUE(store->Flush().ok());
  ASSERT_EQ(store->count(), 600);
  const TokenStore moved = *std::move(store);
  Example read;
  for (int i = 599; i >= 0; --i) {
    EXPECT_EQ(moved.Length(i), static_cast<int32_t>(examples[i].ids.size()));
    ASSERT_TRUE(moved.Read(i, read).ok());
    EXPECT_EQ(read, examples[i]) << i;
  }
  EXPECT_TRUE(ListDir(directory.path())->empty());  // nobody has to tidy up
}

TEST(TokenStore, AFullDiskIsSaid) {
  const TempDir directory;
  auto store = TokenStore::Create(directory.path());
  ASSERT_TRUE(store.ok()) << store.status();
  Random random(5);
  const FullDisk full(100'000);
  absl::Status status;
  for (int i = 0; i < 600 && status.ok(); ++i) status = store->Add(RandomExample(random));
  EXPECT_EQ(StatusReason(status), Reason::kStorageFull) << status;
}

TEST(TokenStore, SaysWhereItCannotBe) {
  const TempDir directory;
  ASSERT_TRUE(WriteFileAtomic(directory.Join("file"), "x").ok());
  EXPECT_FALSE(TokenStore::Create(directory.Join("file")).ok());
}

}  // namespace
}  // namespace nibble::engine
