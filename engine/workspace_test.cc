// The plan's arithmetic of workspaces is the kernels' own.
#include "engine/spec/workspace.h"

#include <algorithm>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/cpu/workspace.h"
#include "kernels/cuda/workspace.h"

namespace nibble::spec {
namespace {

TEST(WorkspaceBytes, AreTheKernels) {
  for (const int64_t m : {1, 100, 2048, 20000}) {
    for (const int64_t r : {0, 1, 16, 33}) {
      for (const int64_t dim : {8, 64, 100, 128}) {
        for (const int64_t vocab : {31, 512, 32000, 151936}) {
          for (const int threads : {1, 2, 16}) {
            for (const int act_bytes : {2, 4, 8}) {
              DeviceProfile profile;
              profile.threads = threads;
              profile.act_bytes = act_bytes;
              const int64_t document = std::min<int64_t>(m, 1000);
              // Cut once, into all heads and into some of them.
              const int64_t kv_heads = r == 0 ? 32 : r == 1 ? 3 : 4;
              const OpShape ours{.m = m,
                                 .k = 4096,
                                 .n = 11008,
                                 .r = r,
                                 .heads = r == 1 ? 9 : 32,
                                 .kv_heads = kv_heads,
                                 .head_dim = dim,
                                 .vocab = vocab,
                                 .longest_document = document};
              const kernels::WorkspaceShape theirs{.m = m,
                                                   .k = 4096,
                                                   .n = 11008,
                                                   .r = r,
                                                   .heads = ours.heads,
                                                   .kv_heads = kv_heads,
                                                   .head_dim = dim,
                                                   .vocab = vocab,
                                                   .longest_document = document,
                                                   .threads = threads,
                                                   .act_bytes = act_bytes};
              EXPECT_EQ(WorkspaceBytes(Op::kLinearForward, ours, profile),
                        LinearWorkspaceBytes(theirs));
              EXPECT_EQ(WorkspaceBytes(Op::kLinearBackward, ours, profile),
                        LinearWorkspaceBytes(theirs));
              const kernels::WorkspaceShape parts[] = {theirs, theirs, theirs};
              const int64_t first = WorkspaceBytes(Op::kLinearForward, ours, profile);
              EXPECT_EQ(first + 2 * LinearPartBytes(ours, profile), LinearPartsWorkspaceBytes(parts, 3));
              EXPECT_EQ(WorkspaceBytes(Op::kAttentionForward, ours, profile),
                        AttentionForwardWorkspaceBytes(theirs));
              EXPECT_EQ(WorkspaceBytes(Op::kAttentionBackward, ours, profile),
                        AttentionBackwardWorkspaceBytes(theirs));
              EXPECT_EQ(WorkspaceBytes(Op::kCrossEntropy, ours, profile),
                        CrossEntropyWorkspaceBytes(theirs));
            }
          }
        }
      }
    }
  }
}

TEST(WorkspaceBytes, AreTheCudaKernels) {
  namespace theirs = kernels::cuda_workspace;
  DeviceProfile profile;
  profile.backend = "cuda";
  for (const int64_t m : {1, 100, 2048, 20000}) {
    for (const int64_t r : {0, 1, 16, 33}) {
      for (const int64_t k : {64, 4096, 14336}) {
        for (const int64_t vocab : {31, 512, 32000, 151936}) {
          const OpShape ours{.m = m,
                             .k = k,
                             .n = 11008,
                             .r = r,
                             .heads = 24,
                             .head_dim = 128,
                             .vocab = vocab,
                             .longest_document = m};
          const kernels::WorkspaceShape shape{
              .m = m, .k = k, .n = 11008, .r = r, .heads = 24, .head_dim = 128, .vocab = vocab};
          for (const Op op : {Op::kLinearForward, Op::kLinearBackward}) {
            EXPECT_EQ(WorkspaceBytes(op, ours, profile), theirs::LinearWorkspaceBytes(shape));
            OpShape group = ours;
            group.group = 3;
            const int64_t n[] = {vocab, 1024, 100};
            std::copy(n, n + 3, group.group_n);
            for (const bool apart : {false, true}) {
              for (const bool tiles : {false, true}) {
                group.apart = apart;
                group.tiles = tiles;
                EXPECT_EQ(WorkspaceBytes(op, group, profile),
                          theirs::LinearGroupOwnBytes(shape, n, 3, apart, tiles) + theirs::kLibraryBytes);
              }
            }
            EXPECT_EQ(LinearPanelBytes(vocab, k), theirs::PanelBytes(vocab, k));
          }
          EXPECT_EQ(WorkspaceBytes(Op::kAttentionBackward, ours, profile),
                    theirs::AttentionBackwardWorkspaceBytes(shape));
          for (const bool converts : {false, true}) {
            profile.converts_head = converts;
            EXPECT_EQ(WorkspaceBytes(Op::kCrossEntropy, ours, profile),
                      theirs::CrossEntropyWorkspaceBytes(shape, converts));
            EXPECT_EQ(WorkspaceBytes(Op::kLogits, ours, profile),
                      theirs::LogitsWorkspaceBytes(shape, converts));
          }
          EXPECT_EQ(WorkspaceBytes(Op::kAttentionDecode, ours, profile),
                    theirs::AttentionDecodeWorkspaceBytes(m, 24, 128));
        }
      }
    }
  }
  EXPECT_GE(WorkspaceBytes(Op::kSumSquares, {}, profile), 8192);
}

// What the launches of a linear layer write, for every number of rows: kernels/cuda/linear.cu cuts each
// skinny product into DepthSplits pieces.
TEST(WorkspaceBytes, HoldThePartialSumsOfEveryCudaLayer) {
  namespace cuda = kernels::cuda_workspace;
  const auto sums = [](int64_t rows, int64_t columns, int64_t depth) {
    return 4 * cuda::DepthSplits(rows, columns, depth) * rows * columns;
  };
  for (const int64_t r : {1, 15, 16, 17, 33, 64, 65, 100, 128, 129, 256}) {
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{64, 24}, {192, 1000}, {1024, 6144}, {4096, 1024},
                               {4097, 14337}, {14336, 4096}, {28672, 8192}}) {
      int64_t most = 0;  // of so many rows or fewer
      for (int64_t m = 1; m <= 20480; m += m < 600 ? 1 : 7) {
        most = std::max({most, sums(m, r, k), sums(m, r, n), sums(k, r, m), sums(n, r, m)});
        kernels::WorkspaceShape shape;
        shape.m = m;
        shape.k = k;
        shape.n = n;
        shape.r = r;
        ASSERT_LE(most, cuda::AdapterPartialBytes(shape))
            << m << " rows, k " << k << ", n " << n << ", r " << r;
      }
    }
  }
}

// A plan is made for the longest micro-batch; a shorter one has what that was given.
TEST(WorkspaceBytes, FewerRowsNeedNoMore) {
  DeviceProfile host, device;
  device.backend = "cuda";
  device.converts_head = true;
  for (const DeviceProfile& profile : {host, device}) {
    for (const Op op : {Op::kLinearForward, Op::kLinearBackward, Op::kAttentionForward,
                        Op::kAttentionBackward, Op::kCrossEntropy, Op::kLogits}) {
      for (const int64_t k : {576, 4096, 28672}) {
        for (const int64_t r : {1, 16, 100}) {
          OpShape shape{.k = k, .n = 4096, .r = r, .heads = 32, .head_dim = 128, .vocab = 32000};
          int64_t most = 0, at = 0;
          for (shape.m = 1; shape.m <= 20480; ++shape.m) {
            shape.longest_document = shape.m;
            const int64_t bytes = WorkspaceBytes(op, shape, profile);
            ASSERT_GE(bytes, most) << shape.m << " rows need less than " << at << ": op "
                                   << static_cast<int>(op) << ", k " << k << ", r " << r << ", "
                                   << profile.backend;
            most = bytes, at = shape.m;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::spec
