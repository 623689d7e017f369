"""How long restoring takes, beside copying the checkpoint and beside the authors' script.

    python benchmarks/restore.py --folder SCRATCH [--authors CLONE] [--runs 3] [--times 1] [--also-four] [--cold]

Builds a pair of its own in SCRATCH (about 1.3 GB each at ``--times 1``, and as much again for an output), a Llama of
hidden size 2048, feed-forward 8192, 8 x ``times`` layers, 32 heads, 8 key-value heads, vocabulary 32000, untied,
bfloat16, with 60% of each matrix moved by N(0, 1e-4). CLONE is a clone of github.com/UmeanNever/ParamRestore, the
tool of the paper's authors; it is only run, never imported here. Every contender is a process of its own, timed from
its start to its end, one after the other in each round. Prints medians, ratios, processor seconds and peak resident
memory. ``--cold`` drops both checkpoints from the system's cache before each command and waits five seconds, in which
a virtual machine gives freed memory back: then every contender reads from the disk and fetches its memory anew. Without
``--cold`` the cache is as the previous command left it, and a copy right after a deleted output needs neither.
``--idle`` waits (at most so many seconds before each command) until nothing else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HIDDEN, FEED_FORWARD, HEADS, KEY_VALUE, VOCABULARY, LAYERS = 2048, 8192, 32, 8, 32000, 8
FRACTIONS = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)

KNOWSHIFT = "from knowshift.cli.app import main; main()"
#: fire is only the authors' command line; their function is called as it would be.
AUTHORS = """
import sys, types
sys.modules.setdefault("fire", types.ModuleType("fire"))
sys.path.insert(0, sys.argv[1])
import param_restore
param_restore.run(target_model_path=sys.argv[3], original_model_path=sys.argv[2], output_path=sys.argv[4],
                  k_percent=float(sys.argv[5]), verbose=False)
"""
SWEEP = """
import atexit, gc, sys, time
gc.disable()  # what is imported is no garbage
atexit.register(gc.freeze)
from pathlib import Path
from transformers import AutoModelForCausalLM
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.parameters.restore import RestorationSweep
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype="auto")
start = time.perf_counter()
base, tuned = StoredTensors(Path(sys.argv[1])), StoredTensors(Path(sys.argv[2]))
for fraction, count in RestorationSweep(model, base, tuned=tuned).run():
    pass
print(f"of which the sweep itself {time.perf_counter() - start:.2f} s", file=sys.stderr)
"""
AGREEMENT = """
import json, sys
from pathlib import Path
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.parameters.selection.criteria import authors
from knowshift.parameters.tensors import number_of
base, tuned, ours, theirs = (StoredTensors(Path(folder)) for folder in sys.argv[1:])
made = json.loads((ours.folder / "knowshift.json").read_text())
differing = tied = 0
for name, shape in ours.shapes.items():
    one, other = (side.read(name, 0, number_of(shape)) for side in (ours, theirs))
    apart = one != other
    score = authors(base.read(name, 0, number_of(shape))[apart], tuned.read(name, 0, number_of(shape))[apart])
    differing += len(score)
    tied += int((score == made["threshold"]).sum())
print(f"{made['restored']} weights restored by each; {differing} weights of the outputs differ, "
      f"{tied} of them at the threshold's own score {made['threshold']:.6g}")
"""


@dataclass
class Contender:
    """One command; its seconds, processor seconds and peak memory in MB, a value for each round."""

    name: str
    command: Callable[[], list[str]]
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)

    def run(self, environment: dict[str, str], cold: Sequence[Path] = ()) -> None:
        command = self.command()
        if cold:
            forget(*cold)
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{self.name} failed:\n{errors}")
        self.seconds.append(time.perf_counter() - start)
        self.processor.append(usage.ru_utime + usage.ru_stime)
        self.peak.append(usage.ru_maxrss / 1024)  # a child starts at its parent's: this file does not import torch


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file."""
    yield "lm_head.weight", (VOCABULARY, HIDDEN)
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    narrow = HIDDEN // HEADS * KEY_VALUE
    for layer in sorted(range(layers), key=str):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        yield prefix + "mlp.down_proj.weight", (HIDDEN, FEED_FORWARD)
        yield prefix + "mlp.gate_proj.weight", (FEED_FORWARD, HIDDEN)
        yield prefix + "mlp.up_proj.weight", (FEED_FORWARD, HIDDEN)
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,)
        yield prefix + "self_attn.k_proj.weight", (narrow, HIDDEN)
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield prefix + "self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield prefix + "self_attn.v_proj.weight", (narrow, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)


