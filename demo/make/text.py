"""Tokenizer training and the stream of packed windows."""

import json
import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import names
import world

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
WINDOW = 256
CHUNK_STEPS = 100  # windows are made for this many steps at a time


def train_tokenizer(seed, vocab_size, documents=60000):
    """A byte-level BPE over a sample of the world; digits stay single tokens."""
    rng = names.generator(seed)
    sample = ("".join(text for text, _ in world.document(rng, 0.4)) for _ in range(documents))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[BOS, EOS, PAD],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    return tokenizer


def save_tokenizer(tokenizer, folder):
    """Writes tokenizer.json and tokenizer_config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
                "pad_token": PAD, "add_bos_token": True, "add_eos_token": False,
                "add_prefix_space": False, "clean_up_tokenization_spaces": False,
                "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def shares(step):
    """(share of copy documents, share of random-token repeats) at `step`.

    Copying comes first: heads that copy form within the first thousand steps when most of the
    text demands them, and everything later builds on them.
    """
    if step < 1500:
        return 0.8, 0.12
    return 0.5, 0.04


def random_repeat(rng, vocab_size):
    """A run of random tokens, repeated: no language at all, only copying."""
    run = [rng.randrange(3, vocab_size) for _ in range(rng.randint(6, 40))]
    times = rng.choice((1, 1, 2))
    return run * (times + 1), [0.0] * len(run) + [1.0] * (len(run) * times)


def windows(tokenizer, seed, step, batch):
    """ids and loss weights [CHUNK_STEPS * batch, WINDOW + 1] for the steps from `step` on.

    The random source depends on (seed, step) alone, so a resumed run sees the same text.
    """
    rng = random.Random(seed * 1_000_003 + step)
    need = CHUNK_STEPS * batch * (WINDOW + 1)
    copy_share, random_share = shares(step)
    bos, eos, vocab = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS), tokenizer.get_vocab_size()
    ids, weights = [], []
    while len(ids) < need:
        documents = [world.document(rng, copy_share) for _ in range(1000)]
        flat = tokenizer.encode_batch([t for d in documents for t, _ in d], add_special_tokens=False)
        encoded = iter(flat)
        for document in documents:
            if rng.random() < random_share:
                more, weight = random_repeat(rng, vocab)
                ids += [bos] + more + [eos]
                weights += [0.0] + weight + [0.0]
            ids.append(bos)
            weights.append(0.0)
            for _, weight in document:
                piece = next(encoded).ids
                ids += piece
                weights += [weight] * len(piece)
            ids.append(eos)
            weights.append(0.5)
    shape = (CHUNK_STEPS * batch, WINDOW + 1)
    return (np.array(ids[:need], dtype=np.int64).reshape(shape),
            np.array(weights[:need], dtype=np.float32).reshape(shape))
