"""Makes fixtures/tiny-gemma3-vision and ten-steps-gemma3-vision: a Gemma 3 that sees pictures, its answers to
text, and ten steps of an adapter on its text part. Seeded; the same pinned versions (requirements.txt) give the
same files.

    python make_vision_fixtures.py [--out DIR]
"""

import argparse
import math
import pathlib

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file

import make_fixtures
import peer

# As on the hub: what the text config leaves out is the default of its class.
CONFIG = dict(
    architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", boi_token_index=93, eoi_token_index=94,
    image_token_index=95, mm_tokens_per_image=1, initializer_range=0.02, torch_dtype="bfloat16",
    text_config=dict(model_type="gemma3_text", vocab_size=96, hidden_size=64, intermediate_size=96,
                     num_hidden_layers=3, head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
                     sliding_window_pattern=3, max_position_embeddings=256,
                     rope_scaling=dict(rope_type="linear", factor=8.0)),
    vision_config=dict(model_type="siglip_vision_model", hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                       num_attention_heads=2, image_size=28, patch_size=14))
# What Nibble writes; it leaves the vision tower's q_proj alone.
TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def make_model(directory):
    directory.mkdir(exist_ok=True)
    torch.manual_seed(300)
    model = transformers.Gemma3ForConditionalGeneration(make_fixtures.config_of(CONFIG))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(0.2 * torch.randn(parameter.shape))
            elif "embed_tokens" in name:
                parameter.copy_(torch.randn(parameter.shape))
            elif parameter.dim() == 2:
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(gain * torch.randn(parameter.shape) / math.sqrt(parameter.shape[1]))
    model.to(torch.bfloat16).save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    make_fixtures.write_json(directory / "config.json", CONFIG)
    path = directory / "model.safetensors"   # in an order of its own each time
    save_file(dict(sorted(load_file(path).items())), path, metadata={"format": "pt"})
    generator = numpy.random.default_rng(17)
    expected, model = {}, peer.load_base(directory, torch.float32)
    assert isinstance(model, transformers.Gemma3ForConditionalGeneration)
    for i, length in enumerate(make_fixtures.DOCUMENTS):
        ids = generator.integers(3, 93, length).tolist()
        expected[f"ids.{i}"] = torch.tensor(ids, dtype=torch.int32)
        expected[f"default.logits.{i}"], expected[f"default.nll.{i}"] = peer.logits_and_nll(model, ids)
    save_file(expected, directory / "expected.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=make_fixtures.HERE / "fixtures")
    out = parser.parse_args().out
    make_model(out / "tiny-gemma3-vision")
    flat = load_file(out / "ten-steps" / "ids.safetensors")["ids"]
    make_fixtures.ten_steps(out / "tiny-gemma3-vision", out / "ten-steps-gemma3-vision",
                            [[ids.tolist() for ids in step] for step in flat], r=2, modules=TARGETS)
    for path in out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()
