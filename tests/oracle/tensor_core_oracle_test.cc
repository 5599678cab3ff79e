// The emulation's tensor-core instructions, and the tiles and descriptors that the kernels ask for
// them with, against what NVIDIA's own CuTe headers say of these instructions
// (fixtures/tensor_cores.json, made by cute_facts.cc): a misreading of the PTX ISA that the kernels
// and their emulation share shows here.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/cuda/attention_hopper.h"
#include "tests/oracle/fixture.h"

namespace nibble::kernels::cuda_emulated {
namespace {

using Table = std::vector<std::vector<int>>;

const nlohmann::json& Facts() {
  static const auto* facts = new nlohmann::json(
      nlohmann::json::parse(oracle::ReadFileOrDie(oracle::FixturePath("tensor_cores.json"))));
  return *facts;
}

// Small whole numbers without a pattern, so that sums are exact and elements that change places
// show.
int Number(int row, int column, int salt) {
  auto bits = static_cast<uint32_t>(row * 7919 + column * 104729 + salt * 1299709 + 1);
  bits = (bits ^ bits >> 15) * 0x2C1B3C6Du;
  bits = (bits ^ bits >> 12) * 0x297A2D39u;
  return static_cast<int>((bits ^ bits >> 15) % 15) - 7;
}
int Left(int row, int depth) { return Number(row, depth, 1); }
int Right(int depth, int column) { return Number(depth, column, 2); }
int Start(int row, int column) { return Number(row, column, 3); }
float Sum(int row, int column, int depths) {
  int sum = Start(row, column);
  for (int depth = 0; depth < depths; ++depth) sum += Left(row, depth) * Right(depth, column);
  return static_cast<float>(sum);
}

// A lane's packed values, where value i is the element `of` of an operand that numbers its elements
// row + rows * column.
template <typename Act, typename Element>
void Fill(uint32_t* registers, const std::vector<int>& of, int rows, const Element& element) {
  for (size_t i = 0; i < of.size(); i += 2)
    registers[i / 2] =
        ActType<Act>::Pack(static_cast<float>(element(of[i] % rows, of[i] / rows)),
                           static_cast<float>(element(of[i + 1] % rows, of[i + 1] / rows)));
}

// --- A warp's products and loads
// --------------------------------------------------------------------

struct WarpFacts {
  Table a, b, c;
};

template <typename Act>
void MmaKernel(const WarpFacts* facts, float (*product)[4], float (*twin)[4]) {
  const auto lane = static_cast<size_t>(threadIdx.x);
  uint32_t a[4], b[2];
  Fill<Act>(a, facts->a[lane], 16, Left);
  Fill<Act>(b, facts->b[lane], 8, [](int column, int depth) { return Right(depth, column); });
  for (size_t i = 0; i < 4; ++i) {
    const int at = facts->c[lane][i];
    product[lane][i] = twin[lane][i] = static_cast<float>(Start(at % 16, at / 16));
  }
  Mma<Act>(product[lane], a, b);
  MmaTwin<Act>(twin[lane], a, b);
}

template <typename Act>
void CheckMma() {
  const nlohmann::json& of = Facts().at("mma").at("m16n8k16");
  const WarpFacts facts{of.at("a"), of.at("b"), of.at("c")};
  float product[32][4], twin[32][4];
  Context ctx;
  Launch(&ctx, 1, 32, 0, MmaKernel<Act>, &facts, product, twin);
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t i = 0; i < 4; ++i) {
      const float want = Sum(facts.c[lane][i] % 16, facts.c[lane][i] / 16, 16);
      EXPECT_EQ(product[lane][i], want) << "lane " << lane << ", element " << i;
      EXPECT_EQ(twin[lane][i], want) << "twin, lane " << lane << ", element " << i;
    }
  }
}

TEST(TensorCoreOracle, WarpProducts) {
  CheckMma<BF16>();
  CheckMma<FP16>();
}

// On 7.5 a product is two of half the depth, the first with a[0], a[1] and b[0], the second with
// the others.
TEST(TensorCoreOracle, HalfProductsTakeTheirPartsOfTheWholeOnes) {
  const nlohmann::json &whole = Facts().at("mma").at("m16n8k16"),
                       &half = Facts().at("mma").at("m16n8k8");
  const Table a = whole.at("a"), b = whole.at("b"), half_a = half.at("a"), half_b = half.at("b");
  EXPECT_EQ(whole.at("c"), half.at("c"));
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t part = 0; part < 2; ++part) {
      for (size_t i = 0; i < 4; ++i)
        EXPECT_EQ(a[lane][4 * part + i], half_a[lane][i] + static_cast<int>(part) * 8 * 16) << lane;
      for (size_t i = 0; i < 2; ++i)
        EXPECT_EQ(b[lane][2 * part + i], half_b[lane][i] + static_cast<int>(part) * 8 * 8) << lane;
    }
  }
}

