#!/usr/bin/env python3
"""Writes the Grafana dashboards of grafana/dashboards.

    python3 make_dashboards.py [--check]

The JSON is committed; --check says whether it is what this script makes.
"""

import argparse
import json
import pathlib
import sys

import dashboards

OUT = pathlib.Path(__file__).resolve().parent / "grafana" / "dashboards"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    stale = []
    for board in dashboards.all_dashboards():
        path = OUT / f"{board['uid']}.json"
        text = json.dumps(board, indent=1, sort_keys=True) + "\n"
        if check:
            if not path.exists() or path.read_text() != text:
                stale.append(path.name)
        else:
            path.write_text(text)
    if stale:
        print("not what make_dashboards.py makes: " + ", ".join(stale))
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
