#!/usr/bin/env python3
"""Token ids from the Hugging Face tokenizers library, as cases for Nibble's own tokenizer.

The texts come from the seeded generator below: words of many scripts, code, emoji, odd spaces,
contractions, numbers, special tokens in the middle of text. Two uses:

  make_tokenizer_fixtures.py --committed
      writes engine/testdata/tokenizers/*: some cases for each of a handful of tiny tokenizers
      made here (one for every kind of pipeline) and for demo/base, if it is there.
  make_tokenizer_fixtures.py --tokenizer DIR --lines 10000 --out cases.jsonl [--check BINARY]
      cases for any tokenizer; with --check they are run through the binary (tokenizer_check) at once.

Needs: pip install tokenizers (checked with 0.23).
"""

import argparse
import hashlib
import json
import pathlib
import random
import subprocess
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Ranges that are letters, digits and signs of living scripts.
SCRIPTS = [
    (0x61, 0x7A), (0x61, 0x7A), (0x41, 0x5A), (0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF),
    (0x531, 0x586), (0x5D0, 0x5EA), (0x620, 0x64A), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF),
    (0xE01, 0xE3A), (0xE40, 0xE5B), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1E00, 0x1EFF),
    (0x3041, 0x3096), (0x30A0, 0x30FF), (0x4E00, 0x9FA5), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
    (0x1D400, 0x1D7FF), (0x10330, 0x1034A), (0x1F300, 0x1F64F), (0x2190, 0x22FF), (0x300, 0x36F),
    (0x660, 0x669), (0x966, 0x96F), (0x2160, 0x217F), (0xBC, 0xBE), (0xFF01, 0xFF5E),
]
SPACES = [" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u2003",
          "\u3000", "\u200b", "\u2028", "\x0b", "\u202f", "        ", "\ufeff", "\x85", "\u180e"]
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'M", "'LL",
                "'D", "'x", "\u2019s", "'\u017f", "''", "'", "'l", "'v", "'r"]
EMOJI = ["\U0001F600", "\U0001F469\u200d\U0001F4BB", "\U0001F1E9\U0001F1EA", "\u2764\ufe0f",
         "\U0001F44D\U0001F3FD", "\U0001FAE0", "e\u0301", "\u1e9b\u0323", "\ufb01", "\u212b",
         "\u0041\u030a", "\uac00\u11a8", "\u0130", "\u00df", "\u03a3", "\u2460", "\u00b2"]
CODE = ["for (int i = 0; i < n; ++i) {", "def f(x, *args, **kw):", "    return a[i] += 1;", "</div>",
        "#include <vector>", "x != y && z || !w", "SELECT * FROM t WHERE a >= 10;", "\\u00e9", "0xFF",
        "1e-9", "3.14159", "foo_bar.baz()", "/* a */ // b", "${HOME}/bin", "a->b->c", "\"quoted\"",
        "@decorator", "lambda x: x**2", "---", "====", "~~~", "{{}}", "[[1, 2], [3]]", "%s %d\\n"]
MARKUP = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>",
          "<|eot_id|>", "<0x0A>", "<0xE4>", "<pad>", "[MASK]", "<s", "<|", "|>", "<mask>"]
WORDS = ("the a of and in to it is was on for with as by at from this that we you they she he do not "
         "bridge river engine harbour lantern winter Monday report delayed seventeen copper field "
         "answer letter window quietly running beautifully internationalization unbelievable re-open "
         "WiFi iPhone USA NaN e.g. Dr. Mr. hello world Hello World HELLO").split()


def word(rng):
    low, high = rng.choice(SCRIPTS)
    out = []
    for _ in range(rng.randint(1, 8)):
        if rng.random() < 0.08:
            low, high = rng.choice(SCRIPTS)
        out.append(chr(rng.randint(low, high)))
    return "".join(out)


def piece(rng, extra):
    kind = rng.random()
    if kind < 0.34:
        return rng.choice(WORDS)
    if kind < 0.54:
        return word(rng)
    if kind < 0.62:
        return str(rng.randint(0, 10 ** rng.randint(1, 12)))
    if kind < 0.70:
        return rng.choice(WORDS) + rng.choice(CONTRACTIONS)
    if kind < 0.78:
        return rng.choice(CODE)
    if kind < 0.85:
        return rng.choice(EMOJI)
    if kind < 0.90:
        return "".join(rng.choice("!?.,;:-_()[]{}<>/\\|@#$%^&*+=~`'\"") for _ in range(rng.randint(1, 6)))
    if kind < 0.93:
        return rng.choice(MARKUP + extra)
    if kind < 0.96:
        return rng.choice("abcxyz=-_.!\u4e00\u00e9") * rng.randint(2, 40)
    return rng.choice(SPACES) * rng.randint(1, 4)


def assigned(text):
    """Leaves out code points that are newer than some Unicode tables, or not assigned at all."""
    import unicodedata
    return "".join(c for c in text if unicodedata.category(c) not in ("Cn", "Cs"))


