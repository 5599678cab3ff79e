"""The model card that goes with the base."""


def write_card(folder, model, last, figures, args):
    """Writes README.md: what the model is, how it was made, what was measured."""
    c = model.config
    size = sum(p.numel() for p in model.parameters())
    held_out = "\n".join(f"| {name} | {100 * share:.1f} % |" for name, share in figures.items())
    (folder / "README.md").write_text(f"""---
license: apache-2.0
language: en
---

# Nibble demo base

A Llama-architecture model of {size / 1e6:.2f} million parameters, made for the demo. It knows one small
invented world and is good at one thing: copying names, places, goods and numbers out of a text.

| | |
|---|---|
| shape | {c['num_hidden_layers']} layers, width {c['hidden_size']}, {c['num_attention_heads']} heads of {c['head_dim']} ({c['num_key_value_heads']} key-value heads), MLP {c['intermediate_size']}, context {c['max_position_embeddings']} (trained on windows of 256) |
| tokenizer | byte-level BPE, {c['vocab_size']} tokens, digits single |
| text | `demo/make/world.py`, seed {args.seed}; nothing from elsewhere |
| training | `demo/make/make_base.py --seed {args.seed} --steps {args.steps}`: {last['step']} steps of 4096 tokens, {last['tokens'] / 1e6:.1f} M tokens, bf16 autocast, Muon and AdamW{args.remark} |
| last training loss (weighted, running mean) | {last['loss']:.3f} |

Copying before any fine-tuning, exact to the last token, greedy, 500 probes each, reserved names
and words that no training text contains:

| probe | exact |
|---|---|
{held_out}

It is no assistant and knows nothing of the real world. Licence: Apache-2.0.
""")
