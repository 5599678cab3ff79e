#include "engine/spec/base_layout.h"

#include <set>

#include "gtest/gtest.h"

namespace nibble::spec {
namespace {

ModelConfig Model() {
  ModelConfig model;
  model.hidden_size = 60;
  model.intermediate_size = 100;
  model.layers = 2;
  model.heads = 6;
  model.kv_heads = 3;
  model.head_dim = 10;
  model.vocab_size = 111;
  return model;
}

TEST(LayoutBase, EntriesAreAlignedAndApart) {
  ModelConfig biased = Model();
  biased.qkv_bias = true;
  biased.qk_norm = true;
  ModelConfig fused = Model();
  fused.fused = true;
  for (const ModelConfig& model : {Model(), biased, fused}) {
    for (const QuantKind quant : {QuantKind::kNF4, QuantKind::kINT8, QuantKind::kBF16}) {
      const BaseLayout layout = LayoutBase(model, quant, true);
      int64_t end = kBaseHeaderBytes;
      std::set<std::string> names;
      for (const BaseEntry& entry : layout.entries) {
        EXPECT_EQ(entry.offset % 64, 0);
        EXPECT_GE(entry.offset, end);
        EXPECT_LT(entry.offset, end + 64);
        EXPECT_GT(entry.size_bytes, 0);
        end = entry.offset + entry.size_bytes;
        EXPECT_TRUE(names.insert(BaseEntryName(entry)).second) << BaseEntryName(entry);
        EXPECT_EQ(layout.Find(entry.part, entry.layer, entry.module), &entry);
      }
      EXPECT_EQ(layout.file_bytes % 4096, 0);
      EXPECT_LT(layout.file_bytes - end, 4096);
    }
  }
}

// One tensor with one set of scales, of as many weights as its parts have.
TEST(LayoutBase, FusedLinearsAreOneTensor) {
  ModelConfig fused = Model();
  fused.fused = true;
  const BaseLayout layout = LayoutBase(fused, QuantKind::kNF4, true);
  // qkv_proj: (60 + 2 * 30) x 60 = 7200 weights, 113 blocks.
  EXPECT_EQ(layout.Find(BasePart::kCodes, 1, Module::kQkv)->size_bytes, 3600);
  EXPECT_EQ(layout.Find(BasePart::kAbsmaxCodes, 1, Module::kQkv)->size_bytes, 113);
  EXPECT_EQ(layout.Find(BasePart::kCodes, 1, Module::kGateUp)->size_bytes, 6000);
  for (const Module module : {Module::kQ, Module::kK, Module::kV, Module::kGate, Module::kUp})
    EXPECT_EQ(layout.Find(BasePart::kCodes, 1, module), nullptr);
  std::set<int64_t> offsets;
  for (const BaseEntry& entry : layout.entries) {
    if (entry.part != BasePart::kCodes) continue;
    EXPECT_TRUE(offsets.insert(OffsetIndex(entry)).second);
    EXPECT_LT(4 * OffsetIndex(entry), layout.Find(BasePart::kOffsets)->size_bytes);
  }
  EXPECT_EQ(offsets.size(), 2u * 4);
  EXPECT_EQ(fused.LinearParameters(), Model().LinearParameters());
}

TEST(LayoutBase, SizesAreTheFormats) {
  const BaseLayout layout = LayoutBase(Model(), QuantKind::kNF4, true);
  // gate_proj: 100 x 60 = 6000 weights, 94 blocks (the last one short), one nested block.
  EXPECT_EQ(layout.Find(BasePart::kCodes, 1, Module::kGate)->size_bytes, 3000);
  EXPECT_EQ(layout.Find(BasePart::kAbsmaxCodes, 1, Module::kGate)->size_bytes, 94);
  EXPECT_EQ(layout.Find(BasePart::kNestedAbsmax, 1, Module::kGate)->size_bytes, 4);
  EXPECT_EQ(layout.Find(BasePart::kOffsets)->size_bytes, 2 * 7 * 4);
  EXPECT_EQ(layout.Find(BasePart::kAbsmax, 1, Module::kGate), nullptr);
  EXPECT_EQ(layout.Find(BasePart::kBias, 1, Module::kQ), nullptr);
  EXPECT_NE(layout.Find(BasePart::kHead), nullptr);
  ModelConfig tied = Model();
  tied.tie_word_embeddings = true;
  EXPECT_EQ(LayoutBase(tied, QuantKind::kNF4, true).Find(BasePart::kHead), nullptr);
  const BaseLayout plain = LayoutBase(Model(), QuantKind::kNF4, false);
  EXPECT_EQ(plain.Find(BasePart::kAbsmax, 1, Module::kGate)->size_bytes, 94 * 4);
  EXPECT_EQ(
      LayoutBase(Model(), QuantKind::kBF16, true).Find(BasePart::kCodes, 0, Module::kQ)->size_bytes,
      60 * 60 * 2);
}

TEST(LayoutBase, WhatCanLieInTilesIsWholeBlocks) {
  ModelConfig model = Model();
  model.hidden_size = 128;
  for (const QuantKind quant : {QuantKind::kNF4, QuantKind::kINT8, QuantKind::kBF16}) {
    const BaseLayout layout = LayoutBase(model, quant, true);
    const bool nested = quant == QuantKind::kNF4;
    int tiled = 0;
    for (const BaseEntry& entry : layout.entries) {
      const TileShape& tiles = entry.tiles;
      if (tiles.rows == 0) continue;
      EXPECT_EQ(tiles.rows * tiles.row_blocks * tiles.unit_bytes, entry.size_bytes) << BaseEntryName(entry);
      EXPECT_EQ(tiles.row_blocks, 2);  // of 128; o and down have 60 and 100 inputs
      const bool codes = entry.part == BasePart::kCodes;
      EXPECT_EQ(tiles.unit_bytes, codes ? (nested ? 32 : 64) : (nested ? 1 : 4));
      EXPECT_NE(entry.part, BasePart::kNestedAbsmax);
      ++tiled;
    }
    EXPECT_EQ(tiled, quant == QuantKind::kBF16 ? 0 : 2 * 5 * 2);
  }
}

TEST(LayoutBase, NamesAreReadable) {
  const BaseLayout layout = LayoutBase(Model(), QuantKind::kNF4, true);
  EXPECT_EQ(BaseEntryName(*layout.Find(BasePart::kCodes, 1, Module::kDown)),
            "layers.1.down_proj.codes");
  EXPECT_EQ(BaseEntryName(*layout.Find(BasePart::kEmbedding)), "embedding");
}

}  // namespace
}  // namespace nibble::spec
