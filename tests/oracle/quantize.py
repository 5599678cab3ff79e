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
    state.dtype = dtype
    return bnb.dequantize_4bit(codes, state)


def round_trip(weight, dtype, double_quant=True):
    """The weight a QLoRA base computes with: quantized, then decoded to `dtype`."""
    codes, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=double_quant)
    return dequantize(codes, state, dtype).reshape(weight.shape)


LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def quantize_base(model, source, dtype):
    """Replaces every linear of `model` by the round trip of the stored weights `source` (name -> tensor)."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.split(".")[-1] in LINEARS and isinstance(module, torch.nn.Linear):
                module.weight.copy_(round_trip(source[name + ".weight"], dtype))
