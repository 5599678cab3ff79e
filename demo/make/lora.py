"""NF4 rounding of the frozen weights and LoRA on every linear layer, as the engine does it."""

import math

import torch
from torch import nn

CODE = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0])
BLOCK = 64


def nf4_round_trip(weight):
    """`weight` after storing it in four bits: blocks of 64, largest magnitude as the scale."""
    flat = weight.reshape(-1, BLOCK)
    scale = flat.abs().amax(dim=1, keepdim=True)
    middles = (CODE[1:] + CODE[:-1]) / 2
    index = torch.bucketize(flat / scale.clamp_min(1e-30), middles)
    return (CODE[index] * scale).bfloat16().float().reshape(weight.shape)


class LoraLinear(nn.Module):
    """A frozen four-bit weight with a trainable low-rank term beside it."""

    def __init__(self, linear, rank, alpha, dropout, generator):
        super().__init__()
        self.register_buffer("weight", nf4_round_trip(linear.weight.detach()))
        rows, columns = self.weight.shape
        bound = 1 / math.sqrt(columns)  # kaiming uniform with a = sqrt(5)
        self.a = nn.Parameter((torch.rand(rank, columns, generator=generator) * 2 - 1) * bound)
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self.scale, self.dropout = alpha / rank, nn.Dropout(dropout)

    def forward(self, x):
        low = nn.functional.linear(self.dropout(x), self.a)
        return nn.functional.linear(x, self.weight) + self.scale * nn.functional.linear(low, self.b)


def attach(model, rank, alpha, dropout, seed):
    """Freezes `model` and puts LoRA on q, k, v, o, gate, up and down; returns what trains."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.requires_grad_(False)
    trained = []
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                lora = LoraLinear(child, rank, alpha, dropout, generator)
                setattr(part, name, lora)
                trained += [lora.a, lora.b]
    return trained
