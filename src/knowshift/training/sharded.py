"""Supervised fine-tuning of a model that does not fit one device: its weights are divided among processes (FSDP2).

Torchrun starts one process for each device, unless they are there (:func:`finetune_together`); :func:`finetune`
writes what they need into a temporary folder, and they leave the tuned weights there. Weights, gradients and Adam's
moments are divided by ``fully_shard``; layers are whole only while they are computed. Everything else is as in
:func:`knowshift.training.sft.finetune`, whose losses and weights these are up to rounding: the same batches in the
same order, each divided among the processes, and the loss over all target tokens of the whole batch, not of each part
of it.

The loop is plain because the Trainer's own one differs in two ways: it repeats facts where the last batch does not
divide, and it shards on accelerators alone, so that no test on processors could compare it.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel, TrainerState, get_scheduler

from knowshift.errors import InputError, border
from knowshift.facts.fact import Fact
from knowshift.files import read_json, write_json
from knowshift.models.finding import ModelFiles
from knowshift.models.loading import LoadedModel, load_found, prepared
from knowshift.parameters.files.checkpoint import SINGLE, StoredTensors
from knowshift.parameters.loaded import as_tensor, parameters_of
from knowshift.system import group
from knowshift.system.patches import attention_of
from knowshift.training.guard import BETAS, TrainingGuard
from knowshift.training.one_row import IGNORED, OneRow
from knowshift.training.strategy import PLAIN, Strategy

#: The largest norm of the gradients, as the Trainer clips them.
MAX_NORM = 1.0

Example = Mapping[str, Sequence[int]]


def finetune(
    loaded: LoadedModel, files: ModelFiles, facts: Sequence[Fact], recipe: Any, *, seed: int, shards: int
) -> dict[str, Any]:
    """Fine-tune ``loaded.model`` in place by so many processes, which each read it from ``files`` again.

    It leaves its device meanwhile. On ``cuda`` the processes take the GPUs 0 to ``shards`` - 1 that this one sees. The
    folder for temporary files needs room for the weights.

    Args:
        recipe: a :class:`knowshift.training.sft.TrainingRecipe` without weight decay and ``report_to``.

    Returns:
        As :func:`knowshift.training.sft.finetune`, and ``shards``.

    Raises:
        InputError: as there, and where a process ends early: it was killed, or had not enough memory.
    """
    from knowshift.training.sft import examples_of  # TRL takes seconds to import, and the processes do without

    assert recipe.weight_decay == 0, "parameters without decay are not set apart here"
    examples, pad = examples_of(loaded, facts, recipe)
    home = loaded.model.device
    loaded.model.to("cpu")
    if home.type == "cuda":
        torch.cuda.empty_cache()
    with prepared(files) as ready, tempfile.TemporaryDirectory(prefix="knowshift-sharded-") as scratch:
        folder = Path(scratch)
        lies = {name: None if place is None else str(place) for name, place in vars(ready).items()}
        job = {
            "name": loaded.name,
            "files": lies,
            "dtype": loaded.dtype,
            "device": home.type,
            "threads": torch.get_num_threads(),
            "examples": examples,
            "pad": pad,
            "recipe": asdict(recipe),
            "seed": seed,
        }
        write_json(folder / "job.json", job)
        _torchrun(folder, loaded.name, shards)
        _take(loaded.model, StoredTensors(folder / "tuned"))
        record: dict[str, Any] = read_json(folder / "record.json")
    loaded.model.to(home)
    return {**record, "load_dtype": loaded.dtype, "shards": shards}


def _torchrun(folder: Path, name: str, shards: int) -> None:
    """Run this module in so many processes until all have ended; end them where this one is interrupted."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={shards}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    environment.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [*command, "-m", __name__, str(folder)],
            env=environment,
            stdin=subprocess.PIPE,  # it ends when this process does, however that ends: see _follow
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    if status == 0:
        return
    told = sorted(folder.glob("error-*.json"), key=lambda file: file.stat().st_mtime_ns)
    if not told:
        said = (folder / "log").read_text(errors="replace")
        if ended := re.search(r"exitcode\s*: -(\d+)", said):  # torchrun's summary
            raise InputError(
                f"{name}: training failed: one of its {shards} processes was ended by signal {ended[1]} (killed, or "
                "the machine's memory is used up); nothing is kept"
            )
        raise RuntimeError(f"torchrun failed:\n{said}")
    first = read_json(told[0])
    if first["refused"]:
        raise InputError(first["text"])
    raise RuntimeError(f"a process of the training failed:\n{first['text']}")