def make_line(rng, extra):
    parts = []
    for i in range(rng.choice([0, 1, 1, 2, 3, 5, 8, 13, 21])):
        if i and rng.random() < 0.85:
            parts.append(rng.choice(SPACES) if rng.random() < 0.3 else " ")
        parts.append(piece(rng, extra))
    return assigned("".join(parts))


def make_cases(tokenizer, lines, seed, added, texts=()):
    """`added`: the added_tokens of the file; `texts` come first. Where the library itself departs from the file, we follow
    the file and compare what can be compared:
    - it numbers an added token anew that the vocabulary lacks: such tokens are kept out of the texts;
    - from 0.22 on it decodes a token that is `normalized` to its normalized text ("\u2581<s>"), which
      skip_special_tokens then does not recognise: no decoding is compared for such tokenizers."""
    rng = random.Random(seed)
    renumbered = [t["content"] for t in added if tokenizer.token_to_id(t["content"]) != t["id"]]
    extra = [t["content"] for t in added if t["content"] not in renumbered][:40]
    decodes = all(tokenizer.id_to_token(t["id"]) == t["content"] for t in added)
    texts = list(texts)
    lines += len(texts)
    while lines > 0:
        text = texts.pop(0) if texts else make_line(rng, extra)
        if any(content in text for content in renumbered):
            continue
        lines -= 1
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        full = tokenizer.encode(text, add_special_tokens=True).ids
        case = {"text": text, "ids": ids, "ids_with_special": full}
        if decodes:
            case["decoded"] = tokenizer.decode(ids, skip_special_tokens=False)
            case["decoded_plain"] = tokenizer.decode(full, skip_special_tokens=True)
        yield case


def write_cases(path, cases):
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for case in cases:
            out.write(json.dumps(case, ensure_ascii=True) + "\n")


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def by_case(contraction, digits):
    """The pattern of Mistral's newer tokenizers and of GPT-4o."""
    prefix = r"[^\r\n\p{L}\p{N}]?"
    return (f"{prefix}{UPPER}*{LOWER}+{contraction}|{prefix}{UPPER}+{LOWER}*{contraction}|{digits}|"
            + REST)


def byte_level(vocab, corpus, pre, normalizer=None, special=("<|endoftext|>",), ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=list(special), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def sentencepiece_like(corpus, metaspace):
    fallback = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first",
                                                           split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)])
    # Training needs words; the finished tokenizer has no pre-tokenizer, like Llama 2.
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    learner.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=640, special_tokens=fallback, show_progress=False, limit_alphabet=120))
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    tokenizer.model = models.BPE(vocab=learned["vocab"], merges=merges, unk_token="<unk>",
                                 byte_fallback=True, fuse_unk=True)
    tokenizer.add_special_tokens([AddedToken(t, normalized=not metaspace, special=True)
                                  for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer


SPACE = "\u2581"  # what stands for a space in SentencePiece's vocabularies
# Where a tokenizer without words can go wrong: spaces at the ends and in runs (longer than any token of
# them), line breaks, tabs, bytes by fallback, tokens of the turns in the middle of words.
GEMMA_TEXTS = [
    "", " ", "  ", " a", "a ", " a ", "a  b", "a   b    c     d", " " * 17, "\n", "\n\n", "\n" * 9, "a\n b", "a \nb",
    "\ta", "a\t\tb", "\t" * 5, " \n \t \n", "\r\n", SPACE, SPACE * 2, "a" + SPACE + "b", " " + SPACE + " ", "\u00e9", "\u4f60\u597d",
    "\U0001F600", "\U0001F469\u200d\U0001F4BB\U0001F3FD", "\u0b85\u0bb4", "\x00\x01", "\ufffd", "<0x0A>", "<0x09>", "<unk>",
    "<bos>", "<eos><pad>", "<start_of_turn>user\nthe bridge<end_of_turn>\n<start_of_turn>model\n",
    "a<start_of_turn>b", "a <end_of_turn> b", " <start_of_turn> ", "<start_of_turn", "end_of_turn>", "<unused3>x", "<unused99>",
    "<table><tr>1</tr></table>", "<image_soft_token>", "river\n\nengine  lantern\n\n\n    Monday", "theofandinto" * 8,
    "a> </b", "> </", ">  </ </> </", "the> </> of </ and>", "a> b> </ c",
]


def gemma_like(corpus, newer):
    """As Gemma 1 and 2 have it (merges as strings, no byte token for the tab), or Gemma 3 (pairs; an added
    token beyond the vocabulary). A text has no words: its spaces are replaced before it is split at spaces."""
    spaces = [SPACE * n for n in range(2, 7)]
    breaks = ["\n" * n for n in range(1, 6)]
    tabs = ["\t", "\t\t", "\t\t\t"] if newer else ["\t"]
    markers = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"] + [f"<unused{i}>" for i in range(6)]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tags = ["<table>", "</table>", "<tr>", "</tr>"]
    vocab = markers + turns + breaks + spaces + tags
    vocab += [f"<0x{b:02X}>" for b in range(256) if newer or b != 9] + tabs
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SPACE, "merged_with_next"), pre_tokenizers.Split(Regex(r"[\n\t]+"), "isolated")])
    # Few characters, all of which are kept: which of equals a limit leaves out differs from run to run.
    plain = [line for line in corpus if line.isascii()] + CODE + MARKUP
    learner.train_from_iterator(plain, trainers.BpeTrainer(vocab_size=420, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    vocab += [piece for piece in learned["vocab"] if piece not in vocab]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    # Runs are merged in every way that makes one, as in the converted files.
    for run in breaks[1:] + tabs[1:] + spaces:
        merges += [(run[:i], run[i:]) for i in range(1, len(run))]
    if newer:  # one merge that joins words, as Gemma 3 has
        vocab += [piece for piece in (">", "</", SPACE + "</", ">" + SPACE + "</") if piece not in vocab]
        merges = [("<", "/"), (SPACE, "</"), (">", SPACE + "</")] + merges
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(vocab)}, merges=merges,
                                     unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    last = ["<image_soft_token>"] if newer else []
    special = set(markers[:5] + turns + last)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=t in special)
                          for t in markers + turns + breaks + spaces + tabs[1:] + tags + last])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)])
    return tokenizer


