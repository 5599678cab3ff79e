#!/usr/bin/env python3
"""docs/memory.md shows what the planner computes: compares its tables with print_memory's, or writes them.

    check_docs.py PRINT_MEMORY DOCS_PAGE [--write]
"""

import difflib
import pathlib
import re
import subprocess
import sys

SECTION = re.compile(r"<!-- begin (\w+) -->\n(.*?)<!-- end \1 -->\n", re.S)


def main():
    binary, page, write = sys.argv[1], pathlib.Path(sys.argv[2]), "--write" in sys.argv
    printed = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    tables = {m.group(1): m.group(0) for m in SECTION.finditer(printed)}
    assert tables, "print_memory printed no table"
    old = page.read_text()
    missing = set(tables) - {m.group(1) for m in SECTION.finditer(old)}
    assert not missing, f"{page} has no place for {', '.join(sorted(missing))}"
    new = SECTION.sub(lambda m: tables[m.group(1)], old)
    if new == old:
        print(f"{len(tables)} tables as computed")
        return 0
    if write:
        page.write_text(new)
        print(f"{page} written")
        return 0
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "docs", "computed"))
    print(f"\n{page} does not show what is computed; run {sys.argv[0]} ... --write and read the text beside the tables")
    return 1


if __name__ == "__main__":
    sys.exit(main())
