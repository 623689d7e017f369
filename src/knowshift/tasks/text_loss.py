"""The loss on held-out texts: mean negative log-likelihood, in nats a token.

Each text is read by itself, after what the tokenizer puts before every text. Its first token counts where something
stands before it, as <s> does; the end of a text is not predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from knowshift.errors import InputError, border
from knowshift.models.loading import LoadedModel
from knowshift.tasks.measured import Measured, weighted_mean

NAME = "text_loss"
METRIC = "nats_per_token"
#: Tokens of a piece of a user's text.
PIECE = 128
#: Characters of a user's text that are read at most.
READ = 4_000_000
#: Bytes that the logits of texts may take that are read at once.
LOGIT_BYTES = 128 << 20


@torch.inference_mode()
def mean_nats(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Mean negative log-likelihood of the tokens after the first of each row of ids, in nats: float64 [rows].

    Rows of one length are read together, so nothing is padded. Softmax over the ids that name a token, in float32; sums
    in float64. A row has two ids at least.
    """
    found, usable = np.empty(len(rows)), loaded.vocabulary.usable
    by_length: dict[int, list[int]] = {}
    for row, ids in enumerate(rows):
        assert len(ids) > 1
        by_length.setdefault(len(ids), []).append(row)
    for length, members in sorted(by_length.items()):
        step = max(1, LOGIT_BYTES // (4 * length * usable.size))
        for start in range(0, len(members), step):
            batch = members[start : start + step]
            ids_BT = torch.tensor([list(rows[row]) for row in batch], device=loaded.model.device)
            logits_BTR = loaded.model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
            logits_BTV = usable.columns(logits_BTR).float()
            said_BT = logits_BTV.log_softmax(-1).gather(2, ids_BT[:, 1:, None])[..., 0]
            found[batch] = -said_BT.double().mean(1).cpu().numpy()
    return found


@dataclass(frozen=True)
class TextLoss:
    """Texts, or one long text that is cut into pieces of :data:`PIECE` tokens, of which a seeded choice is read."""

    texts: Sequence[str] = ()
    whole: str = ""
    limit: int | None = None
    seed: int = 0
    origin: str = ""  # the file of ``whole``, for errors

    def measure(self, loaded: LoadedModel) -> list[Measured]:
        """The loss.

        Raises:
            InputError: a long text of hardly any tokens, a token that the model has no embedding for.
        """
        items, rows = self._rows(loaded)
        values = mean_nats(loaded, rows).tolist()
        weights = [float(len(row) - 1) for row in rows]
        score = weighted_mean(values, weights)
        return [Measured(NAME, METRIC, False, score, items, values, weights, [None] * len(items))]

    def _rows(self, loaded: LoadedModel) -> tuple[list[str], list[list[int]]]:
        if not self.whole:
            rows = loaded.encoder.prompts(self.texts, 0)
            both = [(text, row) for text, row in zip(self.texts, rows, strict=True) if len(row) > 1]
            return [text for text, _ in both], [row for _, row in both]
        ids = loaded.encoder.plain([self.whole])[0]
        pieces = [ids[start : start + PIECE] for start in range(0, len(ids) - PIECE + 1, PIECE)]
        if len(pieces) < 2:
            raise InputError(f"{self.origin}: {len(ids)} tokens; expected {2 * PIECE} at least")
        order = np.random.default_rng([self.seed, 25]).permutation(len(pieces))[: self.limit]
        chosen = sorted(order.tolist())
        prefix = list(loaded.encoder.prefix)
        return [f"piece {i}" for i in chosen], [prefix + pieces[i] for i in chosen]


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        InputError: no such file, not UTF-8, nothing in it.
    """
    if not file.is_file():
        raise InputError(f"restoration.texts {file}: no such file; expected a text whose loss is measured")
    with border(f"{file}: not readable as UTF-8 text"), file.open(encoding="utf-8") as opened:
        text = opened.read(READ)
    if not text.strip():
        raise InputError(f"{file}: holds no text; expected {2 * PIECE} tokens at least")
    return text
