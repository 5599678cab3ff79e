"""The metrics Nibble exports, as server/metrics_table.h lists them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
