"""What a results file says should be done next: for who reads it without having seen the run."""

import re

import shapes

# Where an op of a kernel case, or of nibble-bench-cuda's lines, is written; by the beginning of its name.
SOURCES = [("linear_group", "linear.cu, panels.cu, gemm.cu"), ("linear", "linear.cu, small.cu, gemm.cu, decode.cu"),
           ("decode_weight", "decode.cu"), ("decode", "decode.cu"), ("rmsnorm", "norm.cu"),
           ("attention_decode", "attention_decode.cu"),
           ("attention_forward", "attention_forward.cu (wgmma: attention_hopper_forward.cu)"),
           ("attention_backward", "attention_backward.cu, attention_keys.cu (wgmma: attention_hopper_backward.cu)"),
           ("attention", "attention_*.cu"), ("cross_entropy", "loss.cu"), ("logits", "loss.cu"),
           ("adamw", "optimizer.cu, moments.h"), ("sum_squares", "optimizer.cu"), ("sum squares", "optimizer.cu"),
           ("quantize", "quantize.cu"), ("", "elementwise.cu")]

# What it means that training is right, or the same twice, with this one thing otherwise (shapes.VARIANTS).
MEANS = {
    "our own products": "cuBLASLt's products are at fault, or how they are asked (kernels/cuda/libraries.cu)",
    "without graphs": "recorded micro-batches are: an argument that should come late does not (BeginRecording in "
                      "kernels/cuda/backend_cuda.cc, KernelExecutor::Record)",
    "decoded in every product": "the decoded base that is kept is (WholeStack in kernels/cuda/panels.cu)",
    "attention by wgmma": "the other attention is (kernels/cuda/attention_forward.cu, _backward.cu, _keys.cu)",
    "fp16": "something of bf16 alone is",
    "every launch waited for": "an order between streams is missing, or a kernel reads what another has not "
                               "written yet (WaitForStream, Backend::Wait)",
}

# Of a section that failed: what to do, where its figures do not say more.
FAILED = {
    "machine": "Nothing below can be trusted before the machine is understood.",
    "engine": "The prebuilt engine is at fault or does not suit this machine: a driver below 580 cannot run CUDA 13, a "
              "glibc below 2.35 cannot start it. Build it there (cmake --preset gpu-bundle) or take another machine.",
    "model parity": "If every kernel case below passes, what joins them is at fault: nibble-model-parity --device cuda:0 "
                    "--shape demo --layers 1, with NIBBLE_CUDA_PRODUCTS=own before it, says whether it is the library.",
    "kernels built from source": "The compiler's first error is above; the prebuilt checks ran all the same if the "
                                 "section 'machine' says that they start.",
    "training speed and memory": "See the shapes that failed, below. A figure 'driver over plan' above 0: something "
                                 "allocates inside a step, or the fixed bytes were measured too low (SetUp in "
                                 "kernels/cuda/backend_cuda.cc); below -64 MiB: the plan is too careful. Gradient norms "
                                 "that should be another shape's: an order between lanes (Backend::Wait, Fetch, "
                                 "UpdatePaged) or of decoding ahead, or what a recording should read late.",
    "jobs beside each other": "An engine that fell silent hung, or the machine is slow. Otherwise: what one job leaves behind another finds: run the two alone, twice each; where that is "
                              "equal, look for state in the workspace or in the context between turns.",
    "an 8B model on 15 GB": "fp16's losses or the cap: see the section's figures; 'fp16 training' is the small case.",
    "compute-sanitizer": "Its first report names kernel, thread and address.",
    "PyTorch beside us": "The peer is at fault, not Nibble; its own words are above.",
}


def source_of(name, cpu=False):
    if cpu:
        return "kernels/cpu/body"
    return next(f"kernels/cuda/{where}" for start, where in SOURCES if name.startswith(start))


def of_cases(entry, words, known):
    """Wrong kernel cases: by op, with the command of the first. known: ops that an earlier section named."""
    lines, counts = [], [entry["figures"], *(v for v in entry["figures"].values() if isinstance(v, dict))]
    by_op = {}
    for bad in (case for part in counts for case in part.get("bad", [])):
        by_op.setdefault(bad.split(" ", maxsplit=1)[0].rstrip(":"), []).append(bad)
    passed = sum(part.get("passed", 0) for part in counts)
    again = [f"{op} ({len(cases)})" for op, cases in by_op.items() if op in known]
    if again:
        lines.append(f"{entry['name']}: also wrong here, as above: {', '.join(again)}; {passed} cases are right.")
    for op, cases in by_op.items():
        if op in known:
            continue
        known.add(op)
        case = re.split(r": ?(?:FAILED|nothing came back)|:[^=]*FAILED", cases[0])[0]
        lines.append(f"{entry['name']}: wrong cases of {op}: {len(cases)} ({passed} cases are right). Begin with "
                     f"`{words} '{case}'`; {source_of(op, '--table=cpu' in words)}.")
    return lines


def of_variants(entry):
    """What the variants of a wrong training say."""
    figures = entry["figures"]
    base = figures.get("as it was", {})
    lines = []
    for name, means in MEANS.items():
        row = figures.get(name, {})
        if "failed" in row or not row:
            continue
        if row.get("distance", 1) <= 0.01 < base.get("distance", 1):
            lines.append(f"training: right with '{name}', so {means}.")
        elif row.get("twice the same") and base.get("twice the same") is False:
            lines.append(f"training: the same bits twice with '{name}' alone, so {means}.")
    return lines or ["training: nothing that was tried changes it: an op that all variants share, or the engine. Bisect by "
                     "`nibble-model-parity --layers 1` and the kernel cases nearest to their tolerance."]


