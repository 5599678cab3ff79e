#!/usr/bin/env python3
"""What can be seen in the machine code of the CUDA kernels without a GPU.

  check_machine_code.py FOLDER     of the objects (build/kernels/cuda); needs cuobjdump and nvdisasm

On every path through a kernel, with what the compiler made of it:
  - instructions that a warp carries out together (shuffles, votes, matrix loads and products, barriers) stand outside
    of regions in which the compiler expects its lanes apart, but for those of ALIKE;
  - between WARPGROUP.ARRIVE and a warpgroup's product nobody writes what that reads or adds to in registers;
  - from there until it was waited for nobody reads or writes its sums, nor writes its left operand;
  - none is under way when a kernel ends;
  - copies to shared memory have been waited for and made visible to the tensor cores before a barrier.
Where there is no cuobjdump that is said, and nothing is checked. Exit status 1: something was found.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

# Kernels whose loops the compiler does not know to be the same for all lanes of a warp; they are: bounds come from
# memory by way of the block's and the warp's number alone.
ALIKE = {"KeysKernel"}

TOGETHER = {"SHFL", "VOTE", "HMMA", "LDSM", "HGMMA", "BAR", "WARPGROUP", "WARPSYNC"}
# Their first register is no result.
WITHOUT_RESULT = re.compile(r"(ST|RED|LDGSTS|BRA|EXIT|BAR|DEPBAR|LDGDEPBAR|MEMBAR|FENCE|WARP|NOP|U|R2UR|VOTE|BS|"
                            r"ISETP|FSETP|DSETP|PLOP|HGMMA|CALL|RET)")
MOST_GROUPS = 2  # of products under way that are told apart


class Instruction:
    def __init__(self, address, text):
        self.address, self.text = address, text
        self.conditional = text.startswith("@")
        self.body = text.split(None, 1)[1] if self.conditional else text
        self.name = self.body.split()[0]
        self.kind = self.name.split(".")[0]
        self.target = None
        if self.kind in ("BRA", "BSSY"):
            found = re.search(r"0x([0-9a-f]+)", self.body)
            self.target = int(found.group(1), 16) if found else None
        # Where lanes have parted already the compiler has another way (BRA.DIV), which nobody is to take.
        if self.name == "BRA.DIV":
            self.target = None
        # Also "BRA P0, ...", "BRA !P0, ..."; a uniform predicate is no lane's, nor is one of BRA.U.
        of_lanes = self.conditional or bool(re.match(r"BRA\S*\s+!?P\d", self.body))
        self.falls_through = of_lanes or self.name == "BRA.DIV" or bool(re.match(r"BRA\S*\s+!?UP\d", self.body))
        self.parts_lanes = of_lanes and self.name != "BRA.U"
        # Lanes are together behind it, whatever was before.
        self.joins_lanes = bool(re.match(r"WARPSYNC(\.ALL| 0xffffffff)", self.body)) and not self.conditional
        # "VOTE.ANY R1, PT, PT" asks who is here.
        self.together = (self.kind in TOGETHER and not self.joins_lanes
                         and not re.match(r"VOTE\.ANY R\d+, PT, PT", self.body))
        self.registers, self.results = self.find_registers()
        self.product = self.find_product() if self.kind == "HGMMA" else None

    def width(self):
        if ".128" in self.name or (self.kind == "LDSM" and self.name.endswith(".4")):
            return 4
        return 2 if ".64" in self.name or ".WIDE" in self.name or self.kind in ("DADD", "DFMA", "DMUL") else 1

    def find_registers(self):
        """What it may touch, and what it may write; rather too much than too little."""
        touched = set()
        for found in re.finditer(r"(?<![A-Z])R(\d+)(\.64)?", self.body):
            first = int(found.group(1))
            touched |= set(range(first, first + max(self.width(), 2 if found.group(2) else 1)))
        result = re.match(r"\S+\s+(?:!?U?P\w+, )*R(\d+)", self.body)
        if not result or WITHOUT_RESULT.match(self.name):
            return touched, set()
        return touched, set(range(int(result.group(1)), int(result.group(1)) + self.width()))

    def find_product(self):
        """Sums, left operand, and whether it ends its group."""
        found = re.search(r"\.64x(\d+)x16\S* R(\d+), (?:R(\d+), )?gdesc", self.body)
        columns, sums, left = int(found.group(1)), int(found.group(2)), found.group(3)
        return (frozenset(range(sums, sums + columns // 2)),
                frozenset(range(int(left), int(left) + 4)) if left else frozenset(), "gsb0" in self.body)


def kernels_of(path):
    """(architecture, name, instructions) of every kernel of an object."""
    text = subprocess.run(["cuobjdump", "-sass", path], capture_output=True, text=True, check=True).stdout
    architecture, name, found = "", "", []
    for line in text.splitlines():
        start = re.search(r"code for (sm_\w+)|Function : (\S+)", line)
        if start:
            if found:
                yield architecture, name, found
            found = []
            architecture, name = start.group(1) or architecture, start.group(2) or name
        code = re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;", line)
        if code:
            found.append(Instruction(int(code.group(1), 16), code.group(2)))
    if found:
        yield architecture, name, found


def walk(code, start, step):
    """Visits every instruction in every state that some path brings there; step(instruction, state): the next state."""
    place = {instruction.address: i for i, instruction in enumerate(code)}
    seen, work = set(), [(0, start)]
    while work:
        i, state = work.pop()
        while i < len(code) and (i, state) not in seen:
            seen.add((i, state))
            instruction = code[i]
            state = step(instruction, state)
            if instruction.kind == "BRA" and instruction.target in place:
                work.append((place[instruction.target], state))
            if instruction.kind in ("BRA", "EXIT", "RET") and not instruction.falls_through:
                break
            i += 1


def lanes_apart(code, found):
    """State: regions that were entered, and whether the lanes may have parted since."""
    def step(at, state):
        if at.joins_lanes:
            return frozenset((region, False) for region, _ in state)
        if at.together and any(parted for _, parted in state):
            found.add(f"{at.address:x} {at.name} where lanes may be apart")
        if at.together and at.conditional:
            found.add(f"{at.address:x} {at.text} under a condition")
        if at.kind == "BSSY":
            return state | {(at.body.split()[1].rstrip(","), False)}
        if at.kind == "BSYNC":
            return frozenset(one for one in state if one[0] != at.body.split()[1])
        if at.kind == "BRA" and at.parts_lanes:
            return frozenset((region, True) for region, _ in state)
        return state
    walk(code, frozenset(), step)


def products_disturbed(code, found):
    """State: groups under way, the group that is not ended, registers written since the ARRIVE (None: there was none)."""
    # Only what an operand may be: else every path would have a state of its own.
    operands = frozenset().union(*(of.product[0] | of.product[1] for of in code if of.product))

    def step(at, state):
        groups, opened, written = state
        under_way = [*groups, *([opened] if opened else [])]
        sums = frozenset().union(*(group[0] for group in under_way))
        left = frozenset().union(*(group[1] for group in under_way))
        if at.kind == "HGMMA":
            into, of, ends = at.product
            if written is None or written & (of | (into - sums)):
                found.add(f"{at.address:x} {at.body}: operands written behind WARPGROUP.ARRIVE, or none")
            opened = (into | opened[0], of | opened[1]) if opened else (into, of)
            return (groups, opened, written) if not ends else ((*groups, opened)[-MOST_GROUPS:], None, written)
        if at.name.startswith("WARPGROUP.ARRIVE"):
            return groups, opened, frozenset()
        if at.name.startswith("WARPGROUP.DEPBAR"):
            pending = int(re.search(r"gsb0, (0x[0-9a-f]+)", at.body).group(1), 16)
            return groups[-pending:] if pending else (), opened, None if pending == 0 else written
        if at.registers & sums or at.results & left:
            found.add(f"{at.address:x} {at.text} touches products under way")
        if at.kind == "EXIT" and under_way:
            found.add(f"{at.address:x} ends with products under way")
        return groups, opened, None if written is None else written | (at.results & operands)

    walk(code, ((), None, None), step)


def copies_unseen(code, found):
    """State: how far the last copies have come: 0 all, 1 started, 2 waited for, 3 made visible, all before a barrier."""
    def step(at, state):
        if at.kind == "LDGSTS":
            return 1
        if at.kind == "DEPBAR" and re.search(r"SB0, 0x0", at.body):
            return 2 if state == 1 else state
        if at.name.startswith("FENCE.VIEW.ASYNC"):
            return 3 if state == 2 else state
        if at.kind == "BAR":
            if state in (1, 2):
                found.add(f"{at.address:x} {at.body}: copies were {'not waited for' if state == 1 else 'not fenced'}")
            return 0
        return state
    walk(code, 0, step)


def findings(name, code):
    found = set()
    if not any(kernel in name for kernel in ALIKE):
        lanes_apart(code, found)
    if any(at.product for at in code):
        products_disturbed(code, found)
        copies_unseen(code, found)
    return sorted(found)


def main():
    os.environ["PATH"] += ":/usr/local/cuda/bin"
    if not shutil.which("cuobjdump") or not shutil.which("nvdisasm"):
        print("cuobjdump or nvdisasm is not on the path: the machine code was not looked at")
        return 0
    count, wrong = {}, 0
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.o")):
        for architecture, name, code in kernels_of(path):
            count[architecture] = count.get(architecture, 0) + 1
            for line in findings(name, code)[:10]:
                wrong += 1
                print(f"{path.stem} {architecture} {name}: {line}")
    kernels = ", ".join(f"{many} of {architecture}" for architecture, many in sorted(count.items()))
    print(f"machine code of kernels: {kernels or 'none'}; {wrong} findings")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main())