void LoadKernel(uint32_t (*plain)[4], uint32_t (*transposed)[4]) {
  __shared__ __attribute__((aligned(16))) uint16_t rows[32][8];
  const unsigned lane = threadIdx.x;
  for (unsigned i = 0; i < 8; ++i) rows[lane][i] = static_cast<uint16_t>(lane * 8 + i);
  __syncthreads();
  LoadMatrices<false>(plain[lane], rows[lane]);
  LoadMatrices<true>(transposed[lane], rows[lane]);
}

TEST(TensorCoreOracle, MatrixLoads) {
  uint32_t plain[32][4], transposed[32][4];
  Context ctx;
  Launch(&ctx, 1, 32, 0, LoadKernel, plain, transposed);
  const Table want = Facts().at("ldmatrix").at("plain"),
              want_transposed = Facts().at("ldmatrix").at("transposed");
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t i = 0; i < 8; ++i) {
      EXPECT_EQ(static_cast<int>(plain[lane][i / 2] >> i % 2 * 16 & 0xFFFF), want[lane][i]) << lane;
      EXPECT_EQ(static_cast<int>(transposed[lane][i / 2] >> i % 2 * 16 & 0xFFFF),
                want_transposed[lane][i])
          << lane;
    }
  }
}

struct Fragments {
  uint32_t a[32][4], a_transposed[32][4], b[32][4], b_transposed[32][4];  // mma.h
  uint32_t tile_a[32][4], tile_b[32][4], tile_b_rows[32][4];              // attention.h
};

// Every way in which the kernels load an operand. kStride is as in gemm.cu, kDim as in attention.
template <typename Act>
void FragmentKernel(Fragments* out) {
  constexpr int kStride = 24, kDim = 64;
  __shared__ __attribute__((aligned(16))) Act a[16 * kStride], a_turned[16 * kStride],
      b[16 * kStride], b_turned[16 * kStride], tile_a[16 * kDim], tile_b[16 * kDim],
      tile_b_rows[16 * kDim];
  const auto lane = static_cast<int>(threadIdx.x);
  for (int at = lane; at < 256; at += 32) {
    const int row = at / 16, column = at % 16;
    const auto left = static_cast<float>(Left(row, column)),
               right = static_cast<float>(Right(row, column));
    Put(&a[row * kStride + column], left);
    Put(&a_turned[column * kStride + row], left);
    Put(&b[row * kStride + column], right);
    Put(&b_turned[column * kStride + row], right);
    Put(&tile_a[TileAt<kDim>(row, 16 + column) + column % 8], left);
    Put(&tile_b[TileAt<kDim>(column, 16 + row) + row % 8], right);
    Put(&tile_b_rows[TileAt<kDim>(row, 16 + column) + column % 8], right);
  }
  __syncthreads();
  LoadA<kStride>(out->a[lane], a);
  LoadATransposed<kStride>(out->a_transposed[lane], a_turned);
  LoadB<kStride>(out->b[lane], b_turned);
  LoadBTransposed<kStride>(out->b_transposed[lane], b);
  TileA<kDim>(out->tile_a[lane], tile_a, 0, 16);
  TileB<kDim>(out->tile_b[lane], tile_b, 0, 16);
  TileBRows<kDim>(out->tile_b_rows[lane], tile_b_rows, 0, 16);
}

template <typename Act>
void CheckFragments() {
  const nlohmann::json& of = Facts().at("mma").at("m16n8k16");
  const Table a_of = of.at("a"), b_of = of.at("b");
  Fragments got;
  Context ctx;
  Launch(&ctx, 1, 32, 0, FragmentKernel<Act>, &got);
  for (size_t lane = 0; lane < 32; ++lane) {
    uint32_t a[4], b[4];
    Fill<Act>(a, a_of[lane], 16, Left);
    for (int half = 0; half < 2; ++half)
      Fill<Act>(b + 2 * half, b_of[lane], 8,
                [&](int column, int depth) { return Right(depth, column + 8 * half); });
    for (const auto& fragment : {got.a, got.a_transposed, got.tile_a})
      EXPECT_EQ(std::memcmp(fragment[lane], a, sizeof a), 0) << "a, lane " << lane;
    for (const auto& fragment : {got.b, got.b_transposed, got.tile_b, got.tile_b_rows})
      EXPECT_EQ(std::memcmp(fragment[lane], b, sizeof b), 0) << "b, lane " << lane;
  }
}

