"""NF4 and FP4 quantities of bitsandbytes for one tensor, and the base model made of them."""

import bitsandbytes.functional as bnb
import torch


def quantize(weight, quant_type="nf4", block=64):
    """Everything a comparison needs, as plain tensors. `weight` is bf16 or fp32, any shape."""
    codes, plain = bnb.quantize_4bit(weight, blocksize=block, quant_type=quant_type)
    nested_codes, nested = bnb.quantize_4bit(
        weight, blocksize=block, quant_type=quant_type, compress_statistics=True)
    assert torch.equal(codes, nested_codes)
    return {
        "codes": codes.reshape(-1),
        "absmax": plain.absmax,
        "absmax_codes": nested.absmax.reshape(-1),
        "nested_absmax": nested.state2.absmax,
        "offset": nested.offset.reshape(1).float(),
        "dequant": dequantize(codes, plain, torch.bfloat16).reshape(-1),
        "dequant_nested": dequantize(codes, nested, torch.bfloat16).reshape(-1),
        # absmax as the nested form gives it back: the product first, the offset in a second rounding.
        "absmax_nested": bnb.dequantize_blockwise(nested.absmax, nested.state2) + nested.offset,
    }


def dequantize(codes, state, dtype):
    """As one long row: on rows that are a multiple of 16 but not of the block (K = 96), bitsandbytes
    0.50.2's AVX-512 code takes the scale of a wrong block; its other bodies do not."""
    shape, state.shape, state.dtype = state.shape, torch.Size([1, state.shape.numel()]), dtype
    weight = bnb.dequantize_4bit(codes, state)
    state.shape = shape
    return weight.reshape(shape)


def round_trip(weight, dtype, double_quant=True):
    """The weight a QLoRA base computes with: quantized, then decoded to `dtype`."""
    codes, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=double_quant)
    return dequantize(codes, state, dtype)


# By the last part of their names; a model has the ones apart or the others.
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")


def quantize_base(model, source, dtype):
    """Replaces every linear of `model` by the round trip of the stored weights `source` (name -> tensor)."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.split(".")[-1] in LINEARS and isinstance(module, torch.nn.Linear):
                module.weight.copy_(round_trip(source[name + ".weight"], dtype))
