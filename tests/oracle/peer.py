"""The peer: transformers for the base, PEFT for the adapter, torch for the optimizer."""

import json
import pathlib
import warnings

import bitsandbytes
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from quantize import LINEARS, quantize_base

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.filterwarnings("ignore")   # hub look-ups that find no network, deprecations inside PEFT


def stored_weights(directory):
    """Tensors of a checkpoint as stored, shards joined."""
    directory = pathlib.Path(directory)
    index = directory / "model.safetensors.index.json"
    files = (sorted(set(json.loads(index.read_text())["weight_map"].values()))
             if index.exists() else ["model.safetensors"])
    tensors = {}
    for name in files:
        tensors.update(load_file(directory / name))
    return {module_name(name): tensor for name, tensor in tensors.items()}


def module_name(stored):
    """As transformers calls it once it is loaded: a model with pictures is stored as it was before 4.52."""
    for before, now in (("language_model.model.", "model.language_model."), ("vision_tower.", "model.vision_tower.")):
        if stored.startswith(before):
            return now + stored[len(before):]
    return stored


def load_base(directory, dtype=torch.float32, config=None):
    config = config or transformers.AutoConfig.from_pretrained(directory)
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=dtype, attn_implementation="eager").eval()


def load_quantized(directory, dtype=torch.float32, config=None):
    """The base as QLoRA sees it: linears through NF4 with double quantization, all else as stored."""
    model = load_base(directory, dtype, config)
    quantize_base(model, stored_weights(directory), dtype)
    return model


def load_linear4bit(directory, dtype=torch.float32):
    """The same with bitsandbytes' own module in place of every linear, as a QLoRA script has it."""
    model = load_base(directory, dtype)
    for name, module in list(model.named_modules()):
        if name.split(".")[-1] not in LINEARS or not isinstance(module, torch.nn.Linear):
            continue
        linear = bitsandbytes.nn.Linear4bit(
            module.in_features, module.out_features, bias=module.bias is not None, compute_dtype=dtype,
            compress_statistics=True, quant_type="nf4")
        linear.weight = bitsandbytes.nn.Params4bit(
            module.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
        linear.bias = module.bias
        model.set_submodule(name, linear.to("cpu"))
    return model


@torch.no_grad()
def logits_and_nll(model, ids):
    """fp32 logits [T, V] of one document and the loss of each token after the first."""
    tokens = torch.tensor([ids])
    logits = model(tokens).logits[0].float()
    nll = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")
    return logits, nll


def new_adapter(directory, base, base_name, r, alpha, seed, modules=None, b_std=0.05):
    """Writes a PEFT adapter with a non-zero B, so that both factors have gradients from step one."""
    torch.manual_seed(seed)
    modules = modules or {name.split(".")[-1] for name, _ in base.named_modules()} & set(LINEARS)
    model = get_peft_model(base, LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=b_std)
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(directory)
    path = pathlib.Path(directory) / "adapter_config.json"
    config = json.loads(path.read_text())
    if not isinstance(config["target_modules"], str):
        config["target_modules"].sort()   # PEFT writes a set
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (pathlib.Path(directory) / "README.md").unlink(missing_ok=True)
    return model.unload()


def ten_steps(directory, adapter, steps, dtype, learning_rate=2e-4, max_grad_norm=1.0, config=None,
              final=None):
    """Optimizer steps of the peer. `steps`: per step a list of documents (token ids); the loss of a step
    is the sum over all its target tokens divided by their count. Returns one row a step; writes the
    trained adapter to `final`."""
    base = load_quantized(directory, dtype, config)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.dtype == torch.float32 for p in trained)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=0.0)
    rows = []
    for documents in steps:
        targets = sum(len(ids) - 1 for ids in documents)
        total = 0.0
        for length in sorted({len(ids) for ids in documents}):
            batch = torch.tensor([ids for ids in documents if len(ids) == length])
            logits = model(batch).logits.float()
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            (loss / targets).backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, max_grad_norm).item()
        optimizer.step()
        optimizer.zero_grad()
        rows.append({"loss": total / targets, "grad_norm": norm, "target_tokens": targets})
    if final:
        tensors = {name.replace(".default", ""): p.detach().clone()
                   for name, p in model.named_parameters() if p.requires_grad}
        save_file(tensors, final, metadata={"format": "pt"})
    return rows


def relative_l2(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
