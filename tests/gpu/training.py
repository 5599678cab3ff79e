"""The sections of ./dev gpu that run nibble-engine: does it start, is it right, how fast, how much memory."""

import hashlib
import json
import math
import pathlib
import random
import re
import shutil
import socket
import struct
import subprocess
import time

from runner import Failure, Skip, kill, last_lines
import shapes

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def start_engine(run, figures):
    """Does the prebuilt engine start, and does it see the device?"""
    if run.emulated and not run.options.bin:
        run.engine_missing = "what travels has no emulated engine"
        raise Skip(run.engine_missing)
    suffix = "-emulated" if run.emulated else ""
    folder = pathlib.Path(run.options.bin if run.emulated else run.options.bundle)
    engine, bench, parity = (folder / f"{name}{suffix}"
                             for name in ("nibble-engine", "nibble-bench-step", "nibble-model-parity"))
    if not engine.exists():
        raise Failure(f"{engine} is missing; the sections that need it are skipped")
    run.engine_missing = "the prebuilt engine did not start here"
    figures["version"] = run.command([engine, "version"], 60).strip()
    figures["bytes"] = engine.stat().st_size
    devices = json.loads(run.command([engine, "devices"], 60).strip().splitlines()[-1])
    if not devices["devices"]:
        raise Failure(f"nibble-engine sees no device: {devices['why']}")
    figures["profile"] = json.loads(
        run.command([engine, "profile", "--device", run.device], 120).strip().splitlines()[-1])
    run.engine = engine
    run.bench, run.model_parity = (path if path.exists() else None for path in (bench, parity))


def engine_of(run):
    if run.engine is None:
        raise Skip(run.engine_missing)
    return run.engine


