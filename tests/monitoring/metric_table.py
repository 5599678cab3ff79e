"""The metrics Nibble exports, as server/metrics_table.h lists them."""

import functools
import pathlib
import re

TABLE = pathlib.Path(__file__).resolve().parent.parent.parent / "server" / "metrics_table.h"
NAME = re.compile(r'"((?:nibble|grpc_server|process)_[a-z0-9_]+)"')


@functools.lru_cache
def base_names():
    """Every name once, in the table's order. Counters end in _total and nothing else does."""
    return list(dict.fromkeys(NAME.findall(TABLE.read_text())))


def counters():
    return {name for name in base_names() if name.endswith("_total")}


def histograms():
    """Distributions are the seconds that are not a point in time, a gauge of its own, or a counter."""
    text = TABLE.read_text()
    return {name for name in base_names()
            if re.search(rf'"{name}"[^;{{}}]*Histogram', text, re.S)}


def names():
    """Names as they stand in queries: histograms through their parts."""
    found = set(base_names()) - histograms()
    for name in histograms():
        found |= {name + "_bucket", name + "_sum", name + "_count"}
    return found