@torch.no_grad()
def _take(model: PreTrainedModel, tuned: StoredTensors) -> None:
    """Write the weights that the processes have left into a model."""
    for name, parameter in parameters_of(model).items():
        parameter.view(-1).copy_(as_tensor(tuned.read(name, 0, parameter.numel())))


# What each of the processes does.


def main(folder: Path) -> None:
    """Train this process's part of a job; exit status 1 where that fails, with the reason in the folder."""
    threading.Thread(target=_follow, daemon=True).start()
    job = read_json(folder / "job.json")
    rank = int(os.environ["RANK"])
    try:
        with border(f"{job['name']}: training by {os.environ['WORLD_SIZE']} processes failed; nothing is kept"):
            _train_part(job, folder)
    except Exception as error:
        refused = isinstance(error, InputError)
        text = str(error) if refused else traceback.format_exc()
        (folder / f"error-{rank}.json").write_text(json.dumps({"refused": refused, "text": text}))
        # Without waiting for the other processes, which torchrun ends.
        os._exit(1)


def _follow() -> None:
    """End with the process that started the training: its end of standard input is closed then."""
    while os.read(0, 1 << 16):  # not sys.stdin, whose lock would be missing when this process ends
        pass
    os._exit(1)


def _train_part(job: Mapping[str, Any], folder: Path) -> None:
    torch.set_num_threads(job["threads"])
    place = torch.device(job["device"])
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    _train_here(job, folder, place, PLAIN)
    dist.destroy_process_group()


def finetune_together(
    loaded: LoadedModel,
    files: ModelFiles,
    facts: Sequence[Fact],
    recipe: Any,
    *,
    seed: int,
    folder: Path,
    strategy: Strategy = PLAIN,
) -> dict[str, Any]:
    """:func:`finetune` by the processes of a group that is there, each of which calls this.

    Args:
        loaded: the base, divided among them; its memory is given back, and it is of no use any more.
        folder: the same for all; the first process leaves the tuned weights there, in ``tuned``.
        strategy: plain, or one that puts adapters on the model and does nothing else (:meth:`.Strategy.wrapped`).

    Returns:
        As :func:`finetune`.

    Raises:
        InputError: as there, but for processes that end.
    """
    from knowshift.training.sft import examples_of

    examples, pad = examples_of(loaded, facts, recipe)
    place = loaded.model.device
    loaded.model.to("meta")
    lies = {name: None if where is None else str(where) for name, where in vars(files).items()}
    job = {
        "name": loaded.name,
        "files": lies,
        "dtype": loaded.dtype,
        "threads": torch.get_num_threads(),
        "examples": examples,
        "pad": pad,
        "recipe": asdict(recipe),
        "seed": seed,
    }
    with border(f"{loaded.name}: training by {group.size()} processes failed; nothing is kept"):
        _train_here(job, folder, place, strategy)
    gc.collect()
    if place.type == "cuda":
        torch.cuda.empty_cache()
    record: dict[str, Any] = read_json(folder / "record.json")
    return {**record, "load_dtype": loaded.dtype, "shards": group.size()}


def _train_here(job: Mapping[str, Any], folder: Path, place: torch.device, strategy: Strategy) -> None:
    """This process's part of a training, among processes that know one another."""
    recipe = job["recipe"]
    torch.manual_seed(job["seed"])
    model = _whole(job)
    collate = OneRow(attention_of(model), model.dtype) if recipe["shared_prefix"] else _Padded(job["pad"])
    adapters = strategy.wrapped(model, job["seed"]) is not None
    if recipe["gradient_checkpointing"]:
        model.gradient_checkpointing_enable()
        if adapters:
            model.enable_input_require_grads()  # layers that are computed again take gradients of what comes in
    shard(model, place, bfloat16=recipe["bfloat16"])
    guard = TrainingGuard(model, job["name"], weight_decay=0.0)
    losses = train(model.train(), job["examples"], collate, recipe, job["seed"], place, guard)
    guard.check()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapters)
    trained: dict[str, Any] = get_model_state_dict(model, options=options)  # on the first process alone
    if dist.get_rank() == 0:
        if adapters:
            trained = _merged(_whole(job), strategy, job["seed"], trained)
        else:
            trained = {name: trained[name] for name, _ in model.named_parameters()}
        _leave(folder, trained, losses, recipe, job["dtype"])
    dist.barrier()