def tiny_base(run):
    """Writes the small model of the dry run; its directory."""
    folder = run.scratch / "base"
    if folder.exists():
        return folder
    folder.mkdir()
    random_numbers = random.Random(1)
    header, data = {}, bytearray()
    for name, shape in shapes.tiny_tensors():
        count = math.prod(shape)
        center, spread = (1.0, 0.0) if len(shape) == 1 else (0.0, 0.1)
        begin = len(data)
        data += struct.pack(f"<{count}f", *(center + random_numbers.uniform(-spread, spread)
                                            for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps(shapes.TINY_CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo/base" / name, folder)
    return folder


def spec_of(run, steps):
    """What the small trainings are trained with."""
    spec = {"lora_r": 16, "sequence_len": 128, "micro_batch_size": 1, "gradient_accumulation_steps": 2,
            "max_steps": steps, "learning_rate": 2e-4, "val_set_size": 0, "save_interval_seconds": 0}
    if run.emulated:
        spec.update(sequence_len=48, gradient_accumulation_steps=1, lora_r=4)
    return spec


def dataset(run):
    """And on what."""
    data = run.scratch / "train.jsonl"
    if not data.exists():
        rows = (ROOT / "demo/data/train.jsonl").read_text().splitlines(keepends=True)[:200]
        if run.emulated:
            rows = [json.dumps({"prompt": f"{i}: ", "completion": "abc"}) + "\n" for i in range(20)]
        data.write_text("".join(rows))
    return data


def base_of(run):
    return tiny_base(run) if run.emulated else run.options.base


def train(run, name, device, steps, extra=(), more=None, cache="cache", before=()):
    """Trains the demo base; rows of (step, loss, grad_norm) and the adapter's bytes. `before`: its environment."""
    out = run.scratch / name
    spec_file = run.scratch / f"{name}.json"
    spec_file.write_text(json.dumps({**spec_of(run, steps), **(more or {})}))
    text = run.command([*before, engine_of(run), "train", "--model-dir", base_of(run), "--cache-dir",
                        run.scratch / cache, "--dataset", dataset(run), "--spec", spec_file, "--out", out,
                        "--device", device, *extra], 60)
    rows = [(int(a), float(b), float(c)) for a, b, c in re.findall(
        r"^step (\d+)/\d+ .*?loss (\S+)  grad_norm (\S+)", text, re.M)]
    adapter = out / "adapter" / "adapter_model.safetensors"
    return rows, adapter.read_bytes() if adapter.exists() else None


def train_on_cpu(run, name, steps, figures, **more):
    """The same on the processor, with what of its kernels works on this machine; rows of the steps."""
    for device in ("cpu", "cpu:avx2", "ref"):
        try:
            rows, _ = train(run, f"{name}-{device.replace(':', '-')}", device, steps, **more)
            return rows
        except Failure as why:
            figures[f"{device} failed"] = str(why)
    raise Failure("the processor's own kernels fail here: " + figures["cpu failed"])


def model_parity(run, figures):
    """Logits, loss and gradients of a whole model beside the reference's, both 16-bit floats."""
    if run.model_parity is None:
        raise Skip(run.engine_missing if run.engine is None else "nibble-model-parity is not there")
    wrong = []
    for floats, device in (("bf16", run.device), ("fp16", run.device + ",fp16")):
        for name, words in shapes.MODEL_PARITY[run.emulated]:
            try:
                text = run.command([run.model_parity, "--device", device, *words], 40)
            except Failure as why:
                wrong.append(f"{floats}, {name}: {why}")
                continue
            row = json.loads(text.strip().splitlines()[-1])
            figures[f"{floats}, {name}"] = row
            for what in ("logits_distance", "gradients_distance"):
                if not (row[what] or 0) <= 0.02 or row[what] is None:
                    wrong.append(f"{floats}, {name}: {what} {row[what]}; 0.02 is allowed")
    if wrong:
        raise Failure("; ".join(wrong))


def training_parity(run, figures):
    """Ten steps of the demo base on the device and on the CPU; each quantizes the base for itself."""
    steps = shapes.PARITY_STEPS[run.emulated]
    theirs = train_on_cpu(run, "parity", steps, figures, cache="cache-cpu")
    run.facts["losses_cpu"] = [row[1] for row in theirs]
    run.facts["training differs"] = True  # until it is known to be right
    ours, _ = train(run, "parity-device", run.device, steps)
    if len(ours) != steps or len(theirs) != steps:
        raise Failure(f"{len(ours)} and {len(theirs)} steps came back, not {steps}")
    figures["losses"] = [row[1] for row in ours]
    figures["losses_cpu"] = [row[1] for row in theirs]
    figures["grad_norms"] = [row[2] for row in ours]
    figures["grad_norms_cpu"] = [row[2] for row in theirs]
    figures["loss_distance"] = max(abs(a[1] / b[1] - 1) for a, b in zip(ours, theirs))
    figures["grad_norm_distance"] = max(abs(a[2] / b[2] - 1) for a, b in zip(ours, theirs))
    mine, cpus = (contents(run.scratch / name) for name in ("cache", "cache-cpu"))
    same = [name for name in mine if name in cpus and mine[name] == cpus[name]]
    figures["quantized_base_equal"] = len(same) == len(mine) == len(cpus) > 0
    if not figures["loss_distance"] <= 0.01:
        # Whose fault is it? The reference knows no vector instructions.
        try:
            judge, _ = train(run, "parity-ref", "ref", steps, cache="cache-ref")
            figures["losses_ref"] = [row[1] for row in judge]
        except (Failure, Skip) as why:
            figures["losses_ref"] = f"none: {why}"
        raise Failure(f"losses differ by {figures['loss_distance']:.3%}; 1 % is allowed")
    if not figures["quantized_base_equal"]:
        raise Failure(f"the base was quantized to other bytes than on the CPU: {sorted(mine)}, {sorted(cpus)}")
    run.facts["training differs"] = False


def contents(folder):
    """Digests of the files of a cache, but for locks, and for sums, which name the file's inode."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.stat().st_size > 0 and path.suffix != ".sum"}


def rerun_and_resume(run, figures):
    """The same bits again, and when cut in the middle."""
    steps = shapes.PARITY_STEPS[run.emulated]
    _, whole = train(run, "whole", run.device, steps)
    _, again = train(run, "again", run.device, steps)
    train(run, "cut", run.device, steps, ["--stop-after", steps // 2])
    _, resumed = train(run, "cut", run.device, steps, ["--resume", "latest"])
    # The decoded base kept or not: the same products, so the same bits.
    kept, ahead, decoded = (train(run, f"cache-{choice}", run.device, steps, more={"base_cache": choice})[1]
                            for choice in ("on", "ahead", "off"))
    run.facts["rerun differs"] = whole is None or whole != again
    figures["rerun_equal"] = whole is not None and whole == again
    figures["resume_equal"] = whole is not None and whole == resumed
    figures["base_cache_equal"] = kept is not None and kept == ahead == decoded
    if not all(figures.values()):
        raise Failure("the adapters are not byte for byte the same")


def neighbours(run, figures):
    """Two jobs in one engine, in turns, beside each of them alone."""
    steps = shapes.PARITY_STEPS[run.emulated]
    alone = [train(run, f"alone-{seed}", run.device, steps, more={"seed": seed})[1] for seed in (1, 2)]
    ours, theirs = socket.socketpair()
    log = run.scratch / "serve.log"
    words = [engine_of(run), "serve", "--fd", theirs.fileno(), "--model-dir", base_of(run), "--cache-dir",
             run.scratch / "cache", "--quant", "nf4", "--double-quant", "true", "--device", run.device,
             "--threads", "2", "--lock", run.scratch / "serve.lock"]
    with log.open("wb") as out:
        process = subprocess.Popen([str(word) for word in words], pass_fds=[theirs.fileno()],
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    theirs.close()
    try:
        turns, ended = serve_two(run, ours, steps)
    except OSError as why:
        raise Failure(f"the engine fell silent ({why})\n{last_lines(log.read_text(errors='replace'))}") from None
    finally:
        ours.close()
        kill(process)
    together = [run.scratch / f"beside-{seed}" / "adapter" / "adapter_model.safetensors" for seed in (1, 2)]
    together = [path.read_bytes() if path.exists() else None for path in together]
    figures["turns_changed_hands"] = sum(a != b for a, b in zip(turns, turns[1:]))
    figures["equal_to_alone"] = [a is not None and a == b for a, b in zip(together, alone)]
    if ended != {"beside-1/1": "finished", "beside-2/1": "finished"}:
        raise Failure(f"the jobs ended as {ended}\n{last_lines(log.read_text(errors='replace'))}")
    if not all(figures["equal_to_alone"]):
        raise Failure("an adapter is not byte for byte that of the job alone")


def serve_two(run, ours, steps):
    """Attaches two jobs that differ by their seed; who stepped, in order, and how each ended."""
    plenty = {name: 1 << 50 for name in ("base_bytes", "persistent_bytes", "step_bytes")}
    for seed in (1, 2):
        spec = {**spec_of(run, steps), "seed": seed}
        line = {"type": "attach", "attempt": f"beside-{seed}/1", "dir": str(run.scratch / f"beside-{seed}"),
                "spec": spec, "dataset": str(dataset(run)), "eval_dataset": "", "resume": "", "numerics_id": "",
                "base_name": "base", "display_name": "", "priority": 0, "planned": plenty}
        (run.scratch / f"beside-{seed}").mkdir(exist_ok=True)
        ours.sendall(json.dumps(line).encode() + b"\n")
    turns, ended, buffer = [], {}, b""
    while len(ended) < 2:
        ours.settimeout(max(1, run.left()))
        chunk = ours.recv(65536)
        if not chunk:
            break
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in map(json.loads, lines):
            if line["type"] == "step":
                turns.append(line["attempt"])
            if line["type"] in ("finished", "failed"):
                ended[line["attempt"]] = line["type"] + (": " + line["message"] if "message" in line else "")
    return turns, ended


def fp16_training(run, figures):
    """Loss scaling: ten steps with fp16 activations."""
    steps = shapes.PARITY_STEPS[run.emulated]
    ours, _ = train(run, "fp16-device", run.device + ",fp16", steps)
    theirs = train_on_cpu(run, "fp16", steps, figures)
    figures["losses"] = [row[1] for row in ours]
    if abs(ours[0][1] / theirs[0][1] - 1) > 0.01:
        raise Failure(f"the first loss is {ours[0][1]}, on the CPU {theirs[0][1]}")


def step_speed(run, figures):
    """Whole training steps at the shapes of known models, random weights; memory beside the driver's."""
    if run.bench is None:
        raise Skip(run.engine_missing if run.engine is None else "nibble-bench-step is not there")
    wrong, slowest_s = [], 0
    earlier = run.earlier.get("training speed and memory", {})
    for name, words, goal in shapes.STEPS[run.emulated]:
        if "tokens_per_second" in earlier.get(name, {}):
            figures[name] = earlier[name]
            continue
        if run.facts.get("wgmma ends") and words[:len(shapes.WGMMA)] == shapes.WGMMA:
            figures[name] = {"skipped": "its parity cases ended in a fault or hung"}
            continue
        if run.left() < 20:
            figures[name] = {"skipped": "no time was left"}
            continue
        began = time.monotonic()
        # What hangs leaves time for others, unless it is the last.
        limit_s = shapes.STEP_LIMIT_S
        if name != shapes.STEPS[run.emulated][-1][0]:
            limit_s = min(limit_s, max(25, run.left() / 3, 1.5 * slowest_s))
        try:
            wrong += one_step_speed(run, figures, name, words, goal, limit_s)
            slowest_s = max(slowest_s, time.monotonic() - began)
        except Failure as why:
            figures[name] = {"failed": str(why)}
            wrong.append(name)
    wrong += other_bits(figures, shapes.SAME_BITS[run.emulated])
    if wrong:
        raise Failure("; ".join(wrong))


def other_bits(figures, pairs):
    """Of shapes that should train with the same bits those that do not."""
    wrong = []
    for names in pairs:
        one, other = ((figures.get(name) or {}).get("grad_norms", []) for name in names)
        steps = min(len(one), len(other))
        if one[:steps] != other[:steps]:
            wrong.append(f"{names[1]}: gradient norms {other[:steps]} are not those of '{names[0]}', {one[:steps]}")
    return wrong


def one_step_speed(run, figures, name, words, goal, limit_s):
    """One shape of step_speed, in limit_s; what is wrong with it."""
    before = shapes.WGMMA if words[:len(shapes.WGMMA)] == shapes.WGMMA else []
    words = words[len(before):]
    told = "products" not in figures and not run.emulated  # once: what cuBLASLt takes for which shape
    text = run.command([*(before or (shapes.TOLD_PRODUCTS if told else [])), run.bench, "--device", run.device,
                        *words], limit_s)
    *said, line = text.strip().splitlines()
    if told:
        figures["products"] = [line for line in said if line.startswith(("cublasLt", "libcublasLt"))]
    row = json.loads(line)
    entry = {key: row[key] for key in ("tokens_per_second", "grad_norms", "planned_device_bytes",
                                       "driver_bytes", "allocated_bytes", "fixed_bytes", "step_seconds", "body",
                                       "planned_recording_bytes", "recording_bytes")}
    entry["goal"] = goal
    entry["loss"] = row["losses"][-1]
    # What is planned for recordings is a bound; nobody knows before what they take.
    over = (row["driver_bytes"] - row["recording_bytes"]) - (row["planned_device_bytes"]
                                                             - row["planned_recording_bytes"])
    entry["driver_over_plan_bytes"] = over
    if "ops" in row:
        entry["ops"] = time_of_ops(row["ops"])
    figures[name] = entry
    print(f"   {name}: {row['tokens_per_second']:.0f} tokens/s", flush=True)
    wrong = []
    if entry["loss"] is None or not math.isfinite(entry["loss"]):
        wrong.append(f"{name}: the loss is {entry['loss']}")
    if over > 0 or -over > 64 << 20:
        wrong.append(f"{name}: the driver reads {over:+} bytes against the plan")
    return wrong


def time_of_ops(ops):
    """Of each kind of op its share of them all, calls and time; the longest first."""
    every_us = sum(op["us"] for op in ops.values()) or 1
    return {name: f"{op['us'] / every_us:.1%} {op['calls']}x {op['us'] / op['calls'] / 1000:.3f} ms"
            for name, op in sorted(ops.items(), key=lambda item: -item[1]["us"])}


def small_card(run, figures):
    """The 8B model on a 15 GB card: 200 examples, one epoch, fp16, memory capped by the plan."""
    if run.bench is None:
        raise Skip(run.engine_missing if run.engine is None else "nibble-bench-step is not there")
    if run.left() < 60 and not run.emulated:
        raise Skip("too little time was left for 200 examples")
    cap = shapes.SMALL_CARD_BYTES[run.emulated]
    line = run.command([run.bench, "--device", run.device, *shapes.SMALL_CARD[run.emulated], "--capacity", cap],
                       240).strip().splitlines()[-1]
    row = json.loads(line)
    for key in ("tokens_per_second", "recompute", "planned_device_bytes", "planned_pinned_bytes", "driver_bytes",
                "updates"):
        figures[key] = row[key]
    figures["cap_bytes"] = cap
    figures["seconds"] = sum(row["step_seconds"])
    figures["first_loss"], figures["last_loss"] = row["losses"][0], row["losses"][-1]
    if max(row["planned_device_bytes"], row["driver_bytes"]) > cap:
        raise Failure(f"planned {row['planned_device_bytes']}, the driver reads {row['driver_bytes']}; cap {cap}")
    if not all(math.isfinite(loss) for loss in row["losses"]):
        raise Failure("a loss is not finite")
    # Finding the loss scale may cost the first few steps.
    if row["updates"] < len(row["losses"]) * 3 // 4 and not run.emulated:
        raise Failure(f"{row['updates']} updates in {len(row['losses'])} steps")