TEST(TensorCoreOracle, FragmentsFromSharedMemory) {
  CheckFragments<BF16>();
  CheckFragments<FP16>();
}

// --- A warpgroup's products
// -------------------------------------------------------------------------

// Takes a Warpgroup's place and keeps the descriptors that it is given.
struct Recorder {
  std::vector<uint64_t> left, right;
  template <typename Act, int kBlocks>
  void Multiply(float (&)[kBlocks][4], uint64_t of_left, uint64_t of_right, bool) {
    left.push_back(of_left);
    right.push_back(of_right);
  }
  template <typename Act, int kBlocks>
  void MultiplyTurned(float (&)[kBlocks][4], const uint32_t (&)[4], uint64_t of_right) {
    right.push_back(of_right);
  }
};

struct Descriptors {
  uint32_t base = 0;                         // of the tile in shared memory
  std::vector<uint64_t> left, right, depth;  // as cute_facts.cc has them
};

// What the kernels' own products ask for, of a tile with so many rows and columns.
template <int kRows, int kColumns>
void DescriptorKernel(Descriptors* out) {
  BF16* tile = SwizzledShared<BF16>();
  out->base = SharedAddress(tile);
  for (int row = 0; row < kRows; row += 64) {
    Recorder recorder;
    float sums[kRows / 8][4];
    MultiplyTiles<kColumns, kRows>(&recorder, sums, tile, row, tile);
    out->left.insert(out->left.end(), recorder.left.begin(), recorder.left.end());
    out->right = recorder.right;
  }
  Recorder recorder;
  float sums[kColumns / 8][4];
  const uint32_t left[kRows / 16][4] = {};
  AddTile(&recorder, sums, left, tile);
  out->depth = recorder.right;
}

std::vector<uint64_t> Words(const nlohmann::json& words, uint32_t base) {
  std::vector<uint64_t> out;
  for (const std::string word : words) out.push_back(std::stoull(word, nullptr, 16) + (base >> 4));
  return out;
}

template <int kRows, int kColumns>
void CheckTile(const nlohmann::json& facts) {
  ASSERT_EQ(facts.at("rows"), kRows);
  ASSERT_EQ(facts.at("columns"), kColumns);
  SCOPED_TRACE(testing::Message() << kRows << " x " << kColumns);
  Descriptors got;
  Context ctx;
  Launch(&ctx, 1, 1, 2 * kRows * kColumns + kSwizzleSlack, DescriptorKernel<kRows, kColumns>, &got);
  EXPECT_EQ(got.left, Words(facts.at("left"), got.base));
  EXPECT_EQ(got.right, Words(facts.at("right"), got.base));
  EXPECT_EQ(got.depth, Words(facts.at("depth"), got.base));

  // Where an element lies: as the threads store it, and as the emulated products find it by the
  // descriptor.
  const Table straight = facts.at("straight"), turned = facts.at("turned");
  int misplaced = 0;
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      const auto byte_of = [&](const Table& chunks) {
        return static_cast<uint32_t>(
            chunks[static_cast<size_t>(row)][static_cast<size_t>(column / 8)] * 16 +
            column % 8 * 2);
      };
      misplaced += static_cast<uint32_t>(SwizzledAt<kRows>(row, column) * 2 + column % 8 * 2) !=
                   byte_of(straight);
      misplaced += byte_of(turned) != byte_of(straight);
      const auto at = [](const std::vector<uint64_t>& of, int step) {
        return of[static_cast<size_t>(step)];
      };
      const auto r = static_cast<uint32_t>(row), c = static_cast<uint32_t>(column);
      const uint32_t want = got.base + byte_of(straight);
      misplaced += OperandAddress(at(got.right, column / 16), false, r, c % 16) != want;
      misplaced += OperandAddress(at(got.left, row / 64 * (kColumns / 16) + column / 16), false,
                                  r % 64, c % 16) != want;
      misplaced += OperandAddress(at(got.depth, row / 16), true, c, r % 16) != want;
    }
  }
  EXPECT_EQ(misplaced, 0);
}

