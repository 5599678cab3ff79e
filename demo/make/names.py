"""Names and words of the demo world, composed of pieces.

Names are built from syllables instead of being listed, so there are far more of them than the
base can learn by heart: it has to copy them. One rule, `reserved`, keeps about one word in seven
out of everything that is trained on; only held-out material is built from reserved words.
"""

import random
import zlib

# A word is reserved when its checksum says so: no list to keep, the same on every machine.
RESERVED_ONE_IN = 7

FIRST_HEADS = ("Ma Lo Ke Ta Ri So Ne Da Bel Cor Fen Gar Hal Iv Jor Kat Lin Mor Nad Os Pel Quin Ros "
               "Sal Tor Ul Ver Wil Yan Zel Am Bri Cal Del El Fi Gre Han In Jas Ko Lu Mi Nor").split()
FIRST_TAILS = ("ra lin ven na da mo sa la ric ton ny ris dan va lo mi bert ka ne sel tha vin dra "
               "ko len mar").split()
LAST_HEADS = ("Del Har Whit Ash Black Car Dun East Far Gold Hol Ing Jar Kel Lang Mill North Oak Pen "
              "Rad Sand Thorn Und Vance Wood Yar Birch Cole Drake Elm Frost Grim Hart Lock Marsh Pike "
              "Rook Stone Tull West Brand Crom Fair Hex").split()
LAST_TAILS = ("l ley ton man wick er field ford gate more son well by worth land ridge sen brook low "
              "den ham stock ing mont kin ett").split()
TOWN_HEADS = ("Ost Nor Tarn Wel Brack Cald Eld Fal Gris Hav Kirk Loch Mel Nether Over Pol Quar Rav "
              "Skel Thur Upp Vell Wyn Ald Bor Cran Dray Esk Glen Hul").split()
TOWN_TAILS = ("ley wick ton dale ford mere by stead haven port moor ridge cross well den combe").split()

NUMBERED_PLACES = ("Harbor Dock Gate Bay Hall Yard Shed Platform Store Room Lab Depot Block Pier "
                   "Hangar Line Tower Ward").split()
TOWN_KINDS = ("Mill Bridge School Station Farm Clinic Library Market House Works Park Church "
              "Quarry Hotel").split()
PLAIN_PLACES = ("the north yard;the old mill;the main office;the east gate;the river dock;the bakery;"
                "the workshop;the cold store;the post room;the town hall;the boat house;the garage;"
                "the south tower;the clinic;the print shop;the green house;the machine hall").split(";")

ITEMS = ("pumps lamps chairs boxes valves motors cables keys pipes books tires doors bricks ladders "
         "hammers bottles blankets crates drums fans filters gauges gloves helmets hoses jackets "
         "kettles locks maps mirrors nails ovens paddles panels pens plates radios ropes saws "
         "screws sensors shelves shovels signs tables tanks tents tiles tools trays trucks wheels "
         "windows wires batteries brushes buckets carpets clocks coats curtains desks engines flags "
         "forks heaters hinges knives lenses meters mugs parcels phones pillows printers rails "
         "scales seats spoons stoves switches tapes toys trolleys umbrellas vests").split()
QUALITIES = ("copper steel red blue green small large spare old new heavy wooden white black rubber "
             "glass broken plastic yellow clean used short long brass iron grey paper round").split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November "
          "December").split()
TRADES = ("driver nurse clerk baker guard teacher cook farmer painter sailor mechanic porter "
          "plumber librarian welder tailor gardener doctor engineer student").split()

ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pl qu r s sh sk st t tr v w z".split()
VOWELS = "a e i o u ai ea oo ou".split()
CODAS = "b ck d g l m n nd p r rk s st t x sh".split() + [""] * 6


def reserved(word):
    """True when `word` may only occur in held-out material."""
    return zlib.crc32(word.encode()) % RESERVED_ONE_IN == 0


def _join(rng, heads, tails, held):
    """A composed word whose reserved state is `held`."""
    while True:
        word = rng.choice(heads) + rng.choice(tails)
        if reserved(word) == held:
            return word


def first_name(rng, held=False):
    """A given name such as 'Mara'."""
    return _join(rng, FIRST_HEADS, FIRST_TAILS, held)


def last_name(rng, held=False):
    """A family name such as 'Holford'."""
    return _join(rng, LAST_HEADS, LAST_TAILS, held)


def person(rng, held=False):
    """A full name; both halves are reserved when `held`."""
    return f"{first_name(rng, held)} {last_name(rng, held)}"


def town(rng, held=False):
    """A town name such as 'Norwick'."""
    return _join(rng, TOWN_HEADS, TOWN_TAILS, held)


def place(rng, held=False):
    """A place: numbered, named after a town, a town, or a plain phrase."""
    roll = rng.random()
    if roll < 0.40:
        while True:
            name = f"{rng.choice(NUMBERED_PLACES)} {rng.randint(1, 60)}"
            if reserved(name) == held:
                return name
    if roll < 0.75:
        return f"{town(rng, held)} {rng.choice(TOWN_KINDS)}"
    if roll < 0.88 or held:
        return town(rng, held)
    return rng.choice(PLAIN_PLACES)


def item(rng, held=False):
    """Some goods in the plural, often with a quality; the pair is reserved when `held`."""
    while True:
        name = rng.choice(ITEMS)
        if held or rng.random() < 0.6:
            name = f"{rng.choice(QUALITIES)} {name}"
            if reserved(name) != held:
                continue
        return name


def count(rng):
    """A number of things, small ones more often."""
    return rng.randint(2, rng.choice((9, 20, 99, 99, 500)))


def clock(rng):
    """A time of day such as '14:30'."""
    return f"{rng.randint(6, 22)}:{rng.choice(('00', '05', '10', '15', '20', '30', '40', '45', '50'))}"


def word(rng, held=False):
    """A made-up lower-case word of one to three syllables."""
    while True:
        syllables = rng.choice((1, 2, 2, 3))
        made = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables))
        made += rng.choice(CODAS)
        if reserved(made) == held:
            return made


def code(rng):
    """A short code such as 'KR-402'."""
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVWXZ") for _ in range(rng.randint(1, 3)))
    return f"{letters}-{rng.randint(1, 999)}"


def value(rng, held=False):
    """Any of the kinds of value that records are made of."""
    kind = rng.randrange(9)
    if kind == 0:
        return first_name(rng, held)
    if kind in (1, 2):
        return person(rng, held)
    if kind in (3, 4):
        return place(rng, held)
    if kind == 5:
        return item(rng, held)
    if kind == 6:
        return str(rng.randint(1, 999))
    if kind == 7:
        return code(rng)
    return word(rng, held)


def generator(seed):
    """A random source of its own, so that no two users share state."""
    return random.Random(seed)
