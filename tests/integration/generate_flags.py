#!/usr/bin/env python3
"""What the flags of `nibble-engine generate` change.

  generate_flags.py PATH_OF_NIBBLE_ENGINE
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = int(os.environ.get("NIBBLE_PATIENCE", "1"))  # as client.py, which needs gRPC
# Says what it was asked in words that no template of ours has.
TEMPLATE = "{% for m in messages %}{{ m['role'] }} says: {{ m['content'] }}\n{% endfor %}and then: "


class Engine:
    def __init__(self, binary, base, cache):
        self.words = [binary, "generate", "--model-dir", base, "--cache-dir", cache, "--threads", "1", "--json"]

    def run(self, *words):
        return subprocess.run([*self.words, *words], capture_output=True, text=True, timeout=120 * PATIENCE, check=False)

    def __call__(self, *words):
        done = self.run(*words)
        assert done.returncode == 0, done
        return [json.loads(line) for line in done.stdout.splitlines()]


def with_template(base, folder):
    """The same base, whose tokenizer has a chat template."""
    shutil.copytree(base, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert "chat_template" not in config, "the example's base has none"
    path.write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return folder


def check_chat(plain, talking):
    """The prompt is what a user says, in the model's template or in the one that is named."""
    prompt = "read me"
    bare, = plain("--max-tokens", "1", prompt)
    assert talking("--max-tokens", "1", prompt)[0] == bare, "a template that nobody asked for"
    said, = talking("--max-tokens", "1", "--chat", prompt)
    # The template's words are in front of it and behind.
    whole, = plain("--max-tokens", "1", f"user says: {prompt}\nand then: ")
    assert abs(said["prompt_tokens"] - whole["prompt_tokens"]) <= 1 and said["prompt"] == prompt, (said, whole)
    assert said["prompt_tokens"] > bare["prompt_tokens"] + 3, (said, bare)
    named, = plain("--max-tokens", "1", "--chat-template", "chatml", prompt)
    assert named["prompt_tokens"] > bare["prompt_tokens"] + 3, (named, bare)
    assert named["prompt_tokens"] != said["prompt_tokens"], "chatml is another"
    assert talking("--max-tokens", "1", "--chat", "--chat-template", "chatml", prompt)[0] == named
    for words in (["--chat"], ["--chat-template", "chatlm"]):
        refused = plain.run(*words, prompt)
        assert refused.returncode == 5 and "CHAT_TEMPLATE_INVALID" in refused.stderr, refused
        assert "`--chat-template chatml`" in refused.stderr and "--chat " in refused.stderr, refused
        for word in ("data.chat_template", "chat_template:"):
            assert word not in refused.stderr, refused


def check_refusals(engine, folder):
    """What is said names what is wrong."""
    (folder / "empty.jsonl").write_text("")
    empty = engine.run("--prompts", folder / "empty.jsonl")
    assert empty.returncode == 5 and f"{folder}/empty.jsonl has no rows" in empty.stderr, empty
    nowhere = Engine(engine.words[0], ROOT / "demo" / "base", "/proc/nowhere").run("a")
    assert nowhere.returncode != 0 and nowhere.stderr.strip().endswith("No such file or directory"), nowhere


def check_sampling(engine):
    """--temperature draws, --seed decides what, --top-p from how many."""
    def texts(*words):
        return [engine("--max-tokens", "12", "--seed", str(seed), *words, "the")[0]["text"] for seed in range(4)]

    greedy = texts()
    assert len(set(greedy)) == 1, greedy
    hot = texts("--temperature", "3")
    assert len(set(hot)) > 1 and hot == texts("--temperature", "3", "--top-p", "1"), hot
    # Of so small a share only the likeliest token is left.
    assert texts("--temperature", "3", "--top-p", "0.000001") == greedy
    few = texts("--temperature", "3", "--top-p", "0.5")
    assert few != hot, "half of the share draws as all of it"
    for share in ("0", "1.5", "-1"):
        assert engine.run("--top-p", share, "the").returncode == 2, share


def check_length(engine):
    """--max-tokens bounds an answer; however large it is, a text has no more than the model's positions."""
    assert engine("--max-tokens", "3", "the")[0]["tokens"] <= 3
    longest, = engine("--max-tokens", "512", "the")
    assert longest == engine("--max-tokens", str(2**63 - 1), "the")[0], longest
    for count in ("0", "-1", str(2**63)):
        assert engine.run("--max-tokens", count, "the").returncode == 2, count


def main():
    binary = sys.argv[1]
    if not os.path.isfile(binary):
        print(f"skipped: {binary} is not built")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        base = ROOT / "demo" / "base"
        plain = Engine(binary, base, folder / "cache")
        check_chat(plain, Engine(binary, with_template(base, folder / "talking"), folder / "cache"))
        check_refusals(plain, folder)
        check_sampling(plain)
        check_length(plain)
    print("flags of generate: all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