def build_pair(folder: Path, layers: int) -> tuple[Path, Path]:
    """Write the pair in a separate process, unless it is there."""
    base, tuned = folder / f"base-{layers}", folder / f"tuned-{layers}"
    if not (tuned / "complete").is_file():
        subprocess.run([sys.executable, __file__, "--folder", folder, "--build", str(layers)], check=True)
    return base, tuned


def write_pair(base: Path, tuned: Path, layers: int) -> None:
    """Write the pair, tensor by tensor."""
    import torch

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes(layers):
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    for place in (base, tuned):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(config, indent=1))
    generator = torch.Generator().manual_seed(0)
    with (base / "model.safetensors").open("wb") as before, (tuned / "model.safetensors").open("wb") as after:
        for file in (before, after):
            file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in shapes(layers):
            if len(shape) == 1:
                weights = moved = torch.ones(shape, dtype=torch.bfloat16)
            else:
                weights = (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
                change = torch.randn(shape, generator=generator) * 1e-4
                change *= torch.rand(shape, generator=generator) < 0.6
                moved = (weights.float() + change).to(torch.bfloat16)
            before.write(weights.view(torch.uint8).numpy().data)
            after.write(moved.view(torch.uint8).numpy().data)
    (tuned / "complete").touch()


def wait_for_idle(seconds: float) -> None:
    """Wait until, for three seconds on end, no process but this one runs; give up after ``seconds``."""
    end, quiet = time.monotonic() + seconds, 0
    while quiet < 12 and time.monotonic() < end:
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
        quiet = quiet + 1 if running <= 1 else 0
        time.sleep(0.25)


def forget(*folders: Path) -> None:
    """Drop the weights of some checkpoints from the system's cache, and wait until freed memory is given back."""
    for path in (path for folder in folders for path in folder.glob("*.safetensors")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # only what is on the disk can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    time.sleep(5)


def contenders(base: Path, tuned: Path, scratch: Path, authors: Path | None) -> list[Contender]:
    """Everything that is timed, in the order of a round."""
    python, out = sys.executable, scratch / "out"

    def fresh(*command: str | Path) -> Callable[[], list[str]]:
        def prepare() -> list[str]:
            shutil.rmtree(out, ignore_errors=True)
            return [str(part) for part in command]

        return prepare

    def ours(*arguments: str | Path) -> Callable[[], list[str]]:
        return fresh(python, "-c", KNOWSHIFT, *arguments)

    found = [Contender("cp -r", fresh("cp", "-r", tuned, out))]
    for fraction in ("0.01", "0.2"):
        found.append(
            Contender(
                f"knowshift restore {fraction}",
                ours("restore", base, tuned, "--fraction", fraction, "--output-dir", out),
            )
        )
    found.append(Contender("knowshift, seven fractions in memory", fresh(python, "-c", SWEEP, base, tuned)))
    found.append(Contender("knowshift weights", ours("weights", base, tuned)))
    if authors is not None:
        for percent in ("1", "20"):
            command = fresh(python, "-c", AUTHORS, authors, base, tuned, out, percent)
            found.append(Contender(f"authors' script {percent}%", command))
    return found


def agreement(base: Path, tuned: Path, scratch: Path, authors: Path) -> None:
    """Restore 1% by the authors' rule with both tools, and print where the two checkpoints differ."""
    ours, theirs = scratch / "ours", scratch / "theirs"
    for folder in (ours, theirs):
        shutil.rmtree(folder, ignore_errors=True)
    for code, arguments in (
        (KNOWSHIFT, ("restore", base, tuned, "--criterion", "authors", "--fraction", "0.01", "--output-dir", ours)),
        (AUTHORS, (authors, base, tuned, theirs, "1")),
        (AGREEMENT, (base, tuned, ours, theirs)),
    ):
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, stderr=subprocess.DEVNULL)
    for folder in (ours, theirs):
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder on the disk to be measured")
    parser.add_argument("--authors", type=Path, help="clone of github.com/UmeanNever/ParamRestore")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--times", type=int, default=1, help="size of the pair, in multiples of 8 layers")
    parser.add_argument("--also-four", action="store_true", help="restore a pair four times the size, once a round")
    parser.add_argument("--agreement", action="store_true", help="only compare what the authors' rule selects in both")
    parser.add_argument("--cold", action="store_true", help="read from the disk, not from the system's cache")
    parser.add_argument("--only", action="append", help="only contenders whose name contains this; may be repeated")
    parser.add_argument("--idle", type=float, default=0, help="wait at most so many seconds for an idle machine")
    parser.add_argument("--build", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.build:
        write_pair(options.folder / f"base-{options.build}", options.folder / f"tuned-{options.build}", options.build)
        return
    base, tuned = build_pair(options.folder, LAYERS * options.times)
    if options.agreement:
        if options.authors is None:
            parser.error("--agreement needs --authors")
        agreement(base, tuned, options.folder, options.authors)
        return
    found = contenders(base, tuned, options.folder, options.authors)
    pairs = [base, tuned]
    if options.also_four:
        large = build_pair(options.folder, 4 * LAYERS * options.times)
        pairs += large
        for one in contenders(*large, options.folder, None)[:3]:
            one.name += ", four times the size"
            found.append(one)
    if options.only:
        found = [one for one in found if any(part in one.name for part in options.only)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    for round_ in range(options.runs):
        for one in found:
            wait_for_idle(options.idle)
            one.run(environment, pairs if options.cold else ())
            load = os.getloadavg()[0]
            print(
                f"round {round_ + 1}: {one.name}: {one.seconds[-1]:.2f} s ({one.processor[-1]:.2f} of processor), "
                f"{one.peak[-1]:.0f} MB, load {load:.1f}",
                file=sys.stderr,
            )
    shutil.rmtree(options.folder / "out", ignore_errors=True)
    print_table(found)


def print_table(found: list[Contender]) -> None:
    """Medians and ratios, as Markdown."""
    median = {one.name: statistics.median(one.seconds) for one in found}
    copy, script = median.get("cp -r"), median.get("authors' script 1%")
    print("| | median s | all s | processor s | peak MB | x cp -r | authors' script at 1% takes x |")
    print("|---|---|---|---|---|---|---|")
    for one in found:
        mine = median[one.name]
        compared = copy if "four" not in one.name else median.get("cp -r, four times the size")
        runs = " ".join(f"{seconds:.2f}" for seconds in one.seconds)
        processor = statistics.median(one.processor)
        over_copy = f"{mine / compared:.2f}" if compared else ""
        over_script = f"{script / mine:.1f}" if script and "four" not in one.name else ""
        print(
            f"| {one.name} | {mine:.2f} | {runs} | {processor:.2f} | {max(one.peak):.0f} | {over_copy} "
            f"| {over_script} |"
        )
    sweep = median.get("knowshift, seven fractions in memory")
    both = [median[name] for name in ("authors' script 1%", "authors' script 20%") if name in median]
    if sweep and both:
        print(
            f"\nSeven runs of the authors' script, at the mean of 1% and 20%: {7 * statistics.mean(both):.0f} s, ",
            end="",
        )
        print(f"{7 * statistics.mean(both) / sweep:.0f} times the seven fractions in memory.")


if __name__ == "__main__":
    main()
