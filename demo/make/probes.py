"""What the base can copy before any fine-tuning, measured on reserved names and words.

Every probe is (context, answer); it counts as right when greedy decoding would give the answer to
the last token. Feeding the answer and comparing each argmax says the same in one pass.
"""

import torch

import names
import scenes
import world
from text import BOS, EOS

KINDS = (names.person, names.place, names.item, names.word)


def list_copy(rng):
    """Five held-out values of one kind, then the same again."""
    kind = rng.choice(KINDS)
    listed = ", ".join(kind(rng, True) for _ in range(5))
    return f"List: {listed}\nAgain:", f" {listed}"


def key_value(rng):
    """Five `key: value` lines with held-out keys and values, then one question."""
    table = {names.word(rng, True): rng.choice(KINDS)(rng, True) for _ in range(5)}
    key = rng.choice(list(table))
    lines = "\n".join(f"{k}: {v}" for k, v in table.items())
    return f"{lines}\n{key}?", f" {table[key]}"


def into_quotes(rng):
    """A held-out value that must reappear between quotes, where its tokens differ."""
    shown = rng.choice(KINDS)(rng, True)
    return f"The sign says: {shown}.\nIn quotes:", f' "{shown}"'


def answer(rng):
    """A held-out report and a question about it."""
    ev, text = scenes.report(rng, True)
    field = rng.choice(list(world.FIELDS))
    ask = rng.choice(world.FIELDS[field][0]).format(v=ev.verb[0], p=ev.verb[1], i=ev.item)
    return f"{text}\nQuestion: {ask} Answer:", f" {getattr(ev, field)}"


PROBES = {"list copy": list_copy, "key: value recall": key_value, "into quotes": into_quotes,
          "question about a report": answer}


@torch.no_grad()
def exact(model, tokenizer, probe, count=200, seed=99):
    """Share of `count` probes that greedy decoding gets right to the last token."""
    rng = names.generator(seed)
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    rows = []
    for _ in range(count):
        context, wanted = (tokenizer.encode(t, add_special_tokens=False).ids for t in probe(rng))
        rows.append(([bos] + context, wanted))
    right = 0
    for i in range(0, count, 50):
        part = rows[i:i + 50]
        longest = max(len(c) + len(w) for c, w in part)
        ids = torch.full((len(part), longest), eos)
        for r, (c, w) in enumerate(part):
            ids[r, :len(c) + len(w)] = torch.tensor(c + w)
        best = model.logits(model(ids)).argmax(-1)
        for r, (c, w) in enumerate(part):
            right += best[r, len(c) - 1:len(c) + len(w) - 1].tolist() == w
    return right / count


def all_figures(model, tokenizer, count=200):
    """Every probe's figure."""
    return {name: exact(model, tokenizer, probe, count) for name, probe in PROBES.items()}
