"""The demo world: every kind of document the base is pretrained on.

`document(rng, copy_share)` returns a list of pieces (text, weight). Nothing here is taken from
anywhere: sentences are templates of ours, names are composed of syllables.
"""

import json

import copydocs
import names
import scenes
from copydocs import NOISE, SAID

PLAIN = 0.6  # weight of ordinary prose

# What may be asked of a report: field -> (questions, labels). The labels and layouts differ from
# those of the demo data set on purpose; the base must learn the skill, not the answer sheet.
FIELDS = {
    "who": (("Who was it?", "Who {v} them?", "Name of the person?", "Which person is named?",
             "Who is the one in charge?"),
            ("person", "name", "worker", "by", "sender", "clerk")),
    "item": (("What was {p}?", "Which goods?", "What things are meant?", "What is it about?"),
             ("goods", "thing", "object", "article", "stuff", "material")),
    "place": (("Where was that?", "Which site?", "At what spot?", "What location is named?"),
              ("site", "location", "where", "spot", "area", "position")),
    "count": (("How many?", "How many {i}?", "What number of {i}?", "The amount?"),
              ("number", "amount", "quantity", "total", "pieces", "n")),
}
HEADS = ("In short:", "Summary:", "Notes:", "Card:", "Form:", "Data:", "Fields:", "Sheet:", "Table:", "")


def prose(rng, held=False):
    """One to three reports in a row, as in a day book."""
    told = [scenes.report(rng, held)[1] for _ in range(rng.randint(1, 3))]
    return [(" ".join(told), PLAIN)]


def answers(rng, held=False):
    """A report, then questions about it with short answers."""
    ev, text = scenes.report(rng, held, rng.randint(0, 2))
    lead = rng.choice(("\nQuestion: {} Answer:", "\nQ: {}\nA:", "\n{}", "\n- {}"))
    pieces = [(text, PLAIN)]
    for field in rng.sample(list(FIELDS), rng.randint(1, 4)):
        ask = rng.choice(FIELDS[field][0]).format(v=ev.verb[0], p=ev.verb[1], i=ev.item)
        pieces += [(lead.format(ask), NOISE), (f" {getattr(ev, field)}", SAID)]
    return pieces


def layout(rng, table):
    """A note of `table` in one of many written forms."""
    style = rng.randrange(7)
    if style == 0:
        return "\n".join(f"{k}: {v}" for k, v in table.items())
    if style == 1:
        return " | ".join(f"{k} = {v}" for k, v in table.items())
    if style == 2:
        return "; ".join(str(v) for v in table.values())
    if style == 3:
        return "<" + " ".join(f'{k}="{v}"' for k, v in table.items()) + ">"
    if style == 4:
        return "[" + ", ".join(json.dumps(v) for v in table.values()) + "]"
    return json.dumps(table)


def note(rng, held=False):
    """A report and then the same in a form: some fields, any order, any labels."""
    ev, text = scenes.report(rng, held, rng.randint(0, 2))
    picked = rng.sample(list(FIELDS), rng.randint(1, 4))
    table = {rng.choice(FIELDS[f][1]): getattr(ev, f) for f in picked}
    return [(f"{text}\n{rng.choice(HEADS)}", PLAIN),
            (rng.choice((" ", "\n")) + layout(rng, table), SAID)]


def retell(rng, held=False):
    """The same event told twice in different words."""
    ev = scenes.event(rng, held)
    first, second = scenes.statement(rng, ev, held), scenes.statement(rng, ev, held, timed=0.0)
    return [(first, PLAIN), (rng.choice(("\nIn other words: ", "\nThat is: ", "\n")) + second, SAID)]


def life(rng, held=False):
    """A few sentences about one person."""
    first = names.first_name(rng, held)
    full = f"{first} {names.last_name(rng, held)}"
    home, trade, thing = names.town(rng, held), rng.choice(names.TRADES), names.item(rng, held)
    friend, day = names.first_name(rng, held), rng.choice(names.DAYS)
    lines = [f"{first} is a {trade}.", f"On {day} {first} goes to {home}.",
             f"{first} likes {thing} and long walks.", f"{friend} is a friend of {first}.",
             f"{first} and {friend} met in {home}.", f"Every morning {first} gets up at {names.clock(rng)}.",
             f"The {thing} belong to {first}.", f"{friend} works with {first} as a {trade}.",
             f"When it rains, {first} stays at home in {home}.", f"In winter {friend} visits {first}."]
    told = [f"{full} lives in {home}."] + rng.sample(lines, rng.randint(2, 5))
    asks = ((f"\nWhere does {first} live?", f" In {home}."), (f"\nWho lives in {home}?", f" {full}."),
            (f"\nWhat is the full name of {first}?", f" {full}."))
    ask, answer = rng.choice(asks)
    return [(" ".join(told), PLAIN), (ask, NOISE), (answer, SAID)]


SKILLS = (answers, answers, note, note, note, note, retell, prose, life)


def document(rng, copy_share, held=False):
    """One document; `copy_share` of them are pure copying."""
    if rng.random() < copy_share:
        return copydocs.document(rng, held)
    return rng.choice(SKILLS)(rng, held)


if __name__ == "__main__":
    source = names.generator(1)
    for _ in range(40):
        print("".join(text for text, _ in document(source, 0.4)), end="\n----\n")
