"""Documents that can only be predicted by copying.

A base this small learns to extract only when its pretraining has taught it to copy. Each function
returns pieces (text, weight): the loss of a piece counts `weight`, low where the text is made up
and cannot be predicted, full where it has appeared before.
"""

import json

import names

NOISE = 0.2  # weight of text that nothing before it determines
SAID = 1.0   # weight of text that copies

JOINERS = (", ", "; ", " / ", " | ", ",", " and ", " - ", "\n")
AGAIN = ("Again:", "Once more:", "Copy:", "The same list:", "Repeat:", "Back:", "As above:",
         "I repeat,", "->", "=", "Read back:")
TITLES = ("List:", "Words:", "Here is the list:", "Names:", "The list of the day:", "Items:", "To copy:",
          "On the board:", "Note:")
LOOKS = (
    (lambda listed: ", ".join(f'"{v}"' for v in listed), "In quotes. "),
    (lambda listed: "; ".join(f"'{v}'" for v in listed), "In single quotes. "),
    (lambda listed: " | ".join(listed), "With bars. "),
    (lambda listed: "\n".join(f"- {v}" for v in listed), "As points. "),
    (lambda listed: json.dumps(listed), "As an array. "),
    (lambda listed: ",".join(listed), "Without spaces. "),
)
KEYS = ("person name worker sender owner by clerk goods thing object stuff article material site "
        "location where spot area number amount quantity total size day time when hour code ref "
        "color weight level team state mode price unit").split()


def values(rng, low, high, held=False):
    """A few values of one kind or of mixed kinds."""
    size = rng.randint(low, high)
    kinds = (names.person, names.place, names.item, names.word, names.first_name, names.value,
             names.value)
    kind = rng.choice(kinds)
    return [kind(rng, held) for _ in range(size)]


def list_copy(rng, held=False):
    """A list, then the same list again; a change of its look is announced.

    An unannounced change would be noise: the head of the copy could not be predicted.
    """
    listed = values(rng, 2, 7, held)
    first, again = rng.choice(JOINERS), rng.choice(AGAIN)
    look, how = rng.choice(LOOKS) if rng.random() < 0.4 else (None, "")
    copied = look(listed) if look else first.join(listed)
    return [(f"{rng.choice(TITLES)} {first.join(listed)}\n{how}{again}", NOISE), (f" {copied}", SAID)]


def word_repeat(rng, held=False):
    """A run of made-up words said two or three times."""
    run = " ".join(names.word(rng, held) for _ in range(rng.randint(3, 12)))
    return [(run, NOISE)] + [(f"{rng.choice((' ', chr(10)))}{run}", SAID)
                             for _ in range(rng.choice((1, 1, 2)))]


def pairs(rng, low, high, held=False):
    """Distinct keys with values of any kind."""
    size = rng.randint(low, high)
    if rng.random() < 0.7:
        keys = rng.sample(KEYS, size)
    else:
        keys = dict.fromkeys(names.word(rng, held) for _ in range(size))
    return {key: names.value(rng, held) for key in keys}


def key_value(rng, held=False):
    """`key: value` lines and then questions for some of them."""
    table = pairs(rng, 3, 7, held)
    sep = rng.choice((": ", " = ", ": ", " is ", " -> ", ": "))
    line = rng.choice(("\n", "\n", ", ", "; "))
    ask = rng.choice(("{k}?", "{k}:", "What is {k}?", "And {k}?", "{k} =", "Value of {k}:"))
    pieces = [(line.join(f"{k}{sep}{v}" for k, v in table.items()), NOISE)]
    for key in rng.sample(list(table), rng.randint(1, min(5, len(table)))):
        pieces += [("\n" + ask.format(k=key), NOISE), (f" {table[key]}", SAID)]
    return pieces


def record(rng, table):
    """`table` as one JSON-like line."""
    style = rng.randrange(4)
    if style < 2:
        typed = {k: int(v) if v.isdigit() and style else v for k, v in table.items()}
        return json.dumps(typed)
    if style == 2:
        return "[" + ", ".join(f'"{v}"' for v in table.values()) + "]"
    return "<" + " ".join(f'{k}="{v}"' for k, v in table.items()) + ">"


def to_record(rng, held=False):
    """`key: value` lines, then the same as JSON; or JSON, then lines."""
    table = pairs(rng, 2, 5, held)
    keys = list(table)
    if rng.random() < 0.3:
        rng.shuffle(keys)
    again = {k: table[k] for k in keys}
    lines = "\n".join(f"{k}: {v}" for k, v in table.items())
    if rng.random() < 0.3:
        return [(record(rng, table), NOISE), ("\n" + "\n".join(f"{k}: {v}" for k, v in again.items()), SAID)]
    return [(lines + "\n", NOISE), (record(rng, again), SAID)]


def quoted(rng, held=False):
    """A passage, and someone who repeats it between quotes."""
    passage = " ".join(names.value(rng, held) for _ in range(rng.randint(2, 5)))
    who = names.first_name(rng, held)
    opening = rng.choice((f"{who} read: {passage}.", f"The sign says: {passage}.",
                          f'"{passage}", said {who}.', f"On the wall: {passage}."))
    closing = rng.choice((f"\n{names.first_name(rng, held)} repeated:", "\nIn quotes:",
                          "\nThe words were", "\nExactly:"))
    return [(opening + closing, NOISE), (f' "{passage}"', SAID)]


def spell(rng, held=False):
    """A value in other clothes: bare, quoted, in brackets, after a sign."""
    shown = names.value(rng, held)
    dress = ('"{}"', "({})", "'{}'", "[{}]", "{}", " {}", "={}", "/{}/", ": {}", '{{"x": "{}"}}')
    forms = rng.sample(dress, rng.randint(2, 5))
    return [(forms[0].format(shown), NOISE)] + [("\n" + f.format(shown), SAID) for f in forms[1:]]


def owners(rng, held=False):
    """Several people with a thing each, then questions about who has what."""
    people = list(dict.fromkeys(names.first_name(rng, held) for _ in range(rng.randint(2, 5))))
    goods = list({names.item(rng, held): names.count(rng) for _ in range(8)}.items())[:len(people)]
    if len(goods) < len(people):
        people = people[:len(goods)]
    verb = rng.choice(("has", "holds", "keeps", "wants", "sold", "carries"))
    facts = list(zip(people, goods))
    text = " ".join(f"{who} {verb} {n} {thing}." for who, (thing, n) in facts)
    pieces = [(text, NOISE)]
    for who, (thing, n) in rng.sample(facts, min(len(facts), rng.randint(1, 3))):
        ask, answer = rng.choice(((f"\nWho {verb} the {thing}?", f" {who}"),
                                  (f"\nHow many {thing}?", f" {n}"),
                                  (f"\n{who} {verb} what?", f" {thing}"),
                                  (f"\nThings of {who}:", f" {n} {thing}")))
        pieces += [(ask, NOISE), (answer, SAID)]
    return pieces


MAKERS = (list_copy, list_copy, list_copy, word_repeat, key_value, key_value, key_value, to_record, to_record,
          quoted, spell, owners, owners)


def document(rng, held=False):
    """One copy document of a random sort."""
    return rng.choice(MAKERS)(rng, held)