def of_speed(sections):
    """Goals of speed that were not met."""
    lines, goals = [], sections.get("goals", {}).get("figures", {})
    speed = sections.get("kernel speed", {}).get("figures", {})
    if speed.get("below their goal"):
        lines.append("kernels below their goal: " + "; ".join(
            f"{line} ({source_of(line)})" for line in speed["below their goal"][:12]) + ". "
            "Arithmetic that they should reach it is in docs/performance.md: see which of its assumptions fails "
            "(nsys or ncu on `nibble-bench-cuda --device 0 'NAME'`).")
    steps = sections.get("training speed and memory", {}).get("figures", {})
    unrecorded = [name for name, row in steps.items() if isinstance(row, dict) and "ops" not in row
                  and row.get("planned_recording_bytes", 0) > row.get("recording_bytes", 0) == 0]
    if unrecorded:
        lines.append(f"not recorded: {', '.join(unrecorded)}: a recording takes more of the device's memory than is planned "
                     "(kRecordedLaunchBytes in engine/spec/plan_places.cc), or cannot be made (EndRecording in "
                     "kernels/cuda/backend_cuda.cc). Op by op the bits are the same, and small models slower.")
    missed = [name for name, row in goals.items() if row["met"] == "NO" and name.endswith("tokens/s")]
    if missed:
        ops = {name: row["ops"] for name, row in steps.items() if isinstance(row, dict) and "ops" in row}
        said = "; ".join(f"{name}: " + ", ".join(f"{op} {what}" for op, what in list(row.items())[:5])
                         for name, row in ops.items())
        lines.append(f"below their goal: {', '.join(missed)}. Where the time goes, by nibble-bench-step --ops 1: "
                     f"{said or 'not measured; run it'}. What the sum of ops lacks to a step's time is the host: compare "
                     "with and without graphs.")
    for name, row in goals.items():
        if row["met"] == "NO" and "cuDNN" in name and "wgmma" not in name:
            lines.append(f"{name} {row['measured']:.2f}: take wgmma by default if its share is above (HasWgmma, "
                         "ChosenAttention in kernels/cuda/cuda.h), once its parity section is ok.")
            break
        if row["met"] == "NO" and name.endswith("GiB"):
            lines.append(f"{name}: {row['measured']:.2f}: the plan promised less (engine/spec/cuda_plan_test.cc has the "
                         "figures); compare planned and allocated bytes of that shape.")
    return lines


def of_clocks(sections):
    """What makes every figure of speed doubtful."""
    figures = sections.get("machine", {}).get("figures", {})
    lines = [f"{figures[key]}." for key in ("busy", "MIG") if key in figures]
    clocks = figures.get("clocks while it worked", {})
    if clocks.get("slowed by"):
        lines.append(f"the device was slowed by {clocks['slowed by']} of {clocks['seconds']} ({clocks['sm, MHz']} MHz): "
                     "shares of limits hold, tokens per second do not compare. The power limit slows every H200 that "
                     "multiplies; anything else does not belong there.")
    return lines


def next_steps(entries):
    """Lines for the head of the results file; the most pressing first."""
    sections = {entry["name"]: entry for entry in entries}
    lines, known = [], {"cpu": set(), "cuda": set()}
    for entry in entries:
        name = entry["name"]
        if entry["state"] == "cut off":
            lines.append(f"{name}: the run ended here. `./dev gpu --after FILE` takes it up.")
        if entry["state"] != "FAILED":
            continue
        broke = []
        if name.startswith("kernel parity") or name.startswith("parity of"):
            words = "nibble-kernel-check --table=" + ("cpu" if "CPU" in name else "cuda --device 0")
            words += " --fp16" if "fp16" in name else ""
            before = shapes.WGMMA if "wgmma" in name else shapes.OWN_PRODUCTS if "own products" in name else ["", ""]
            broke = of_cases(entry, f"{before[1]} {words}".strip(), known["cpu" if "CPU" in name else "cuda"])
        elif name == "what broke":
            broke = [f"{case}: {report.splitlines()[0] if report else 'no report'}: see the section 'what broke'."
                     for case, report in entry["figures"].items()]
        elif name == "what makes the difference":
            broke = of_variants(entry)
        elif ended := re.search(r"(\S+) (?:\S+ ){0,60}(did not end within \d+ s|said nothing for \d+ s)", entry["why"]):
            broke = [f"{name}: {ended[1].rpartition('/')[2]} was ended, as it {ended[2]}: it hangs, or the machine is slow. "
                     "Its whole command is in the section's reason in the JSON below; run it alone."]
        elif name in ("training parity", "rerun and resume"):
            broke = [f"{name}: see 'what makes the difference'."]
        lines += broke or [f"{name}: {FAILED.get(name, 'see its reason in the table.')}"]
    lines += of_speed(sections) + of_clocks(sections)
    left = [entry["name"] for entry in entries if entry["state"] == "skipped" and "no time was left" in entry["why"]]
    left += [f"{name} (a shape)" for name, row in sections.get("training speed and memory", {}).get("figures", {}).items()
             if isinstance(row, dict) and row.get("skipped") == "no time was left"]
    if left:
        lines.append(f"not run for want of time: {', '.join(left)}. `./dev gpu --after FILE` runs these alone.")
    device = sections.get("machine", {}).get("figures", {}).get("device", "")
    if not lines and device.startswith("emulated"):
        return ["nothing went wrong, and no GPU was there: this file shows that the script works, nothing else."]
    return lines or ["nothing went wrong: put this file into docs/results, and its figures in place of what "
                     "docs/results/gpu-pending.md lists."]
