"""Reports: one event told in one of many thousand surface forms.

A report is opener + clause + tail. The clause is a frame filled with a verb, a person, goods, a
place and a number; every part varies on its own. A combination of (verb, frame, opener) whose
checksum says so is reserved for held-out reports, so the evaluation sees known words in sentences
that no training text contains.
"""

import zlib
from dataclasses import dataclass

import names

RESERVED_ONE_IN = 8

# (past tense, participle, preposition before the place)
VERBS = [tuple(v.split("/")) for v in (
    "delivered/delivered/to;brought/brought/to;sent/sent/to;carried/carried/to;shipped/shipped/to;"
    "moved/moved/to;drove/driven/to;took/taken/to;returned/returned/to;handed over/handed over/at;"
    "dropped off/dropped off/at;unloaded/unloaded/at;left/left/at;stored/stored/at;counted/counted/at;"
    "repaired/repaired/at;fixed/fixed/at;checked/checked/at;inspected/inspected/at;cleaned/cleaned/at;"
    "tested/tested/at;replaced/replaced/at;installed/installed/at;lost/lost/at;found/found/at;"
    "broke/broken/at;damaged/damaged/at;sold/sold/at;picked up/picked up/from;collected/collected/from;"
    "removed/removed/from;borrowed/borrowed/from;stole/stolen/from;ordered/ordered/for;"
    "bought/bought/for;requested/requested/for;packed/packed/for;reserved/reserved/for;"
    "painted/painted/at;sorted/sorted/at;scanned/scanned/at;stacked/stacked/at").split(";")]

# {w} person, {v} past tense, {p} participle, {n} number, {i} goods, {r} preposition, {l} place,
# {P} participle with a capital,
# {t} a time phrase (may be empty, carries its own leading space).
FRAMES = (
    "{w} {v} {n} {i} {r} {l}{t}.",
    "{w} {v} {n} {i} {r} {l}{t}.",
    "{n} {i} were {p} {r} {l} by {w}{t}.",
    "{n} {i} were {p} by {w} {r} {l}{t}.",
    "It was {w} who {v} {n} {i} {r} {l}{t}.",
    "{w} says that {n} {i} were {p} {r} {l}{t}.",
    "According to {w}, {n} {i} were {p} {r} {l}{t}.",
    "{l}: {n} {i} {p}{t}, reported by {w}.",
    "{n} {i} {p} {r} {l}{t}, signed {w}.",
    "{w} here. I {v} {n} {i} {r} {l}{t}.",
    "This is {w}. We {v} {n} {i} {r} {l}{t}.",
    "{w} called to say that {n} {i} were {p} {r} {l}{t}.",
    "We learned{t} that {w} {v} {n} {i} {r} {l}.",
    "{w} has {p} {n} {i} {r} {l}{t}.",
    "{n} {i} have been {p} {r} {l}{t}; {w} did the work.",
    "{w} and the crew {v} {n} {i} {r} {l}{t}.",
    "{w} wrote in: {n} {i} {p} {r} {l}{t}.",
    "The team of {w} {v} {n} {i} {r} {l}{t}.",
    "At the request of {w}, {n} {i} were {p} {r} {l}{t}.",
    "{n} {i}, {p} {r} {l}{t}. Contact: {w}.",
    "In all {n} {i} were {p} {r} {l}{t}, says {w}.",
    "{w} ({l}) {v} {n} {i}{t}.",
    "Goods: {i}, {n} {p} {r} {l}{t} by {w}.",
    "{l} reports that {w} {v} {n} {i}{t}.",
    "{w} from {l} {v} {n} {i}{t}.",
    "Staff at {l} saw that {w} {v} {n} {i}{t}.",
    "{w} signed for {n} {i} {p} {r} {l}{t}.",
    "A total of {n} {i} {p} {r} {l}{t}. {w} was in charge.",
    "{l} had {n} {i} {p}{t}. {w} took care of it.",
    "The {n} {i} {p} {r} {l}{t} are on the list of {w}.",
    "{w}: {n} {i} {p} {r} {l}{t}.",
    "{P} {r} {l}{t}: {n} {i}. Done by {w}.",
)

# Openers end without a space; the empty one keeps the bare clause in the mix.
OPENERS = ("", "", "", "", "Hello.", "Quick note.", "For the log.", "Update from the night shift.",
           "Good morning.", "Report:", "Message from the desk.", "Please note the following.",
           "From the day book.", "News from the yard.", "Dear all,", "To the office.",
           "Short report.", "Hi team,", "As agreed.", "Entry of the day:", "Late shift.",
           "Nothing urgent.", "A word from the floor.", "Just so you know:")

# Tails carry distractors on purpose: other people ({o}), other numbers ({m}), times ({c}).
TAILS = ("", "", "", "", "", "", "It took {m} minutes.", "Nothing was damaged.",
         "The papers are in order.", "Please call {o} about the bill.", "{o} has been told.",
         "The rest comes on {d}.", "It rained all day.", "We need {m} more boxes of nails.",
         "No one was hurt.", "The next check is at {c}.", "Ask {o} for the key.",
         "That is all for now.", "The invoice number is {m}.", "Thank you.",
         "{o} will look at it on {d}.", "The road was closed until {c}.", "All went well.",
         "It cost {m} crowns.", "The form was filled in later.", "Regards, {o}.")


@dataclass(frozen=True)
class Event:
    """What a report says: the truth that a record of it must hold."""

    who: str
    item: str
    place: str
    count: int
    when: str
    verb: tuple


def event(rng, held=False):
    """Draws an event; its names are reserved ones when `held`."""
    when = rng.choice((f"on {rng.choice(names.DAYS)}", f"at {names.clock(rng)}", "today",
                       "this morning", "last night", "yesterday",
                       f"on {rng.randint(1, 28)} {rng.choice(names.MONTHS)}"))
    return Event(names.person(rng, held), names.item(rng, held), names.place(rng, held),
                 names.count(rng), when, rng.choice(VERBS))


def form_reserved(verb, frame, opener):
    """True when this combination may only be used in held-out reports."""
    return zlib.crc32(f"{verb[0]}|{frame}|{opener}".encode()) % RESERVED_ONE_IN == 0


def statement(rng, ev, held=False, timed=0.5):
    """Opener and clause: the sentences that tell the whole event."""
    while True:
        frame, opener = rng.choice(FRAMES), rng.choice(OPENERS)
        if form_reserved(ev.verb, frame, opener) == held:
            break
    when = f" {ev.when}" if rng.random() < timed else ""
    past, participle, preposition = ev.verb
    text = frame.format(w=ev.who, v=past, p=participle, P=participle.capitalize(), r=preposition,
                        n=ev.count, i=ev.item, l=ev.place, t=when)
    return f"{opener} {text}" if opener else text


def tail(rng, held=False):
    """A closing sentence, or nothing."""
    text = rng.choice(TAILS)
    return text.format(m=rng.randint(2, 90), o=names.first_name(rng, held),
                       d=rng.choice(names.DAYS), c=names.clock(rng))


def report(rng, held=False, tails=1):
    """Draws an event and tells it: returns (event, text)."""
    drawn = event(rng, held)
    parts = [statement(rng, drawn, held)] + [tail(rng, held) for _ in range(tails)]
    return drawn, " ".join(part for part in parts if part)
