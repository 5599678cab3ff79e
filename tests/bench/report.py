#!/usr/bin/env python3
"""One table and one picture of what the CPU benchmarks measured.

    report.py [--svg FILE] < LINES

Each line of input is the JSON of nibble-bench-kernels, nibble-bench-step, nibble-bench-generate or
peer_decode.py. A row: kernel, shape, figure, limit, share; and where there is a peer, its figure and the
ratio.
"""

import argparse
import datetime
import html
import json
import pathlib
import platform
import sys

UNITS = {"products": "multiply-adds", "copy": "copying memory", "read": "reading memory",
         "store": "storing into L2"}


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def rows_of(lines):
    """(kernel, shape, figure, limit, share, peer, ratio), texts but for share."""
    rows, peers = [], {}
    items = [json.loads(line) for line in lines if line.startswith("{")]
    for item in items:
        if "peer_decode" in item:
            peers[item["peer_decode"]] = item["gb_per_second"]
    for item in items:
        if "kernel" in item:
            # The peer decodes NF4; lines of other formats name theirs between model and shape.
            words = item["shape"].split()
            nf4 = item["kernel"].startswith("decode") and len(words) == 2
            peer = peers.get(words[-1]) if nf4 else None
            rows.append((item["kernel"], item["shape"], f"{item['figure']:.1f} {item['unit']}",
                         f"{item['limit']:.1f} {UNITS[item['limit_name']]}", item["share"],
                         f"{peer:.1f} GB/s" if peer else "", f"{item['figure'] / peer:.1f}x" if peer else ""))
        elif "share_of_probe" in item:
            rows.append(("step", f"{item['shape']} seq {item['sequence_len']} x {item['micro_batch_size']} "
                         f"{item['recompute']} {item['threads']} threads",
                         f"{item['tokens_per_second']:.0f} tokens/s",
                         f"{item['probe_gflops']:.0f} GF/s {UNITS['products']}", item["share_of_probe"], "", ""))
        elif "bytes_per_token" in item:
            rows.append(("generation", f"{item['shape']} length {item['length']} {item['threads']} threads",
                         f"{item['tokens_per_second']:.1f} tokens/s",
                         f"{item['read_bytes_per_second'] * 1e-9:.1f} GB/s {UNITS['read']}", item["share"], "",
                         ""))
    return items, rows


def print_table(rows):
    table = [("kernel", "shape", "figure", "limit", "share", "peer", "ratio")]
    table += [(*row[:4], f"{100 * row[4]:.0f}%", *row[5:]) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(7)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def write_svg(rows, title, path):
    """Horizontal bars of the shares, 100 % marked."""
    height, left, width, top = 17, 330, 480, 66
    most = max(1.2, min(2.0, max(row[4] for row in rows)))
    x = lambda share: left + width * min(share, most) / most
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 190}" '
           f'height="{top + height * len(rows) + 20}" font-family="sans-serif" font-size="11">',
           '<rect width="100%" height="100%" fill="white"/>',
           '<text x="12" y="22" font-size="14" font-weight="bold">Share of the limit of this machine</text>',
           f'<text x="12" y="40" fill="#555">{html.escape(title)}</text>']
    # White around what may lie on the line of 100 %.
    halo = 'paint-order="stroke" stroke="white" stroke-width="4"'
    for percent in (25, 50, 75, 100):
        at = x(percent / 100)
        out.append(f'<line x1="{at:.0f}" x2="{at:.0f}" y1="{top - 4}" y2="{top + height * len(rows)}" '
                   f'stroke="{"#b00" if percent == 100 else "#ddd"}"/>'
                   f'<text x="{at:.0f}" y="{top - 7}" text-anchor="middle" fill="#555">{percent} %</text>')
    for i, (kernel, shape, figure, _, share, _, ratio) in enumerate(rows):
        y = top + i * height
        out.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{html.escape(kernel)} '
                   f'<tspan fill="#777">{html.escape(shape)}</tspan></text>'
                   f'<rect x="{left}" y="{y + 2}" width="{x(share) - left:.1f}" height="{height - 5}" '
                   f'fill="#3b78b8"/><text x="{x(share) + 6:.1f}" y="{y + 12}" {halo}>{100 * share:.0f} % '
                   f'<tspan fill="#777">{html.escape(figure)}{", " + ratio + " the peer" if ratio else ""}'
                   f"{', more than is drawn' if share > most else ''}</tspan></text>")
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--svg", type=pathlib.Path)
    options = parser.parse_args()
    items, rows = rows_of(sys.stdin)
    bodies = sorted({item["body"] for item in items if "body" in item})
    title = f"{datetime.date.today()}, {processor()}, body {', '.join(bodies)}"
    versions = [item["versions"] for item in items if "versions" in item]
    if versions:
        title += f", peer {versions[0]}"
    print(title)
    print_table(rows)
    if options.svg and rows:
        write_svg(rows, title, options.svg)
        print(f"picture: {options.svg}")


if __name__ == "__main__":
    main()
