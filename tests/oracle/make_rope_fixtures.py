"""Makes fixtures/rope.json, what transformers computes of RoPE in config.json, the logits of tiny-llama under
two kinds of it (expected.rope-*.safetensors beside their config.rope-*.json), and tiny-smollm3, some of whose
layers have none. Seeded; the same pinned versions (requirements.txt) give the same files.

    python make_rope_fixtures.py [--out DIR]
    python make_rope_fixtures.py --configs CONFIG.JSON... > rope.json     # the first alone, of other models
"""

import argparse
import importlib
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file

import make_fixtures
import peer

POSITIONS = (1, 7, 100, 4095, 20000)
FACTORS = {"short": 0.02, "long": 0.9}   # of longrope: pair i is stretched by (1 + i)^this


def factors(pairs):
    return {f"{kind}_factor": [round((1 + i) ** by, 6) for i in range(pairs)] for kind, by in FACTORS.items()}


def llama(scaling, **more):
    return dict(model_type="llama", hidden_size=256, num_attention_heads=4, max_position_embeddings=32768,
                rope_theta=500000.0, rope_scaling=scaling) | more


YARN = dict(type="yarn", factor=4.0, original_max_position_embeddings=8192)
CASES = {
    "default": llama(None),
    "linear": llama(dict(type="linear", factor=4.0)),
    "llama3": llama(dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                         original_max_position_embeddings=8192)),
    "llama3 without original positions": llama(dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                                    high_freq_factor=4.0), max_position_embeddings=4096),
    "yarn": llama(YARN, model_type="qwen2", rope_theta=1e6),
    "yarn in rope_parameters": llama(None, rope_theta=None, rope_parameters=YARN | dict(rope_theta=10000.0)),
    "yarn, null factor": llama(YARN | dict(factor=None)),
    "yarn, factor below one": llama(YARN | dict(factor=0.5)),
    "yarn, betas": llama(YARN | dict(beta_fast=16, beta_slow=2.5, factor=16)),
    "yarn, betas of zero": llama(YARN | dict(beta_fast=0, beta_slow=0)),
    "yarn, not truncated": llama(YARN | dict(truncate=False)),
    "yarn, mscale": llama(YARN | dict(mscale=1.0, mscale_all_dim=0.5)),
    "yarn, mscale alone": llama(YARN | dict(mscale=0.7, mscale_all_dim=0)),
    "yarn, attention factor": llama(YARN | dict(attention_factor=0.8)),
    "yarn, no pair between": llama(YARN | dict(beta_fast=1e-6, beta_slow=1e-7)),
    "yarn, original positions outside": llama(YARN, original_max_position_embeddings=2048),
    "longrope": llama(dict(type="longrope", original_max_position_embeddings=4096) | factors(32)),
    "longrope, factors": llama(dict(rope_type="longrope", original_max_position_embeddings=4096, factor=2.0,
                                    attention_factor=1.1) | factors(32)),
    "longrope of a model no longer than before": llama(dict(rope_type="longrope") | factors(32)),
    "phi, whole heads": llama(dict(type="longrope") | factors(32), model_type="phi3",
                              original_max_position_embeddings=2048),
    "phi, part of heads": llama(dict(type="longrope") | factors(24), model_type="phi3",
                                partial_rotary_factor=0.75, original_max_position_embeddings=4096),
    "phi, part of heads, inside": llama(None, model_type="phi3", rope_theta=None, rope_parameters=dict(
        rope_type="longrope", partial_rotary_factor=0.75, rope_theta=10000.0) | factors(24)),
    "phi, part of heads, default": llama(None, model_type="phi3", partial_rotary_factor=0.5),
}


def config_of(values):
    return make_fixtures.config_of({k: v for k, v in values.items() if v is not None})


def numbers(tensor):
    """Nested lists of the shortest numbers that round to the same fp32."""
    return [numbers(row) if row.dim() else float(str(row.numpy()[()])) for row in tensor]


def tables(values):
    """What transformers' rotary embedding of this model says of documents up to the original positions and of
    longer ones."""
    name = {"phi3": "Phi3", "qwen2": "Qwen2"}.get(values["model_type"], "Llama")
    module = importlib.import_module(f"transformers.models.{name.lower()}.modeling_{name.lower()}")
    result = {}
    for kind, positions in (("short", POSITIONS[:3]), ("long", POSITIONS)):
        rotary = getattr(module, f"{name}RotaryEmbedding")(config_of(json.loads(json.dumps(values))))
        cos, sin = rotary(torch.zeros(1), torch.tensor([positions]))
        half = cos.shape[-1] // 2
        result[kind] = {"positions": positions, "frequencies": numbers(rotary.inv_freq),
                        "scale": rotary.attention_scaling, "cos": numbers(cos[0, :, :half]),
                        "sin": numbers(sin[0, :, :half])}
    return result


# Of the documents, 29 and 19 tokens long, one is longer than the original positions of rope-long.
VARIANTS = {
    "rope-yarn": dict(rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=16)),
    "rope-long": dict(rope_scaling=dict(rope_type="longrope", factor=8.0, original_max_position_embeddings=24)
                      | factors(8)),
}


def make_logits(directory):
    values = json.loads((directory / "config.json").read_text())
    documents = [load_file(directory / "expected.safetensors")[f"ids.{i}"] for i in range(2)]
    for variant, changes in VARIANTS.items():
        make_fixtures.write_json(directory / f"config.{variant}.json", values | changes)
        model = peer.load_base(directory, torch.float32, config_of(values | changes))
        expected = {}
        for i, ids in enumerate(documents):
            expected[f"ids.{i}"] = ids
            logits, nll = peer.logits_and_nll(model, ids.tolist())
            expected[f"{variant}.logits.{i}"], expected[f"{variant}.nll.{i}"] = logits, nll
        save_file(expected, directory / f"expected.{variant}.safetensors")


SMOLLM3 = make_fixtures.COMMON | dict(
    architectures=["SmolLM3ForCausalLM"], model_type="smollm3", hidden_size=64, intermediate_size=96,
    num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, no_rope_layer_interval=2,
    use_sliding_window=False, rope_theta=5e6, pad_token_id=0, torch_dtype="bfloat16")


def make_smollm3(directory):
    directory.mkdir(exist_ok=True)
    make_fixtures.write_json(directory / "config.json", SMOLLM3)
    weights = make_fixtures.random_weights(config_of(SMOLLM3), 400)
    save_file({name: tensor.bfloat16().contiguous() for name, tensor in weights.items()},
              directory / "model.safetensors", metadata={"format": "pt"})
    model, expected = peer.load_base(directory, torch.float32), {}
    for i, length in enumerate(make_fixtures.DOCUMENTS):
        ids = torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(i), dtype=torch.int32)
        expected[f"ids.{i}"] = ids
        expected[f"default.logits.{i}"], expected[f"default.nll.{i}"] = peer.logits_and_nll(model, ids.tolist())
    save_file(expected, directory / "expected.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=make_fixtures.HERE / "fixtures")
    parser.add_argument("--configs", type=pathlib.Path, nargs="*")
    options = parser.parse_args()
    cases = CASES
    if options.configs:
        cases = {path.stem: json.loads(path.read_text()) for path in options.configs}
    result = [{"name": name, "config": values} | tables(values) for name, values in cases.items()]
    if options.configs:
        return print(json.dumps(result))
    (options.out / "rope.json").write_text("[\n" + ",\n".join(map(json.dumps, result)) + "\n]\n")
    make_logits(options.out / "tiny-llama")
    make_smollm3(options.out / "tiny-smollm3")


if __name__ == "__main__":
    main()
