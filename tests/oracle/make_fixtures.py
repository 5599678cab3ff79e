"""Makes tests/oracle/fixtures: what bitsandbytes, transformers and PEFT say, for tests that run without
them. Seeded; the same pinned versions (requirements.txt) give the same files.

    python make_fixtures.py [--out DIR] [nf4] [models] [steps] [merged] [adam8]
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import types

import bitsandbytes.functional as bnb
import numpy
import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file

import peer
from quantize import quantize

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = ("bitsandbytes", "peft", "tokenizers", "torch", "transformers")


def versions():
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


# ---- NF4 ------------------------------------------------------------------------------------------

def nf4_inputs():
    """name -> tensor. Shapes that are no multiple of the block, magnitudes from 1e-30 to 1e30, ties."""
    torch.manual_seed(20)
    normal = torch.randn
    inputs = {
        "normal_bf16_48x128": (normal(48, 128) * 0.02).bfloat16(),
        "normal_f32_33x64": normal(33, 64),
        "straddling_rows_bf16_25x72": (normal(25, 72) * 0.3).bfloat16(),   # 72: a block crosses rows
        "rows_of_one_block_and_a_half_bf16_22x96": (normal(22, 96) * 0.1).bfloat16(),
        "short_last_block_f32_13x37": normal(13, 37) * 3,                  # 481 = 7 * 64 + 33, odd
        "nested_blocks_bf16_280x64": (normal(280, 64) * torch.rand(280, 1) * 0.1).bfloat16(),
        "heavy_tails_f32_40x64": normal(40, 64) / (torch.rand(40, 64) + 1e-3),
        "one_element": torch.tensor([[-0.37]]),
        "one_block_less_one": normal(1, 63),
        "one_block_more_one": normal(5, 13) * 0.01,                        # 65
        "constant_rows": torch.linspace(-2, 2, 12).reshape(12, 1).repeat(1, 64),
        "tiny": normal(4, 64) * 1e-30,
        "huge": normal(4, 64) * 1e30,
        "mixed_magnitudes": normal(24, 64) * torch.logspace(-12, 12, 24).reshape(24, 1),
    }
    # Every decision threshold, its neighbours on both sides, and the code book itself, under absmax 1
    # and under absmax values whose reciprocal is inexact.
    code = bnb.get_4bit_type("nf4", device="cpu")
    middle = (code[:-1] + code[1:]) / 2
    inf = torch.tensor(float("inf"))
    row = torch.cat([middle, torch.nextafter(middle, inf), torch.nextafter(middle, -inf), code,
                     torch.tensor([0.0, -0.0, 1.0])])
    assert row.numel() == 64
    inputs["ties"] = torch.stack([row * s for s in (1.0, -1.0, 0.1, 3.0, 0.7, 1.1e-3, 12345.678, 1 / 3)])
    zero = normal(6, 64)
    zero[2] = 0
    inputs["zero_block"] = zero
    return inputs


def make_nf4(out):
    tensors, cases = {}, []
    for name, weight in nf4_inputs().items():
        tensors[f"{name}.input"] = weight
        for key, value in quantize(weight).items():
            tensors[f"{name}.{key}"] = value.contiguous()
        fp4 = quantize(weight, "fp4")
        tensors[f"{name}.fp4_codes"] = fp4["codes"]
        tensors[f"{name}.fp4_dequant"] = fp4["dequant"]
        cases.append(name)
    tensors["nf4_code_book"] = bnb.get_4bit_type("nf4", device="cpu")
    tensors["fp4_code_book"] = bnb.get_4bit_type("fp4", device="cpu")
    tensors["dynamic_map"] = bnb.create_dynamic_map()
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "nf4.safetensors")
    write_json(out / "nf4.json", {"cases": cases, "versions": versions()})


# ---- tiny models ----------------------------------------------------------------------------------

COMMON = dict(vocab_size=96, num_hidden_layers=2, rms_norm_eps=1e-5, hidden_act="silu",
              bos_token_id=1, eos_token_id=2, initializer_range=0.02, max_position_embeddings=256)
MODELS = {
    "tiny-llama": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=64, intermediate_size=96,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, rope_theta=10000.0,
        attention_bias=False, mlp_bias=False, torch_dtype="bfloat16", **COMMON),
    "tiny-qwen2": dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=48, intermediate_size=80,
        num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True, rope_theta=1000000.0,
        use_sliding_window=False, torch_dtype="float32", **COMMON),
    "tiny-qwen3": dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=32, intermediate_size=64,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"}, attention_bias=False,
        dtype="bfloat16", **COMMON),
    "tiny-gemma": COMMON | dict(
        architectures=["GemmaForCausalLM"], model_type="gemma", hidden_size=64, intermediate_size=96,
        num_attention_heads=4, num_key_value_heads=1, head_dim=16, hidden_act="gelu",
        hidden_activation=None, tie_word_embeddings=True, rope_theta=10000.0, torch_dtype="bfloat16"),
    # Caps and windows are small, so that leaving one out is seen.
    "tiny-gemma2": COMMON | dict(
        architectures=["Gemma2ForCausalLM"], model_type="gemma2", hidden_size=64, intermediate_size=96,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=24,
        hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=5.0, final_logit_softcapping=6.0,
        sliding_window=8, tie_word_embeddings=True, rope_theta=10000.0, torch_dtype="bfloat16"),
    "tiny-gemma3": COMMON | dict(
        architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", hidden_size=64, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        query_pre_attn_scalar=24, hidden_activation="gelu_pytorch_tanh", sliding_window=8,
        sliding_window_pattern=3, rope_theta=1000000.0, rope_local_base_freq=10000.0,
        rope_scaling=dict(rope_type="linear", factor=8.0), torch_dtype="bfloat16"),
    # Of a size at which no scale is so near the middle of two codes that bitsandbytes takes the farther one.
    "tiny-phi3": COMMON | dict(
        architectures=["Phi3ForCausalLM"], model_type="phi3", hidden_size=64, intermediate_size=104,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, rope_theta=10000.0,
        rope_scaling=None, sliding_window=None, resid_pdrop=0.0, embd_pdrop=0.0, attention_bias=False,
        original_max_position_embeddings=256, pad_token_id=2, torch_dtype="bfloat16"),
}
# The weights of tiny-llama under other configs: key of the file -> changes.
VARIANTS = {
    "tiny-llama": {
        "rope-llama3": dict(rope_scaling=dict(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=32)),
        "rope-linear": dict(rope_scaling=dict(type="linear", factor=4.0)),
        "sliding-window": dict(architectures=["MistralForCausalLM"], model_type="mistral",
                               sliding_window=8),
    },
    "tiny-phi3": {
        "sliding-window": dict(sliding_window=8),
        # Both documents are longer than the original positions; as Phi-4 mini has it, with fewer of them.
        "longrope": dict(
            original_max_position_embeddings=16, partial_rotary_factor=0.75, sliding_window=262144,
            rope_scaling=dict(type="longrope", short_factor=[1.0, 1.1, 1.3, 1.5, 1.8, 2.0],
                              long_factor=[1.0, 1.4, 2.2, 3.5, 6.0, 9.5])),
        # One is, the other not.
        "longrope-short": dict(
            original_max_position_embeddings=24,
            rope_scaling=dict(type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 2.0, 2.4],
                              long_factor=[1.0, 1.2, 1.4, 1.8, 2.2, 3.5, 6.0, 9.5])),
    },
    "tiny-gemma3": {
        # As transformers 5 writes it.
        "by-kind": dict(
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=50000.0),
                                 sliding_attention=dict(rope_type="default", rope_theta=300.0)),
            rope_theta=None, rope_local_base_freq=None, rope_scaling=None, sliding_window_pattern=None),
    },
}
DOCUMENTS = (29, 19)   # lengths


def random_weights(config, seed):
    """Large enough that attention and gates are far from flat; norms near, not at, one."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = {}
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        if name.endswith("norm.weight"):
            tensors[name] = (0 if config.model_type.startswith("gemma") else 1) + 0.2 * torch.randn(shape)
        elif name.endswith("bias"):
            tensors[name] = 0.3 * torch.randn(shape)
        elif "embed_tokens" in name:
            tensors[name] = torch.randn(shape)
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            tensors[name] = gain * torch.randn(shape) / math.sqrt(shape[1])
            if "qkv_proj" in name:   # q and k are its first rows
                tensors[name][:(shape[0] + config.hidden_size) // 2] *= 2.0
    return tensors


def config_of(values):
    values = dict(values)
    return transformers.AutoConfig.for_model(values.pop("model_type"), **values)


def make_models(out):
    generator = numpy.random.default_rng(7)
    for seed, (name, values) in enumerate(MODELS.items()):
        directory = out / name
        directory.mkdir(exist_ok=True)
        config_path = directory / "config.json"
        write_json(config_path, values)
        dtype = getattr(torch, values.get("torch_dtype") or values["dtype"])
        tensors = {k: v.to(dtype).contiguous()
                   for k, v in random_weights(config_of(values), seed + 100).items()}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        documents = [generator.integers(3, values["vocab_size"], n).tolist() for n in DOCUMENTS]
        expected = {f"ids.{i}": torch.tensor(ids, dtype=torch.int32) for i, ids in enumerate(documents)}
        variants = {"default": {}} | VARIANTS.get(name, {})
        for variant, changes in variants.items():
            config = {k: v for k, v in (values | changes).items() if k not in changes or v is not None}
            if variant != "default":
                write_json(directory / f"config.{variant}.json", config)
            model = peer.load_base(directory, torch.float32, config_of(config))
            for i, ids in enumerate(documents):
                logits, nll = peer.logits_and_nll(model, ids)
                expected[f"{variant}.logits.{i}"] = logits
                expected[f"{variant}.nll.{i}"] = nll
        if name in ("tiny-llama", "tiny-phi3"):
            model = peer.load_quantized(directory, torch.float32)
            for i, ids in enumerate(documents):
                expected[f"nf4.logits.{i}"] = peer.logits_and_nll(model, ids)[0]
        save_file(expected, directory / "expected.safetensors")


# ---- ten optimizer steps --------------------------------------------------------------------------

def markov_documents(vocab, count, length, seed):
    """Sequences with something to learn: each token has four likely successors."""
    generator = numpy.random.default_rng(seed)
    successors = generator.integers(3, vocab, (vocab, 4))
    documents = []
    for _ in range(count):
        ids = [int(generator.integers(3, vocab))]
        while len(ids) < length:
            ids.append(int(successors[ids[-1], generator.integers(0, 4)]))
        documents.append(ids)
    return documents


STEPS, DOCUMENTS_PER_STEP, LENGTH = 10, 16, 128   # 16 * 127 = 2,032 target tokens a step
MAX_GRAD_NORM = 0.2                               # below most norms seen: clipping takes part


def make_steps(out):
    documents = markov_documents(96, STEPS * DOCUMENTS_PER_STEP, LENGTH, seed=11)
    steps = [documents[i * DOCUMENTS_PER_STEP:(i + 1) * DOCUMENTS_PER_STEP] for i in range(STEPS)]
    ten_steps(out / "tiny-llama", out / "ten-steps", steps, r=4)
    save_file({"ids": torch.tensor(documents, dtype=torch.uint8).reshape(
        STEPS, DOCUMENTS_PER_STEP, LENGTH)}, out / "ten-steps" / "ids.safetensors")
    for kind in ("gemma2", "gemma3", "phi3"):
        ten_steps(out / f"tiny-{kind}", out / f"ten-steps-{kind}", steps, r=2)


def ten_steps(directory, adapter, steps, r, modules=None):
    adapter.mkdir(exist_ok=True)
    peer.new_adapter(adapter, peer.load_base(directory), directory.name, r=r, alpha=8, seed=5, modules=modules)
    fp32 = peer.ten_steps(directory, adapter, steps, torch.float32, max_grad_norm=MAX_GRAD_NORM,
                          final=adapter / "final.safetensors")
    bf16 = peer.ten_steps(directory, adapter, steps, torch.bfloat16, max_grad_norm=MAX_GRAD_NORM)
    write_json(adapter / "expected.json", {
        "learning_rate": 2e-4, "max_grad_norm": MAX_GRAD_NORM, "schedule": "constant", "fp32": fp32,
        "bf16": bf16, "versions": versions()})


# ---- merging --------------------------------------------------------------------------------------

def make_merged(out):
    """PEFT's merge_and_unload of the trained adapter in fp32, rounded to bf16: the last layer's linears."""
    tensors = {}
    with tempfile.TemporaryDirectory() as adapter:
        shutil.copy(out / "ten-steps" / "adapter_config.json", adapter)
        shutil.copy(out / "ten-steps" / "final.safetensors", pathlib.Path(adapter) / "adapter_model.safetensors")
        for onto, load in (("original", peer.load_base), ("quantized", peer.load_quantized)):
            model = PeftModel.from_pretrained(load(out / "tiny-llama", torch.float32), adapter).merge_and_unload()
            for name, parameter in model.named_parameters():
                if name.startswith("model.layers.1.") and name.endswith("_proj.weight"):
                    tensors[f"{onto}.{name}"] = parameter.detach().bfloat16().contiguous()
    save_file(tensors, out / "ten-steps" / "merged.safetensors")


# ---- 8-bit AdamW ----------------------------------------------------------------------------------

def peer_adam8():
    """bitsandbytes' own torch form of its block-wise 8-bit update. It lives beside triton kernels that only a
    GPU needs, so triton is replaced by empty modules while it is imported."""
    class Anything(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *args, **kwargs: args[0] if args and callable(args[0]) else Anything(name)
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    if importlib.util.find_spec("triton") is None:
        sys.modules["triton"], sys.modules["triton.language"] = Anything("triton"), Anything("triton.language")
    module = importlib.import_module("bitsandbytes.backends.triton.kernels_optim")
    return module.optimizer_update_8bit_blockwise_pytorch


def make_adam8(out):
    update = peer_adam8()
    generator = numpy.random.default_rng(8)
    count, steps, blocks = 1000, 6, 4
    def normal(scale):
        return torch.tensor(scale * generator.standard_normal(count), dtype=torch.float32)
    p = normal(1.0)
    state = dict(m=torch.zeros(count, dtype=torch.uint8), v=torch.zeros(count, dtype=torch.uint8),
                 m_absmax=torch.zeros(blocks), v_absmax=torch.zeros(blocks))
    signed, unsigned = bnb.create_dynamic_map(signed=True), bnb.create_dynamic_map(signed=False)
    tensors = {"p.0": p.clone(), "dynamic_map": signed, "unsigned_dynamic_map": unsigned}
    decades = torch.tensor(10.0) ** -torch.arange(count).remainder(6)
    for step in range(1, steps + 1):
        gradient = normal(0.01) * decades
        update(p, gradient, state["m"], state["v"], 0.9, 0.999, 0.0, 0.0, 1e-8, step, 2e-3, signed,
               unsigned, state["m_absmax"], state["v_absmax"], 0.1, 0.7, False, optimizer_name="adam")
        tensors[f"g.{step}"] = gradient
        tensors[f"p.{step}"] = p.clone()
        for key, value in state.items():
            tensors[f"{key}.{step}"] = value.clone()
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "adam8.safetensors")
    write_json(out / "adam8.json", {"steps": steps, "versions": versions()})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "fixtures")
    parser.add_argument("what", nargs="*", default=["nf4", "models", "steps", "merged", "adam8"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for what in options.what:
        {"nf4": make_nf4, "models": make_models, "steps": make_steps, "merged": make_merged,
         "adam8": make_adam8}[what](options.out)
    for path in sorted(options.out.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:8d}  {path.relative_to(options.out)}")


if __name__ == "__main__":
    main()