def tiny_tokenizers():
    """One tokenizer of some 600 tokens for every kind of pipeline."""
    rng = random.Random(11)
    corpus = [make_line(rng, []) for _ in range(1500)] + [" ".join(rng.choices(WORDS, k=12))
                                                          for _ in range(1500)]
    digits = pre_tokenizers.Digits(individual_digits=True)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def split(pattern):
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    yield "gpt2", byte_level(640, corpus, gpt2)
    yield "digits", byte_level(640, corpus, pre_tokenizers.Sequence([digits, gpt2]))
    llama3 = byte_level(640, corpus, pre_tokenizers.Sequence([split(LLAMA3), plain]), ignore_merges=True,
                        special=("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"))
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="$A $B",
                                      special_tokens=[("<|begin_of_text|>", 0)])])
    yield "llama3", llama3
    qwen = byte_level(640, corpus, pre_tokenizers.Sequence([split(QWEN2), plain]), normalizers.NFC(),
                      special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    # Every flag of an added token once.
    qwen.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False),
                     AddedToken("copper", single_word=True, normalized=True),
                     AddedToken("[MASK]", rstrip=True, normalized=True)])
    yield "qwen2", qwen
    yield "tekken", byte_level(640, corpus, pre_tokenizers.Sequence([split(by_case("", r"\p{N}")), plain]))
    gpt4o = by_case("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")
    yield "gpt4o", byte_level(640, corpus, pre_tokenizers.Sequence([split(gpt4o), plain]))
    deepseek = pre_tokenizers.Sequence([
        split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"),
        split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), digits, plain])
    yield "deepseek", byte_level(640, corpus, deepseek)
    yield "llama2", sentencepiece_like(corpus, metaspace=False)
    yield "metaspace", sentencepiece_like(corpus, metaspace=True)
    yield "gemma", gemma_like(corpus, newer=False)
    yield "gemma3", gemma_like(corpus, newer=True)


def write_committed(lines):
    target = ROOT / "engine" / "testdata" / "tokenizers"
    for name, tokenizer in tiny_tokenizers():
        folder = target / name
        folder.mkdir(parents=True, exist_ok=True)
        data = json.loads(tokenizer.to_str())
        if name == "gemma":
            data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        texts = GEMMA_TEXTS if name.startswith("gemma") else ()
        with open(folder / "tokenizer.json", "w", encoding="utf-8", newline="\n") as out:
            json.dump(data, out, ensure_ascii=True, separators=(",", ":"))
            out.write("\n")
        write_cases(folder / "cases.jsonl", make_cases(tokenizer, lines, 5, data["added_tokens"], texts))
        print(f"{name}: {tokenizer.get_vocab_size()} tokens, {lines} cases")
    demo = ROOT / "demo" / "base" / "tokenizer.json"
    if demo.exists():
        folder = target / "demo-base"
        folder.mkdir(parents=True, exist_ok=True)
        added = json.loads(demo.read_text(encoding="utf-8"))["added_tokens"]
        digest = hashlib.sha256(demo.read_bytes()).hexdigest()
        (folder / "made_from.sha256").write_text(digest + "\n", encoding="utf-8")
        write_cases(folder / "cases.jsonl",
                    make_cases(Tokenizer.from_file(str(demo)), lines, 5, added))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--committed", action="store_true")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="directory with a tokenizer.json")
    parser.add_argument("--lines", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--check", help="path of the tokenizer_check binary")
    args = parser.parse_args()
    print(f"tokenizers {tokenizers.__version__}", file=sys.stderr)
    if args.committed:
        write_committed(args.lines or 60)
        return 0
    if args.tokenizer is None or args.out is None:
        parser.error("--committed, or --tokenizer and --out")
    path = args.tokenizer / "tokenizer.json"
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
    write_cases(args.out, make_cases(Tokenizer.from_file(str(path)), args.lines or 10000, args.seed,
                                     added))
    if args.check:
        return subprocess.run([args.check, str(args.tokenizer), str(args.out)], check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
