"""Putting part of the change back, after plain fine-tuning: the paper's restoration, its controls, published ways.

What each criterion does is said in :mod:`knowshift.parameters.selection`; fractions are those of ``knowshift restore``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from knowshift.training.strategy import Kind, Strategy, setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from knowshift.training.strategy import Weights


@dataclass(frozen=True)
class Restored(Strategy):
    """The most changed weights, relative to their size, return to their pre-trained values (paper 4.3)."""

    name: ClassVar[str] = "restore"
    about: ClassVar[str] = "the most changed weights return to the base's"
    source: ClassVar[str] = "the paper, 4.3"
    cost: ClassVar[str] = "none in training; a pass over the weights after it"
    kind: ClassVar[Kind] = "after"
    criterion: ClassVar[str] = "relative"
    fraction: float = setting(0.2, "of the weights of the transformer's layers", least=0, most=1)

    def after(self, base: Weights, model: PreTrainedModel, seed: int) -> None:
        put_back(base, model, self.criterion, self.fraction, seed)


@dataclass(frozen=True)
class Random(Restored):
    """Weights drawn at random return: the control of the paper's choice."""

    name: ClassVar[str] = "restore-random"
    about: ClassVar[str] = "weights drawn at random return to the base's"
    source: ClassVar[str] = "our control"
    criterion: ClassVar[str] = "random"


@dataclass(frozen=True)
class Interpolate(Restored):
    """WiSE-FT: every weight moves back by the same share of its change. The paper's choice without tuning is half."""

    name: ClassVar[str] = "interpolate"
    about: ClassVar[str] = "weights between the base's and the tuned ones"
    source: ClassVar[str] = "Wortsman et al. 2021, arXiv 2109.01903"
    criterion: ClassVar[str] = "interpolate"
    fraction: float = setting(0.5, "of each weight's change that is undone", least=0, most=1)


@dataclass(frozen=True)
class Lines(Restored):
    """LiNeS: of the first layer's change the fraction is undone, of the last one's nothing, linearly between.

    The paper chooses the fraction by validation; half is ours.
    """

    name: ClassVar[str] = "lines"
    about: ClassVar[str] = "changes of lower layers are scaled down, linearly in depth"
    source: ClassVar[str] = "Wang et al. 2024, arXiv 2410.17146"
    criterion: ClassVar[str] = "lines"
    fraction: float = setting(0.5, "of the first layer's change that is undone", least=0, most=1)


@dataclass(frozen=True)
class Fapm(Restored):
    """FAPM: in each matrix the changes that are small, or large beside their weights, return; 10% stay, as theirs."""

    name: ClassVar[str] = "fapm"
    about: ClassVar[str] = "in each matrix only large changes of large weights stay"
    source: ClassVar[str] = "Huang, Cheng and Wang 2025, arXiv 2509.08255"
    criterion: ClassVar[str] = "fapm"
    fraction: float = setting(0.9, "of each matrix's weights", least=0, most=1)


@dataclass(frozen=True)
class Ties(Restored):
    """The trimming of TIES-Merging: the largest 20% of all changes stay, as theirs."""

    name: ClassVar[str] = "ties"
    about: ClassVar[str] = "only the largest changes stay"
    source: ClassVar[str] = "Yadav et al. 2023, arXiv 2306.01708"
    criterion: ClassVar[str] = "ties"
    fraction: float = setting(0.8, "of the weights of the transformer's layers", least=0, most=1)


@dataclass(frozen=True)
class Dare(Restored):
    """DARE: changes are dropped at random, 90% of them as theirs; the others are divided by the share that stays."""

    name: ClassVar[str] = "dare"
    about: ClassVar[str] = "changes dropped at random, the others enlarged"
    source: ClassVar[str] = "Yu et al. 2023, arXiv 2311.03099"
    criterion: ClassVar[str] = "dare"
    fraction: float = setting(0.9, "probability of a change to be dropped", least=0, most=1)


@dataclass(frozen=True)
class Breadcrumbs(Restored):
    """Model Breadcrumbs: in each matrix the largest 1% of changes and the smallest return; as mergekit recommends."""

    name: ClassVar[str] = "breadcrumbs"
    about: ClassVar[str] = "in each matrix the largest and the smallest changes are undone"
    source: ClassVar[str] = "Davari and Belilovsky 2023, arXiv 2312.06795"
    criterion: ClassVar[str] = "breadcrumbs"
    fraction: float = setting(0.1, "of each matrix's weights", least=0, most=1)


@dataclass(frozen=True)
class DgHard(Strategy):
    """DG-Hard: of each matrix's change only singular values above the threshold of noise stay; it has no fraction."""

    name: ClassVar[str] = "dg-hard"
    about: ClassVar[str] = "small singular values of each matrix's change are set to 0"
    source: ClassVar[str] = "Abro and Tahir 2026, arXiv 2605.20296"
    cost: ClassVar[str] = "none in training; singular values of all matrices after it"
    kind: ClassVar[Kind] = "after"

    def after(self, base: Weights, model: PreTrainedModel, seed: int) -> None:
        put_back(base, model, self.name, 1.0, seed)


def put_back(base: Weights, model: PreTrainedModel, criterion: str, fraction: float, seed: int) -> None:
    """As ``knowshift restore``, on a loaded model, in place."""
    from knowshift.parameters.restore import RestorationSweep

    for _ in RestorationSweep(model, base, criterion=criterion, seed=seed).run([fraction]):
        pass
