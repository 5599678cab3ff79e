#!/usr/bin/env python3
"""check_machine_code.py finds what it looks for, and nothing in code that is right."""

import unittest

from check_machine_code import Instruction, findings

# Two rounds of a loop: copies, their arrival, a product of shared memory and one of registers, one left under way.
RIGHT = """
    BSSY B0, 0x40
    @P0 BRA 0x30
    MOV R4, R5
    BSYNC B0
    LDGSTS.E.BYPASS.128 [R1], desc[UR6][R2.64], P2
    LDGDEPBAR
    DEPBAR.LE SB0, 0x0
    FENCE.VIEW.ASYNC.S
    BAR.SYNC.DEFER_BLOCKING 0x0
    MOV R8, R4
    WARPGROUP.ARRIVE
    HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT, gsb0
    HGMMA.64x64x16.F32.BF16 R64, R8, gdesc[UR4].tnspB, R64, gsb0
    WARPGROUP.DEPBAR.LE gsb0, 0x1
    FADD R24, R24, R25
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    FADD R64, R64, R65
    SHFL.BFLY PT, R3, R24, 0x1, 0x1f
    @!P1 BRA 0x40
    EXIT
"""


def found(text):
    lines = [line.strip() for line in text.strip().splitlines()]
    return findings("AKernel", [Instruction(16 * i, line) for i, line in enumerate(lines)])


class MachineCodeTest(unittest.TestCase):
    def changed(self, old, new):
        self.assertIn(old, RIGHT)
        return found(RIGHT.replace(old, new, 1))

    def test_right_code_has_nothing(self):
        self.assertEqual(found(RIGHT), [])

    def test_lanes_that_were_joined_are_together(self):
        text = """
            BSSY B0, 0x50
            @P0 BRA 0x40
            WARPSYNC.ALL
            @!P1 BRA.U 0x10
            BSYNC B0
            EXIT
        """
        self.assertEqual(found(text), [])
        parted = text.replace("WARPSYNC.ALL", "SHFL.BFLY PT, R3, R4, 0x1, 0x1f")
        self.assertEqual(len(found(parted)), 1)
        self.assertEqual(found(parted.replace("@P0 BRA 0x40", "BRA.DIV UR4, 0x40").replace("BRA.U", "NOP")), [])

    def test_each_mistake_is_found(self):
        for old, new, why in (
                ("    BSYNC B0\n", "    SHFL.BFLY PT, R3, R4, 0x1, 0x1f\n", "lanes may be apart"),
                ("SHFL.BFLY", "@P3 SHFL.BFLY", "under a condition"),
                ("    DEPBAR.LE SB0, 0x0\n", "    NOP\n", "not waited for"),
                ("    FENCE.VIEW.ASYNC.S\n", "    NOP\n", "not fenced"),
                ("    WARPGROUP.ARRIVE\n", "    NOP\n", "behind WARPGROUP.ARRIVE"),
                ("    MOV R8, R4\n    WARPGROUP.ARRIVE\n", "    WARPGROUP.ARRIVE\n    MOV R8, R4\n",
                 "behind WARPGROUP.ARRIVE"),
                ("DEPBAR.LE gsb0, 0x1", "DEPBAR.LE gsb0, 0x2", "touches products under way"),
                ("DEPBAR.LE gsb0, 0x0", "DEPBAR.LE gsb0, 0x1", "touches products under way"),
                ("FADD R24, R24, R25", "MOV R9, R24", "touches products under way"),
                ("    WARPGROUP.DEPBAR.LE gsb0, 0x0\n    FADD R64, R64, R65\n", "    NOP\n    NOP\n",
                 "ends with products under way")):
            with self.subTest(new):
                self.assertTrue(any(why in line for line in self.changed(old, new)), self.changed(old, new))


if __name__ == "__main__":
    unittest.main()