TEST(TensorCoreOracle, TilesAndDescriptors) {
  const nlohmann::json& tiles = Facts().at("tiles");
  ASSERT_EQ(tiles.size(), 4u);
  CheckTile<64, 64>(tiles[0]);
  CheckTile<64, 128>(tiles[1]);
  CheckTile<128, 64>(tiles[2]);
  CheckTile<128, 128>(tiles[3]);
}

struct GroupFacts {
  Table a, c;
  Table left, right,
      turned;  // where chunks of 64 x 64 and two kColumns x 64, 64 x kColumns tiles lie
};

// One step of depth of each form, from tiles that are laid out by the facts alone. The products'
// starts are in the sums already.
template <int kColumns, typename Act>
void GroupKernel(const GroupFacts* facts, float (*tiles)[kColumns / 2],
                 float (*fragments)[kColumns / 2]) {
  Act* left = SwizzledShared<Act>();
  Act* right = left + 64 * 64;
  Act* turned = right + kColumns * 64;
  const auto thread = static_cast<size_t>(threadIdx.x);
  const auto put = [&](Act* tile, const Table& chunks, int row, int column, int value) {
    Put(tile + chunks[static_cast<size_t>(row)][static_cast<size_t>(column / 8)] * 8 + column % 8,
        static_cast<float>(value));
  };
  if (thread == 0) {
    for (int depth = 0; depth < 16; ++depth) {
      for (int row = 0; row < 64; ++row) put(left, facts->left, row, depth, Left(row, depth));
      for (int column = 0; column < kColumns; ++column) {
        put(right, facts->right, column, depth, Right(depth, column));
        put(turned, facts->turned, depth, column, Right(depth, column));
      }
    }
  }
  FenceForTensors();
  __syncthreads();
  float tile_sums[kColumns / 8][4], fragment_sums[kColumns / 8][4];
  for (size_t i = 0; i < facts->c[thread].size(); ++i) {
    const int at = facts->c[thread][i];
    tile_sums[i / 4][i % 4] = fragment_sums[i / 4][i % 4] =
        static_cast<float>(Start(at % 64, at / 64));
  }
  uint32_t a[4];
  Fill<Act>(a, facts->a[thread], 64, Left);
  Warpgroup group;
  group.Fence();
  group.Multiply<Act>(tile_sums, Descriptor(Tile(left) + kStraight),
                      Descriptor(Tile(right) + kStraight), true);
  group.MultiplyTurned<Act>(fragment_sums, a, Descriptor(Tile(turned) + BlocksApart(64 * 128)));
  group.Commit();
  group.template Wait<0>();
  std::memcpy(tiles[thread], tile_sums, sizeof tile_sums);
  std::memcpy(fragments[thread], fragment_sums, sizeof fragment_sums);
}

template <int kColumns, typename Act>
void CheckGroup(const nlohmann::json& right, const nlohmann::json& turned) {
  const nlohmann::json& of = Facts().at("wgmma").at(std::to_string(kColumns));
  const GroupFacts facts{of.at("a"), of.at("c"), Facts().at("tiles")[0].at("straight"),
                         right.at("straight"), turned.at("turned")};
  float tiles[128][kColumns / 2], fragments[128][kColumns / 2];
  Context ctx;
  Launch(&ctx, 1, kWarpgroup, 2 * 64 * (64 + 2 * kColumns) + kSwizzleSlack,
         GroupKernel<kColumns, Act>, &facts, tiles, fragments);
  int wrong_tiles = 0, wrong_fragments = 0;
  for (size_t thread = 0; thread < 128; ++thread) {
    ASSERT_EQ(facts.c[thread].size(), size_t{kColumns / 2});
    for (size_t i = 0; i < facts.c[thread].size(); ++i) {
      const float want = Sum(facts.c[thread][i] % 64, facts.c[thread][i] / 64, 16);
      wrong_tiles += tiles[thread][i] != want;
      wrong_fragments += fragments[thread][i] != want;
    }
  }
  EXPECT_EQ(wrong_tiles, 0) << kColumns;
  EXPECT_EQ(wrong_fragments, 0) << kColumns;
}

TEST(TensorCoreOracle, WarpgroupProducts) {
  const nlohmann::json& tiles = Facts().at("tiles");
  CheckGroup<64, BF16>(tiles[0], tiles[0]);
  CheckGroup<64, FP16>(tiles[0], tiles[0]);
  CheckGroup<128, BF16>(tiles[2], tiles[1]);
  CheckGroup<128, FP16>(tiles[2], tiles[1]);
}

}  // namespace
}  // namespace nibble::kernels::cuda_emulated
