// Data sets, models, adapters and blobs: what may be deleted or forgotten, and when.
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "server/core/testing/running_job.h"

namespace nibble::core {
namespace {

using testing::Driver;
using testing::ReasonOf;

TEST(Things, InUseCannotBeDeleted) {
  Driver d;
  d.Must(Driver::JobOf("a"));
  EXPECT_EQ(ReasonOf(d.Do(DeleteModel{"base"})), Reason::kResourceInUse);
  EXPECT_EQ(ReasonOf(d.Do(DeleteDataset{"data"})), Reason::kResourceInUse);
  EXPECT_EQ(d.Do(DeleteDataset{"data"}).status().message(),
            "datasets/data is used by 1 unfinished job, among them jobs/a");
  EXPECT_EQ(ReasonOf(d.Do(DeleteJob{"a"})), Reason::kJobNotTerminal);
  d.Must(CancelJob{"a"});
  d.Must(DeleteModel{"base"});
  d.Must(DeleteDataset{"data"});
  EXPECT_TRUE(d.state().model_users.empty() && d.state().dataset_users.empty()) << "nothing is left of them";
  EXPECT_EQ(ReasonOf(d.Do(DeleteDataset{"data"})), Reason::kDatasetNotFound);
}

TEST(Things, BlobsAreForgottenOnlyUnreferencedAndUnpinned) {
  Driver d;
  const std::string used(64, 'a'), unused(64, 'b');
  d.Must(RecordBlob{used, 3});
  d.Must(RecordBlob{unused, 3});
  CreateDataset dataset;
  dataset.dataset = {"set", "default", "", used, 3, 1, "text", "", 0};
  d.Must(dataset);
  d.Must(ForgetBlobs{{used, unused}});
  EXPECT_EQ(d.state().blobs.size(), 2u);  // pinned
  d.Advance(25 * 3600 * kSecondUs);
  d.Must(ForgetBlobs{{used, unused}});
  EXPECT_EQ(d.state().blobs.size(), 1u);
  EXPECT_EQ(d.state().blobs.count(used), 1u);
}

TEST(Things, WhoHasSentABlobIsKnownAsLongAsItIsThere) {
  Driver d;
  const std::string sha256(64, 'a');
  d.Must(RecordBlob{sha256, 3, "ours"});
  d.TakeRecords();
  d.Must(RecordBlob{sha256, 3, "ours"});  // again: nothing new
  d.Must(RecordBlob{sha256, 3});          // a worker's
  EXPECT_TRUE(d.TakeRecords().empty());
  d.Must(RecordBlob{sha256, 3, "theirs"});
  EXPECT_EQ(d.TakeRecords().at(0).type, "blob.shown");
  EXPECT_EQ(d.state().blobs.at(sha256).projects, (std::set<std::string>{"ours", "theirs"}));
  d.Advance(25 * 3600 * kSecondUs);
  d.Must(ForgetBlobs{{sha256}});
  d.Must(RecordBlob{sha256, 3, "theirs"});
  EXPECT_EQ(d.state().blobs.at(sha256).projects, (std::set<std::string>{"theirs"}));
}

}  // namespace
}  // namespace nibble::core
