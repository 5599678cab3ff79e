"""Makes the demo data set: short reports in, JSON records out.

    python make_dataset.py --out ../data

Training rows use the open names and sentence forms; held-out rows use reserved names in reserved
forms only (see names.reserved and scenes.form_reserved), so a right answer was read, not recalled.
"""

import argparse
import json
from pathlib import Path

import names
import scenes

PROMPT = "Write the record of this report.\n{}\nRecord:"


def row(rng, held):
    """One prompt with its completion."""
    ev, text = scenes.report(rng, held)
    record = {"who": ev.who, "item": ev.item, "place": ev.place, "count": ev.count}
    return {"prompt": PROMPT.format(text), "completion": " " + json.dumps(record)}


def rows(seed, size, held):
    """`size` different rows."""
    rng, made = names.generator(seed), {}
    while len(made) < size:
        new = row(rng, held)
        made[new["prompt"]] = new
    return list(made.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="../data")
    parser.add_argument("--train", type=int, default=2400)
    parser.add_argument("--heldout", type=int, default=240)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, size, held in (("train", args.train, False), ("heldout", args.heldout, True)):
        with open(out / f"{name}.jsonl", "w") as file:
            for made in rows(args.seed + held, size, held):
                file.write(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