def _whole(job: Mapping[str, Any]) -> PreTrainedModel:
    """The base of a job, read from its files into the processor's memory."""
    lies = {key: None if told is None else Path(told) for key, told in job["files"].items() if key != "name"}
    return load_found(ModelFiles(job["name"], **lies), dtype=job["dtype"], device="cpu").model  # type: ignore[arg-type]


@torch.no_grad()
def _merged(model: PreTrainedModel, strategy: Strategy, seed: int, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model after adapters with these tensors have been merged into them, as PEFT merges them."""
    wrapped = strategy.wrapped(model, seed)
    assert wrapped is not None
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert own.keys() == trained.keys(), "the adapters that were trained are those that are merged"
    for name, parameter in own.items():
        parameter.copy_(trained[name])
    with border("the adapters cannot be merged"):
        return dict(wrapped.merge_and_unload().named_parameters())


def _leave(
    folder: Path, weights: Mapping[str, Tensor], losses: Sequence[float], recipe: Mapping[str, Any], dtype: str
) -> None:
    from safetensors.torch import save_file

    (folder / "tuned").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "tuned" / SINGLE)
    record = {
        "steps": len(losses),
        "train_loss": sum(losses) / len(losses),
        "losses": losses,
        "compute_dtype": "bfloat16" if recipe["bfloat16"] else dtype,
    }
    write_json(folder / "record.json", record)


def shard(model: PreTrainedModel, place: torch.device, *, bfloat16: bool) -> None:
    """Divide a model's weights among all processes: layer by layer, then embeddings, norm and head together.

    With ``bfloat16`` they stay as they are, and layers are computed from copies in bfloat16; gradients are added up
    over the processes in float32.
    """
    given: dict[str, Any] = {"mesh": init_device_mesh(place.type, (dist.get_world_size(),))}
    if bfloat16:
        given["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    number = model.config.get_text_config().num_hidden_layers
    stacks = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == number)
    for layer in next(stacks, nn.ModuleList()):
        fully_shard(layer, **given)
    fully_shard(model, **given)


def train(
    model: PreTrainedModel,
    examples: Sequence[Example],
    collate: Any,
    recipe: Mapping[str, Any],
    seed: int,
    place: torch.device,
    guard: TrainingGuard,
) -> list[float]:
    """The loss of every step, in nats per target token of the whole batch."""
    rank, world = dist.get_rank(), dist.get_world_size()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe["learning_rate"], betas=BETAS, weight_decay=0.0, fused=place.type == "cuda" or None
    )
    steps = recipe["epochs"] * -(-len(examples) // recipe["batch_size"])
    schedule = get_scheduler(recipe["schedule"], optimizer, num_warmup_steps=0, num_training_steps=steps)
    losses: list[float] = []
    for batch in batches(len(examples), recipe["batch_size"], recipe["epochs"], seed):
        tokens = sum(label != IGNORED for index in batch for label in examples[index]["labels"][1:])
        part = [examples[index] for index in batch[rank::world]] or [_silent(examples[batch[0]])]
        inputs = {key: value.to(place) for key, value in collate(part).items()}
        labels = inputs.pop("labels")
        logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        scaled: Any = total * world / tokens  # gradients are averaged over the processes
        scaled.backward()
        norm: Any = nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss = total.detach()
        dist.all_reduce(loss)
        losses.append(float(loss) / tokens)
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        logs = {"loss": losses[-1], "grad_norm": float(whole), "learning_rate": rate}
        guard.look(TrainerState(global_step=len(losses), max_steps=steps), logs)
    return losses


def batches(examples: int, size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Numbers of the examples of each step, in the order in which the Trainer draws them."""
    for epoch in range(epochs):
        order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for start in range(0, examples, size):
            yield order[start : start + size]


def _silent(example: Example) -> Example:
    """For a process that a small batch leaves without an example: it must compute with the others all the same."""
    return {"input_ids": example["input_ids"], "labels": [IGNORED] * len(example["labels"])}


class _Padded:
    """The collator: one row an example, filled up on the right with what is neither seen nor scored."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        longest = max(len(example["input_ids"]) for example in examples)

        def rows(key: str, fill: int) -> Tensor:
            return torch.tensor([[*e[key], *[fill] * (longest - len(e[key]))] for e in examples])

        seen = [[1] * len(e["input_ids"]) + [0] * (longest - len(e["input_ids"])) for e in examples]
        return {
            "input_ids": rows("input_ids", self._pad),
            "labels": rows("labels", IGNORED),
            "attention_mask": torch.tensor(seen),
        }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
