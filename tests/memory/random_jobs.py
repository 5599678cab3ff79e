"""Random models, recipes and data for whole engine processes: what campaign.py measures.

A case follows from its seed alone. Models are written as others publish them (config.json, tokenizer.json, one
safetensors file of random bf16), in every architecture the engine knows; recipes take every quantization,
optimizer, recompute policy and shape of batch. Small enough that most take less than half a second of a core.
Where NIBBLE_TEST_DATA has published tokenizers (tokenizers/*/tokenizer.json), a quarter of the models have one;
otherwise all have made-up ones.
"""

import functools
import json
import os
import pathlib
import random
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "big"))
import big_runs  # noqa: E402

MOST_FLOP = 1e10  # of a job's steps
SLOW_FLOP = 1e9   # of one on the portable kernels
MOST_BASE_BYTES = 192 << 20  # in bf16
NOISE_BYTES = 1 << 20


def skewed(rng, low, high):
    """From low to high, every order of magnitude alike."""
    return int(round(low * (high / low) ** rng.random()))


@functools.cache
def published_tokenizers():
    """(directory, entries) of each."""
    found = []
    data = pathlib.Path(os.environ.get("NIBBLE_TEST_DATA", "/nowhere"))
    for path in sorted(data.glob("tokenizers/*/tokenizer.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        ids = [*document["model"]["vocab"].values(), *(token["id"] for token in document["added_tokens"])]
        found.append((path.parent, max(ids) + 1))
    return found


class Model:
    """An architecture and the numbers of its config.json."""

    def __init__(self, rng):
        while True:
            self._draw(rng)
            if 2 * (self.linear_weights() + (1 if self.tied else 2) * self.vocab * self.hidden) <= MOST_BASE_BYTES:
                return

    def _draw(self, rng):
        self.tokenizer = None
        self.kind = rng.choice(["llama", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"])
        self.kv_heads = rng.choice([1, 2, 3, 4])
        self.heads = self.kv_heads * rng.choice([1, 1, 2, 3, 4])
        self.head_dim = 2 * skewed(rng, 4, 64)
        self.gemma = self.kind.startswith("gemma")
        self.post_norms = self.kind in ("gemma2", "gemma3_text")
        self.qk_norm = self.kind in ("qwen3", "gemma3_text")
        # Only these kinds' heads need not add up to the hidden size.
        self.free_heads = self.gemma or self.kind == "qwen3"
        self.hidden = skewed(rng, 32, 1024) if self.free_heads else self.heads * self.head_dim
        self.ffn = skewed(rng, 32, 3072)
        self.layers = skewed(rng, 1, 12)
        self.vocab = skewed(rng, 300, 60_000)
        if rng.random() < 0.25 and published_tokenizers():
            self.tokenizer, self.vocab = rng.choice(published_tokenizers())
        self.tied = rng.random() < 0.4
        windowed = self.kind == "mistral" or self.post_norms or (self.kind == "phi3" and rng.random() < 0.5)
        self.window = skewed(rng, 16, 1024) if windowed else 0

    def linear_weights(self):
        return sum(n * k for n, k in self.linears().values()) * self.layers

    def linears(self):
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.kind == "phi3":
            return {"self_attn.qkv_proj": (q + 2 * kv, self.hidden), "self_attn.o_proj": (self.hidden, q),
                    "mlp.gate_up_proj": (2 * self.ffn, self.hidden), "mlp.down_proj": (self.hidden, self.ffn)}
        return {"self_attn.q_proj": (q, self.hidden), "self_attn.k_proj": (kv, self.hidden),
                "self_attn.v_proj": (kv, self.hidden), "self_attn.o_proj": (self.hidden, q),
                "mlp.gate_proj": (self.ffn, self.hidden), "mlp.up_proj": (self.ffn, self.hidden),
                "mlp.down_proj": (self.hidden, self.ffn)}

    def tensors(self):
        """(name, shape) of each."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (self.hidden,)
            yield prefix + "post_attention_layernorm.weight", (self.hidden,)
            if self.post_norms:
                yield prefix + "pre_feedforward_layernorm.weight", (self.hidden,)
                yield prefix + "post_feedforward_layernorm.weight", (self.hidden,)
            if self.qk_norm:
                yield prefix + "self_attn.q_norm.weight", (self.head_dim,)
                yield prefix + "self_attn.k_norm.weight", (self.head_dim,)
            for name, shape in self.linears().items():
                yield f"{prefix}{name}.weight", shape
                if self.kind == "qwen2" and name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                    yield f"{prefix}{name}.bias", shape[:1]
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    def config(self):
        names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3",
                 "gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3", "phi3": "Phi3"}
        values = {"architectures": [names[self.kind] + "ForCausalLM"], "model_type": self.kind,
                  "hidden_size": self.hidden, "intermediate_size": self.ffn, "num_hidden_layers": self.layers,
                  "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
                  "vocab_size": self.vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
                  "tie_word_embeddings": self.tied, "torch_dtype": "bfloat16", "bos_token_id": 0,
                  "eos_token_id": 1, "hidden_act": "gelu_pytorch_tanh" if self.gemma else "silu"}
        if self.free_heads:
            values["head_dim"] = self.head_dim
        if self.window:
            values["sliding_window"] = self.window
        return values

    def write(self, directory, rng):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(self.config()))
        if self.tokenizer:
            shutil.copy(self.tokenizer / "tokenizer.json", directory)
        else:
            (directory / "tokenizer.json").write_text(json.dumps(big_runs.byte_tokenizer(self.vocab)))
            (directory / "tokenizer_config.json").write_text(json.dumps(
                {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}))
        # bf16 of 2^-7 to 2^-5 in size and of either sign; the same block again and again, from where it may be.
        noise = bytearray(rng.randbytes(NOISE_BYTES))
        noise[1::2] = bytes(0x3C | (byte & 0x80) for byte in rng.randbytes(NOISE_BYTES // 2))
        header, at = {}, 0
        for name, shape in self.tensors():
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(directory / "model.safetensors", "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for left in range(at, 0, -NOISE_BYTES):
                out.write(noise[:min(left, NOISE_BYTES)])

    def __str__(self):
        tokenizer = f" of {self.tokenizer.name}" if self.tokenizer else ""
        return (f"{self.kind} {self.hidden}/{self.ffn} x{self.layers}, heads {self.heads}/{self.kv_heads} of "
                f"{self.head_dim}, vocabulary {self.vocab}{tokenizer}{', tied' if self.tied else ''}")


class Job:
    """A recipe, and rows for it."""

    def __init__(self, rng, model, quant, double_quant, most_flop):
        accumulation, steps = rng.choice([1, 1, 2, 3]), rng.choice([2, 3])
        flop = 10 * (model.linear_weights() + model.vocab * model.hidden) * accumulation * steps
        tokens = max(16, min(4096, int(most_flop / flop)))
        micro_batch = rng.choice([1, 1, 2, 4])
        length = max(8, min(2048, skewed(rng, min(16, tokens), tokens) // micro_batch))
        self.full = rng.random() < 0.7  # rows as long as sequences, or of any length
        packed = rng.random() < 0.6
        self.length = length
        evaluates = rng.random() < 0.4
        self.rows = max(micro_batch * accumulation * 4, 4, skewed(rng, 8, 100 if evaluates else 400))
        if rng.random() < 0.03:
            self.rows, self.full, length, packed = skewed(rng, 20_000, 100_000), False, 32, True
            self.length = 6
        # A chat template's own words take some twenty tokens.
        self.format = rng.choice(["text", "completion", "messages"] if length >= 64 else ["text", "completion"])
        modules = [name.split(".")[1] for name in model.linears()]
        self.spec = {
            "lora_r": rng.choice([1, 4, 8, 16, 16, 33, 64]), "lora_dropout": rng.choice([0, 0, 0.05, 0.3]),
            "target_modules": (modules if rng.random() < 0.4 else
                               [m for m in modules if rng.random() < 0.5] or ["o_proj"]),
            "quant": quant, "double_quant": double_quant, "optimizer": rng.choice(["adamw", "adamw8bit"]),
            "recompute": rng.choice(["auto", "none", "keep_gemm_outputs", "full"]),
            "sequence_len": length, "micro_batch_size": micro_batch, "gradient_accumulation_steps": accumulation,
            "max_steps": steps, "sample_packing": packed, "excess_length": "truncate", "format": self.format,
            # Ten rows at most, so that many rows are not minutes of evaluation.
            "val_set_size": min(0.1, 10 / self.rows) if evaluates else 0,
            "save_steps": rng.choice([1, 2]), "save_interval_seconds": 0, "train_on_inputs": True,
            "data_rows": self.rows, "seed": rng.randrange(1000)}
        if self.spec["recompute"] == "full":
            self.spec["keep_blocks"] = self.spec["seed"] % model.layers
        if self.format == "messages":
            self.spec["chat_template"] = "chatml"
        if evaluates:
            self.spec["eval_steps"] = rng.choice([1, 2])

    def write_rows(self, path, rng):
        # A token of the made-up tokenizer is one or two letters.
        letters = "".join(chr(97 + rng.randrange(26)) for _ in range(4096))
        with open(path, "w", encoding="utf-8") as out:
            for _ in range(self.rows):
                size = 2 * self.length + 8 if self.full else rng.randrange(2, 2 * self.length + 8)
                start = rng.randrange(max(1, len(letters) - size))
                text = letters[start:start + size]
                row = {"text": {"text": text}, "completion": {"prompt": text[:4], "completion": text[4:] or "a"},
                       "messages": {"messages": [{"role": "user", "content": text[:4]},
                                                 {"role": "assistant", "content": text[4:] or "a"}]}}
                out.write(json.dumps(row[self.format]) + "\n")

    def __str__(self):
        s = self.spec
        return (f"r {s['lora_r']} on {len(s['target_modules'])}, {s['optimizer']}, {s['recompute']}, "
                f"{s['micro_batch_size']} x {s['sequence_len']} x {s['gradient_accumulation_steps']}"
                f"{', packed' if s['sample_packing'] else ''}{', evaluated' if s['val_set_size'] else ''}, "
                f"{self.rows} {'full' if self.full else 'short'} rows of {self.format}")


class Case:
    """One process: a base, how it is held, and the jobs that share it."""

    def __init__(self, seed, devices):
        self.seed, rng = seed, random.Random(seed)
        self.model = Model(rng)
        self.quant = rng.choice(["nf4", "nf4", "nf4", "fp4", "int4", "int8", "bf16"])
        self.double_quant = self.quant in ("nf4", "fp4") and rng.random() < 0.6
        self.threads = rng.choice([1, 2, 2, 3, 4, 8])
        self.device = rng.choice(devices)
        self.cached = rng.random() < 0.3  # the base is in the cache already
        self.resumes = rng.random() < 0.15
        count = rng.choice([2, 3, 5]) if not self.resumes and rng.random() < 0.15 else 1
        most_flop = SLOW_FLOP if self.device == "cpu:portable" else MOST_FLOP
        self.jobs = [Job(rng, self.model, self.quant, self.double_quant, most_flop) for _ in range(count)]
        self.rng = rng

    def flags(self):
        return ["--device", self.device, "--quant", self.quant, "--double-quant", str(self.double_quant).lower()]

    def __str__(self):
        held = f"{self.quant}{' double' if self.double_quant else ''}{' cached' if self.cached else ''}"
        return (f"seed {self.seed}: {self.model}; {held} on {self.device}, {self.threads} threads"
                f"{', resumed' if self.resumes else ''}; {'; '.join(str(job) for job in self.jobs)}")
