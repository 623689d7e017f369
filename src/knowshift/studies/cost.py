"""What a study costs, before it runs: token positions, time, disk and memory, from its plan and its model's shape.

Time is the number of operations divided by a rate. The numbers below are measured (docs/mastery.md, docs/weights.md,
docs/study.md) except where they say "assumed". The same estimate weighs the units of a running study, so that its
progress tells the time left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from knowshift.facts.fact import LEVELS
from knowshift.studies.config import StudyConfig
from knowshift.studies.memory import BYTES, EXAMPLE, Memory, memory_of, on_cpu
from knowshift.studies.plan import Cell, Plan, training_of
from knowshift.studies.shape import Shape

#: Token positions of one fact at the paper's 10 draws of 21 prompts and 32 tokens, by estimate: of the shipped model,
#: whose texts are short, and of SmolLM2-135M on EntityQuestions (docs/mastery.md).
WORLD_POSITIONS = {"hits": 371, "expected": 206}
REAL_POSITIONS = {"hits": 6145, "expected": 1086}
#: Of those of a world by expected hits, the positions of its prompts: all others are of texts, of which a larger least
#: weight leaves about its inverse.
WORLD_PROMPTS = 104
#: Tokens, mean of EntityQuestions under SmolLM2's tokenizer: of the fine-tuning prompt. With a shared prefix: of an
#: example of the shipped world (144 tokens a step of 8).
PROMPT, SHARED_EXAMPLE = 20, 18
#: Tokens of an answer at most; assumed for all answers, since untuned and restored models often go on to the end.
ANSWER = 16
#: Tokens that a position has before it, for the operations of attention; assumed.
CONTEXT = 32
#: Of the facts asked, those of level 4, whose first token is compared; and of a training set of a whole level. Assumed.
SHARE_OF_LEVEL = 1 / 5
#: Processor seconds for one weight: compared with the base, and put back at all fractions of one criterion
#: (docs/weights.md: 20.2 s and 6.4 s for 486 million).
COMPARED, RESTORED = 20.2 / 486e6, 6.4 / 486e6

#: Items of another task, and token positions of one: of a task of lm-eval as GSM8K with its five examples, assumed; of
#: those that a world has of its own, in the shipped one.
TASK = (1_319, 1_000)
TASKS_OWN = {"text_loss": (1_180, 14), "completion": (189, 20)}

#: Operations a second of one CPU core: 480 token positions a second of SmolLM2-135M on two cores (docs/mastery.md).
CORE = 65e9
#: Seconds of a step of AdamW for one float32 weight on a CPU (docs/study.md: 0.228 s for 134.5 million).
ADAM = 0.228 / 134.5e6
#: Peak operations a second of an 80 GB GPU (NVIDIA H100 SXM, data sheet, without sparsity), and the assumed share.
GPU_PEAK = {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12}
GPU_SHARE = 0.3
#: Bytes a second of its memory (the same sheet), of which half is assumed; AdamW reads four and writes three values.
GPU_BANDWIDTH = 3.35e12 / 2

#: Bytes on disk of a row of a mastery and of an answer record, of files of 796 rows (docs/study.md).
MASTERY_ROW, ANSWER_ROW = 167, 35


@dataclass(frozen=True)
class Estimate:
    """What a study, or what is left of it, takes by this model."""

    positions: int  # of mastery
    steps: int  # of training
    answers: int
    seconds: dict[str, float] = field(repr=False)  # of one worker, by kind of cell
    disk: int  # bytes of the run folder
    memory: Memory
    device: str
    threads: int

    @property
    def hours(self) -> float:
        """Hours of one worker: GPU-hours, or hours of ``threads`` CPU cores."""
        return sum(self.seconds.values()) / 3600

    @property
    def on_gpu(self) -> bool:
        return self.device.split(":")[0] != "cpu"

    def as_record(self) -> dict[str, Any]:
        """As ``knowshift study --dry-run --json`` prints it."""
        on_gpu = self.on_gpu
        return {
            "mastery_positions": self.positions,
            "training_steps": self.steps,
            "answers": self.answers,
            "gpu_hours" if on_gpu else "core_hours": round(self.hours * (1 if on_gpu else self.threads), 3),
            "hours": {kind: round(seconds / 3600, 4) for kind, seconds in self.seconds.items()},
            "disk_bytes": self.disk,
            "memory_bytes": {"mastery": self.memory.mastery, "training": self.memory.training},
            "models_held": self.memory.way,
            "devices": self.memory.shards,
            "gpus_of_80_gb": self.memory.gpus,
        }


@dataclass(frozen=True)
class CostModel:
    """Costs of the cells of ``plan``, with a model of so many weights; without a shape, two operations a weight."""

    config: StudyConfig
    plan: Plan
    weights: int
    shape: Shape | None = None

    @cached_property
    def _position(self) -> float:
        """Seconds of a token position in a forward pass."""
        flops = 2 * self.weights if self.shape is None else self.shape.flops(CONTEXT)
        return flops / self._rate(self.config.dtype)

    @property
    def _step(self) -> float:
        """Seconds of a step of the optimiser, beside its passes through the model."""
        if on_cpu(self.config):
            return self.weights * ADAM
        return self.weights * 7 * BYTES[self.config.dtype] / GPU_BANDWIDTH

    def _rate(self, dtype: str) -> float:
        if on_cpu(self.config):
            return CORE * self.config.threads
        return GPU_SHARE * GPU_PEAK["bfloat16" if dtype == "auto" else dtype]

    @cached_property
    def asked(self) -> int:
        """Test facts that every model answers, at most."""
        asked = self.config.evaluation
        levels = LEVELS if asked.levels is None else len(set(asked.levels))
        most = asked.facts_per_level
        return self.plan.test if most is None else min(self.plan.test, 2 * levels * most)

    @property
    def positions_of_fact(self) -> float:
        """Token positions that the mastery of one fact takes; a rule that stops early takes fewer."""
        mastery = self.config.mastery
        texts = mastery.draws_per_prompt / 10 if mastery.estimate == "hits" else (mastery.texts or 2) / 2
        if self.config.facts.startswith("world:"):
            positions = texts * WORLD_POSITIONS[mastery.estimate]
            if mastery.estimate == "hits" or mastery.least_weight is None:
                return positions
            return WORLD_PROMPTS + (positions - WORLD_PROMPTS) / max(1.0, mastery.least_weight)
        return texts * REAL_POSITIONS[mastery.estimate] * mastery.max_new_tokens / 32

    def size_of(self, cell: Cell) -> int:
        """Facts of a cell's training set; where mastery has not told them yet, a fifth of the facts probed."""
        size = cell.coordinates["size"]
        return round(self.plan.train * SHARE_OF_LEVEL) if size is None else int(size)

    def steps(self, cell: Cell) -> int:
        batch = training_of(cell, "batch_size")
        return self._epochs(cell) * -(-self.size_of(cell) // int(batch))

    def _epochs(self, cell: Cell) -> int:
        return int(training_of(cell, "epochs"))

    def answers(self, cell: Cell) -> int:
        """Answers that a cell asks for."""
        restoration = self.config.restoration
        if cell.kind == "train_set":
            trained = min(self.size_of(cell), restoration.train_set_facts or self.size_of(cell))
            return trained * (1 + 2 * len(restoration.train_set_fractions))  # by the paper's criterion, and at random
        if cell.kind in ("learned", "learned_own"):
            return min(self.size_of(cell), self.config.bench.train_facts)
        if cell.kind == "layer_groups":
            layers = self.shape.layers if self.shape is not None else 0
            # In-domain, half of the facts; and once with weights at random.
            return self.asked // 2 * (1 + -(-layers // restoration.layer_group))
        times = {
            "base": 3,
            "instruct": 4,
            "evaluation": 1,
            "restoration": len(restoration.fractions) * len(restoration.criteria),
        }
        return self.asked * times.get(cell.kind, 0)

    def task_positions(self, cell: Cell) -> int:
        """Token positions that a cell's other tasks take: items by name, times the models asked."""
        restoration, world = self.config.restoration, self.config.facts.startswith("world:")
        times = {"base_tasks": 1, "tasks": 1 + len(restoration.fractions) * len(restoration.criteria)}
        positions = 0
        for name in restoration.tasks if cell.kind in times else ():
            items, tokens = TASKS_OWN.get(name, TASK) if world else TASK
            positions += min(items, restoration.tasks_limit or items) * tokens
        return positions * times.get(cell.kind, 0)

    def seconds(self, cell: Cell) -> float:
        """Seconds that a cell takes one worker, without loading a model."""
        config, threads = self.config, self.config.threads
        answering = self.answers(cell) * (PROMPT + ANSWER) * self._position
        if cell.kind == "mastery":
            if config.mastery.servers:
                return 0.0  # of this machine
            slower = self._rate(config.dtype) / self._rate(config.mastery.dtype or config.dtype)
            return float(cell.inputs["probed"]["count"]) * self.positions_of_fact * self._position * slower
        if cell.kind == "tuned":
            tokens = self._epochs(cell) * self.size_of(cell)
            tokens *= SHARED_EXAMPLE if config.training.shared_prefix else EXAMPLE
            passes = 4 if config.training.gradient_checkpointing else 3  # the backward pass is two forward ones
            slower = self._rate(config.dtype) / self._rate("bfloat16" if config.training.bfloat16 else config.dtype)
            return tokens * passes * self._position * slower + self.steps(cell) * self._step
        if cell.kind == "token_shift":
            return 2 * self.asked * SHARE_OF_LEVEL * PROMPT * self._position
        if cell.kind == "learned":
            texts = TASKS_OWN["text_loss"][1] * config.bench.texts  # where there are texts
            return answering + (config.bench.train_facts * PROMPT + texts) * self._position
        if cell.kind == "weight_change":
            return self.weights * COMPARED / threads
        if cell.kind == "base_tasks":
            return self.task_positions(cell) * self._position
        if cell.kind in ("restoration", "train_set", "tasks"):
            answering += self.task_positions(cell) * self._position
            ranked = 2 if cell.kind == "train_set" else len(config.restoration.criteria)
            return answering + ranked * self.weights * RESTORED / threads
        return answering

    def estimate(self, cells: Iterable[Cell]) -> Estimate:
        """What these cells take; disk is that of the whole run."""
        seconds: Counter[str] = Counter()
        probed = steps = answers = 0
        for cell in cells:
            seconds[cell.kind] += self.seconds(cell)  # type: ignore[assignment]
            probed += cell.inputs["probed"]["count"] if cell.kind == "mastery" else 0
            steps += self.steps(cell) if cell.kind == "tuned" else 0
            answers += self.answers(cell)
        kept = sum(cell.kind == "tuned" for cell in self.plan.cells) if self.config.keep_checkpoints else 0
        disk = kept * self.weights * BYTES[self.config.dtype]
        disk += (self.plan.train + self.plan.test) * MASTERY_ROW + sum(map(self.answers, self.plan.cells)) * ANSWER_ROW
        return Estimate(
            round(probed * self.positions_of_fact),
            steps,
            answers,
            {kind: float(value) for kind, value in seconds.items()},
            disk,
            memory_of(self.config, self.weights, self.shape),
            self.config.device,
            self.config.threads,
        )

    @property
    def assumed(self) -> list[str]:
        """What the estimate takes for granted, one line each."""
        mastery = self.config.mastery
        world = self.config.facts.startswith("world:")
        source = "the shipped model" if world else "SmolLM2-135M on EntityQuestions"
        known = "by its least weight from what was measured on" if world and mastery.least_weight else "measured on"
        lines = [
            f"mastery: {self.positions_of_fact:,.0f} token positions a fact ({mastery.estimate}, {known} {source})",
            f"{EXAMPLE} tokens an example, {PROMPT} a question, {ANSWER} an answer, {CONTEXT} before a position",
        ]
        if on_cpu(self.config):
            lines.append(f"a CPU core does {CORE / 1e9:.0f} billion operations a second (measured in float32)")
        else:
            lines.append(
                f"a GPU of 80 GB does {GPU_SHARE:.0%} of its peak: {GPU_PEAK['float32'] / 1e12:.0f} trillion "
                f"operations a second in float32, {GPU_PEAK['bfloat16'] / 1e12:.0f} in bfloat16 (not measured)"
            )
        if "all" in self.config.sizes:
            lines.append(f"a level holds a fifth of the {self.plan.train:,} training facts probed, until mastery tells")
        if any(name not in TASKS_OWN or not world for name in self.config.restoration.tasks):
            lines.append(f"{TASK[0]:,} items of {TASK[1]:,} token positions in a task of lm-eval, as of GSM8K")
        if mastery.servers:
            lines.append("mastery: the servers' time is not known and not counted")
        if mastery.stopping != "full":
            lines.append(f"mastery makes every draw; {mastery.stopping} makes fewer")
        if self.shape is None:
            lines.append("memory without activations: the model's configuration does not tell its shape")
        return lines
