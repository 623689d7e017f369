"""What a report takes from JSON files of a run folder, checked where it is read: a damaged one ends in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowshift.errors import InputError
from knowshift.facts.fact import LEVELS

#: Kinds of cells that are about a tuned model: their coordinates name its training set. Other kinds may come.
_OF_TRAINING = (
    "tuned",
    "evaluation",
    "token_shift",
    "weight_change",
    "restoration",
    "train_set",
    "layer_groups",
    "tasks",
    "learned",
    "learned_own",
)
_TRAINING = ("level", "size", "draw")
_SHARES = ("layers", "modules", "null_layers", "null_modules", "layer_weights", "module_weights")


def check_coordinates(file: Path, kind: str, coordinates: Mapping[str, Any]) -> None:
    """A cell's coordinates: whole numbers, a learning rate, the name of a control; a tuned model's cell has all."""
    tuned = kind in _OF_TRAINING
    training = _object(file, f"training of a cell of kind {kind!r}", coordinates.get("training"))
    mixed = tuned and "levels" in training and coordinates.get("level") is None
    for name in (*_TRAINING, "part"):
        value = coordinates.get(name)
        if (value is not None or (tuned and name in _TRAINING and not (mixed and name == "level"))) and not _is_count(
            value
        ):
            raise InputError(f"{file}: {name} of a cell of kind {kind!r} is {shown(value)}; expected a whole number")
    if tuned and not mixed and (level := coordinates["level"]) >= LEVELS:
        raise InputError(
            f"{file}: level of a cell of kind {kind!r} is {shown(level)}; expected one of 0 to {LEVELS - 1}"
        )
    rate, control = coordinates.get("learning_rate"), coordinates.get("control")
    if (rate is not None or tuned) and not _is_number(rate):
        raise InputError(f"{file}: learning_rate of a cell of kind {kind!r} is {shown(rate)}; expected a number")
    if control is not None and not isinstance(control, str):
        raise InputError(f"{file}: control of a cell of kind {kind!r} is {shown(control)}; expected a text")


def check_texts(file: Path, content: Mapping[str, Any]) -> None:
    """Every text of a JSON file is one that can be written: JSON can spell half a pair of surrogates, UTF-8 cannot."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{file}: holds a text with a lone surrogate; expected Unicode") from None


def check_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    """The part of a manifest that a report computes with: rates of the configuration, and timings."""
    config = manifest.get("config")
    if config is not None and not isinstance(config, dict):
        raise InputError(f"{file}: config is {shown(config)}; expected an object")
    training = (config or {}).get("training")
    for section in (config or {}, training if isinstance(training, dict) else {}):
        rate = section.get("learning_rate")
        if rate is not None and not _is_number(rate):
            raise InputError(f"{file}: learning_rate is {shown(rate)}; expected a number")
    for title, seconds in _object(file, "timings", manifest.get("timings")).items():
        if not _is_number(seconds):
            raise InputError(f"{file}: timing of {shown(title)} is {shown(seconds)}; expected a number")


def check_change(file: Path, record: Mapping[str, Any]) -> None:
    """``change.json``: shares by fraction, layer and module; None where there is none."""
    for name in ("concentration", "null"):
        for measure, shares in _object(file, name, record.get(name)).items():
            where = f"{name} of {shown(measure)}"
            if not isinstance(shares, dict):
                raise InputError(f"{file}: {where} is {shown(shares)}; expected an object")
            for fraction in shares:
                if not _is_fraction(fraction):
                    raise InputError(f"{file}: {where} has a share at {shown(fraction)}; expected a fraction in 0 to 1")
            _check_shares(file, where, shares)
    for name in _SHARES:
        _check_shares(file, name, record.get(name))


def check_restored(file: Path, record: Mapping[str, Any]) -> None:
    """``restored.json``: whole numbers of weights by criterion and fraction, or by group of layers."""
    if record.get("eligible") is not None and not _is_count(record["eligible"]):
        raise InputError(f"{file}: eligible is {shown(record['eligible'])}; expected a whole number")
    groups = {"layers": record.get("layers")}
    for criterion, counts in {**_object(file, "criteria", record.get("criteria")), **groups}.items():
        for fraction, count in _object(file, criterion, counts).items():
            if count is not None and not _is_count(count):
                raise InputError(f"{file}: {criterion} at {fraction} is {shown(count)}; expected a whole number")


def check_training(file: Path, record: Mapping[str, Any]) -> None:
    """``record.json`` of a tuned model: the ids of its facts, its updates, the mean of their losses."""
    if not isinstance(record.get("facts"), list):
        raise InputError(f"{file}: facts is {shown(record.get('facts'))}; expected a list")
    if not _is_count(record.get("steps")):
        raise InputError(f"{file}: steps is {shown(record.get('steps'))}; expected a whole number")
    if record.get("rounded_share") is not None and not _is_number(record["rounded_share"]):
        raise InputError(f"{file}: rounded_share is {shown(record['rounded_share'])}; expected a number")
    if not _is_number(record.get("train_loss")):
        raise InputError(f"{file}: train_loss is {shown(record.get('train_loss'))}; expected a number")


def check_learned(file: Path, record: Mapping[str, Any]) -> None:
    """``learned.json``: a KL and the share that the weights moved, and the loss of texts where there were some."""
    for name in ("kl", "moved"):
        if not _is_number(record.get(name)):
            raise InputError(f"{file}: {name} is {shown(record.get(name))}; expected a number")
    if record.get("text_loss") is not None and not _is_number(record["text_loss"]):
        raise InputError(f"{file}: text_loss is {shown(record['text_loss'])}; expected a number")


def check_scores(file: Path, record: Mapping[str, Any]) -> None:
    """``scores.json``: a list of objects, each with the score of one model on one task by one metric."""
    if record.get("eligible") is not None and not _is_count(record["eligible"]):
        raise InputError(f"{file}: eligible is {shown(record['eligible'])}; expected a whole number")
    scores = record.get("scores")
    if not isinstance(scores, list):
        raise InputError(f"{file}: scores is {shown(scores)}; expected a list")
    for score in scores:
        told = _object(file, "a score", score)
        for name in ("criterion", "fraction", "task", "metric"):
            if not isinstance(told.get(name), str):
                raise InputError(f"{file}: {name} of a score is {shown(told.get(name))}; expected a text")
        restored = told.get("restored")
        if not _is_count(told.get("items")) or (restored is not None and not _is_count(restored)):
            raise InputError(f"{file}: items and restored of a score are no whole numbers: {shown(score)}")
        if not _is_number(told.get("score")) or not isinstance(told.get("higher_is_better"), bool):
            raise InputError(f"{file}: a score is {shown(score)}; expected a number, and whether more is better")
        if told["fraction"] not in ("", "0") and not _is_fraction(told["fraction"]):
            raise InputError(f"{file}: fraction of a score is {shown(told['fraction'])}; expected one in 0 to 1")


def _check_shares(file: Path, name: str, shares: Any) -> None:
    for key, share in _object(file, name, shares).items():
        if share is not None and not _is_number(share):
            raise InputError(f"{file}: {name} at {key!r} is {shown(share)}; expected a number")


def _object(file: Path, name: str, value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{file}: {name} is {shown(value)}; expected an object")
    return value or {}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _is_fraction(name: str) -> bool:
    try:
        return 0 < float(name) <= 1
    except ValueError:
        return False


def shown(value: Any) -> str:
    """A value as it stands in a file, for a message of one line."""
    return repr(value)[:80]
