"""What every claim of the hand-made run is to say, worked out from the tables in :mod:`hand_run`.

For each training level, the contrast in each draw. Where a size or a fraction is chosen, a comment says which was best
in the other draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hand_run import LEVELS, over_draws, pooled, t_interval
from knowshift.statistics.choices import ONE_CHOICE

BOTH = "mean of training levels, both domains"
LARGE = "1,920 samples, both domains"
RESTORED = "mean of training levels, 1,920 samples, both domains"

#: By training level: the best smaller size (240; at level 4, whose 60 is best in draws 1 and 2, that for draw 0) minus
#: the largest; the restored fraction 0.2, the best everywhere, minus as tuned.
HURTS = [[0.4, 0.3, 0.4], [0.3, 0.4, 0.1], [-0.1, 0.2, 0.3]]
HELPS = [[0.2, 0.2, 0.3], [0.2, 0.2, 0.1], [0.2, 0.1, 0.2]]
KL_LARGEST = [[2.25, 2.75, 2.25], [1.25, 1.5, 1.25], [1.75, 2.25, 1.5]]
KL_RISES = [[1.5, 2.0, 1.25], [0.75, 1.0, 0.5], [1.0, 1.375, 0.75]]


def between_levels(value: float, variance: float, draws: int, freedom: int) -> list[float]:
    """The difference of two training levels, each as noisy as the draws of all: twice their variance."""
    return t_interval(value, math.sqrt(2 * variance / draws), freedom)


@dataclass(frozen=True)
class Expected:
    """What a claim is to say."""

    estimate: Sequence[float]  # value, low, high, p
    verdict: str
    scope: str
    sentence: str
    word: Sequence[float] | None = None
    p_holm: float = math.nan
    core: bool = False
    draws: int = 3
    unit: str = "points"


EXPECTED: dict[int, dict[str, Expected]] = {
    1: {
        "more_data_hurts": Expected(
            over_draws(HURTS, ONE_CHOICE),
            "shown",
            BOTH,
            "Tuned on 1,920 samples the models answer 36.7% of the test facts; on the best smaller size, chosen on "
            "other facts and draws (240 samples in 16 of 18 choices), 25.6 points more [+10.2 to +40.9].",
            word=over_draws([[0.3, 0.2, 0.3], [0.2, 0.3, 0.0], [-0.1, 0.2, 0.3]], ONE_CHOICE),
            core=True,
        ),
        "rises_first": Expected(
            over_draws([[0.3, 0.3, 0.1], [0.3, 0.4, 0.3], [0.4, 0.1, -0.2]]),
            "shown",
            BOTH,
            "The best inner size (240 samples in 18 of 18 choices) minus 60 samples: +22.2 points [+1.1 to +43.3].",
            word=over_draws([[0.2, 0.2, 0.0], [0.2, 0.3, 0.2], [0.4, 0.1, -0.2]]),
            core=True,
        ),
        "more_data_hurts_in_domain": Expected(
            over_draws([[0.4, 0.4, 0.4], [0.2, 0.4, 0.0], [0.0, 0.2, 0.2]], ONE_CHOICE),
            "shown",
            "mean of training levels, in-domain",
            "In-domain, the best smaller size minus the largest: +24.4 points [+9.6 to +39.3].",
        ),
        "more_data_hurts_out_of_domain": Expected(
            over_draws([[0.4, 0.2, 0.4], [0.4, 0.4, 0.2], [-0.2, 0.2, 0.4]], ONE_CHOICE),
            "shown",
            "mean of training levels, out-of-domain",
            "Out-of-domain, the best smaller size minus the largest: +26.7 points [+4.3 to +49.1].",
        ),
        "more_data_hurts_level_0": Expected(
            pooled(HURTS[0], HURTS),
            "shown",
            "training level 0, both domains",
            "Level 0: 240 samples in 6 of 6 choices; minus 1,920 samples: +36.7 points [+15.1 to +58.2].",
            p_holm=3 * pooled(HURTS[0], HURTS)[3],
        ),
        "more_data_hurts_level_2": Expected(
            pooled(HURTS[1], HURTS),
            "shown",
            "training level 2, both domains",
            "Level 2: 240 samples in 6 of 6 choices; minus 1,920 samples: +26.7 points [+5.1 to +48.2].",
            p_holm=2 * pooled(HURTS[1], HURTS)[3],
        ),
        "more_data_hurts_level_4": Expected(
            pooled(HURTS[2], HURTS, ONE_CHOICE),
            "undecided",
            "training level 4, both domains",
            "Level 4: 240 samples in 4 of 6 choices; minus 1,920 samples: +13.3 points [−10.2 to +36.9].",
            p_holm=pooled(HURTS[2], HURTS, ONE_CHOICE)[3],
        ),
        "smaller_rate_helps": Expected(  # draws 0 and 1, which the control has
            over_draws([[0.2, 0.2], [0.1, 0.3], [0.3, 0.1]]),
            "undecided",
            BOTH,
            "The same 1,920 samples at learning rate 0.0001 instead of 0.0003: +20.0 points [−0.3 to +40.3], 78% of "
            "what the best smaller size gains.",  # 0.2 / (2.3 / 9)
            draws=2,
        ),
        "hurts_at_smaller_rate": Expected(  # 240 is the best of both
            over_draws([[0.2, 0.1], [0.2, 0.1], [0.0, 0.1]]),
            "shown",
            BOTH,
            "The best smaller size minus the largest at that smaller learning rate: +11.7 points [+2.5 to +20.9].",
            draws=2,
        ),
    },
    2: {
        "level_matters": Expected(  # level 2 minus level 0: 0.5, 0.3, 0.7; every level's draws have variance 0.01
            between_levels(0.5, 0.01, 3, 6),
            "shown",
            LARGE,
            "With 1,920 samples: level 2 60.0%, level 4 40.0% and level 0 10.0%. Best minus worst, both chosen on "
            "other facts and draws: +50.0 points [+30.0 to +70.0].",
            word=between_levels(0.5, 0.01, 3, 6),
            core=True,
        ),
        "level_0_worst": Expected(  # level 4 minus level 0
            between_levels(0.3, 0.01, 3, 6),
            "shown",
            LARGE,
            "The lowest of the other levels minus level 0: +30.0 points [+10.0 to +50.0]; level 0 was the worst in 6 "
            "of 6 choices.",
            word=between_levels(0.2, 0.01, 3, 6),
            core=True,
        ),
        "level_2_best": Expected(  # minus level 4
            between_levels(0.2, 0.01, 3, 6),
            "shown",
            LARGE,
            "Level 2 minus the best other level (most often level 4): +20.0 points [0.0 to +40.0].",
        ),
        "level_matters_in_domain": Expected(  # 3, 2 and 4 levels of 5; each level's draws differ by one level
            between_levels(0.6, 0.04 / 3, 3, 6),
            "shown",
            "1,920 samples, in-domain",
            "In-domain, best minus worst training level: +60.0 points [+36.9 to +83.1].",
        ),
        "level_matters_out_of_domain": Expected(
            between_levels(0.4, 0.04 / 3, 3, 6),
            "shown",
            "1,920 samples, out-of-domain",
            "Out-of-domain, best minus worst training level: +40.0 points [+16.9 to +63.1].",
        ),
        "level_matters_at_smaller_rate": Expected(  # level 2 minus level 0: 0.4, 0.4
            between_levels(0.4, 0.005, 2, 3),
            "shown",
            LARGE,
            "At the smaller learning rate, 0.0001, best minus worst training level: +40.0 points [+17.5 to +62.5].",
            draws=2,
        ),
    },
    3: {
        "kl_rises": Expected(
            over_draws(KL_RISES),
            "shown",
            "mean of training levels, level-4 test facts",
            "Mean KL to the base over 6 well-known facts: 1.03 at 60, 0.74 at 240, 1.86 at 1,920 samples. From its "
            "lowest smaller size (240 samples in 18 of 18 choices) to 1,920: +1.12 nats [+0.86 to +1.39].",
            core=True,
            unit="nats",
        ),
        "kl_falls_first": Expected(
            over_draws([[0.5, 0.5, 0.375], [0.25, 0.5, 0.125], [0.25, -0.125, 0.25]]),
            "shown",
            "mean of training levels, level-4 test facts",
            "From 60 samples down to the lowest inner size (240 samples in 18 of 18 choices): a fall of +0.29 nats "
            "[+0.14 to +0.44].",
            core=True,
            unit="nats",
        ),
        "kl_most_for_low_levels": Expected(  # level 0 minus the mean of levels 2 and 4: 1, -1/2, -1/2 of 3 strata
            over_draws([[3 * x for x in KL_LARGEST[0]], *([-1.5 * x for x in level] for level in KL_LARGEST[1:])]),
            "shown",
            "levels 0 and 1 minus levels 2 to 4",
            "With 1,920 samples, KL after levels 0 and 1 minus KL after levels 2 to 4: +0.83 nats [+0.25 to +1.41].",
            unit="nats",
        ),
        "kl_rises_level_0": Expected(  # its interval lies above 0, but three were looked at: 3 x 0.0188 is above 0.05
            over_draws(KL_RISES[:1]),
            "undecided",
            "training level 0",
            "Level 0: lowest at 240 samples in 6 of 6 choices; from there to 1,920: +1.58 nats [+0.63 to +2.53].",
            p_holm=3 * over_draws(KL_RISES[:1])[3],
            unit="nats",
        ),
        "kl_rises_level_2": Expected(
            over_draws(KL_RISES[1:2]),
            "undecided",
            "training level 2",
            "Level 2: lowest at 240 samples in 6 of 6 choices; from there to 1,920: +0.75 nats [+0.13 to +1.37].",
            p_holm=2 * over_draws(KL_RISES[2:])[3],  # no less than that of a smaller p
            unit="nats",
        ),
        "kl_rises_level_4": Expected(
            over_draws(KL_RISES[2:]),
            "undecided",
            "training level 4",
            "Level 4: lowest at 240 samples in 6 of 6 choices; from there to 1,920: +1.04 nats [+0.26 to +1.82].",
            p_holm=2 * over_draws(KL_RISES[2:])[3],
            unit="nats",
        ),
        "smaller_rate_lowers_kl": Expected(  # draws 0 and 1, which the control has: 0.75 nats in each
            over_draws([[kl - 0.75 for kl in level[:2]] for level in KL_LARGEST]),
            "shown",
            "mean of training levels, level-4 test facts",
            "The same 1,920 samples at learning rate 0.0001 instead of 0.0003: a fall of +1.21 nats [+0.76 to +1.66].",
            draws=2,
            unit="nats",
        ),
        "kl_rises_at_smaller_rate": Expected(  # 240 is lowest; at level 4 in draw 1, which chooses for draw 0, 60
            over_draws([[0.0, 0.0], [0.25, 0.25], [-0.25, -0.125]], ONE_CHOICE),
            "undecided",
            "mean of training levels, level-4 test facts",
            "From the lowest smaller size to the largest at that smaller learning rate: +0.02 nats [−0.27 to +0.31].",
            draws=2,
            unit="nats",
        ),
    },
    4: {
        "restoring_helps": Expected(
            over_draws(HELPS),
            "shown",
            RESTORED,
            "Restoring the most changed weights of the 1,920-sample models, the fraction chosen on other facts and "
            "draws (20% in 18 of 18 choices), gives 18.9 points more than as tuned [+14.2 to +23.6].",
            word=over_draws(HELPS),
            core=True,
        ),
        "restoring_too_many_collapses": Expected(
            over_draws([[0.1, 0.2, 0.0], [0.5, 0.5, 0.5], [0.4, 0.4, 0.3]]),
            "shown",
            RESTORED,
            "With 60% restored, accuracy goes from 36.7% to 4.4%: −32.2 points [−39.1 to −25.4].",
            word=over_draws([[0.1, 0.2, 0.0], [0.5, 0.5, 0.5], [0.3, 0.4, 0.2]]),
            core=True,
        ),
        "restoring_helps_in_domain": Expected(
            over_draws([[0.2, 0.2, 0.2], [0.2, 0.2, 0.0], [0.2, 0.0, 0.2]]),
            "shown",
            "mean of training levels, 1,920 samples, in-domain",
            "In-domain, the chosen fraction minus as tuned: +15.6 points [+6.8 to +24.3].",
        ),
        "restoring_helps_out_of_domain": Expected(
            over_draws([[0.2, 0.2, 0.4], [0.2, 0.2, 0.2], [0.2, 0.2, 0.2]]),
            "shown",
            "mean of training levels, 1,920 samples, out-of-domain",
            "Out-of-domain, the chosen fraction minus as tuned: +22.2 points [+12.7 to +31.8].",
        ),
        "restoring_helps_level_0": Expected(
            pooled(HELPS[0], HELPS),
            "shown",
            "training level 0, 1,920 samples, both domains",
            "Level 0: 20% in 6 of 6 choices; minus as tuned: +23.3 points [+15.2 to +31.5].",
            p_holm=3 * pooled(HELPS[0], HELPS)[3],
        ),
        "restoring_helps_level_2": Expected(
            pooled(HELPS[1], HELPS),
            "shown",
            "training level 2, 1,920 samples, both domains",
            "Level 2: 20% in 6 of 6 choices; minus as tuned: +16.7 points [+8.5 to +24.8].",
            p_holm=2 * pooled(HELPS[1], HELPS)[3],
        ),
        "restoring_helps_level_4": Expected(
            pooled(HELPS[2], HELPS),
            "shown",
            "training level 4, 1,920 samples, both domains",
            "Level 4: 20% in 6 of 6 choices; minus as tuned: +16.7 points [+8.5 to +24.8].",
            p_holm=2 * pooled(HELPS[2], HELPS)[3],
        ),
        "concentration_0.01": Expected(
            over_draws([[0.10, 0.11, 0.09]] * len(LEVELS)),
            "shown",
            "top 1% of weights",
            "The top 1% of weights hold 72.0% of summed relative change, in the no-signal null 62.0% (LLaMA-3-8B: "
            "70.8%; by absolute change 6.0%): +10.00 points [+9.18 to +10.82] against the null.",
        ),
        "concentration_0.2": Expected(
            over_draws([[-0.01, 0.0, -0.02]] * len(LEVELS)),
            "not shown",
            "top 20% of weights",
            "The top 20% of weights hold 91.0% of summed relative change, in the no-signal null 92.0% (LLaMA-3-8B: "
            "92.0%; by absolute change 42.0%): −1.00 points [−1.82 to −0.18] against the null.",
        ),
        "random_restoring_helps": Expected(
            over_draws([[0.1, 0.0, 0.1], [0.1, 0.1, 0.0], [0.0, 0.0, 0.1]]),
            "shown",
            RESTORED,
            "Restoring weights drawn at random instead (20% in 18 of 18 choices): +5.6 points [+0.8 to +10.3].",
        ),
        "relative_beats_random": Expected(
            over_draws([[0.1, 0.2, 0.2], [0.1, 0.1, 0.1], [0.2, 0.1, 0.1]]),
            "shown",
            RESTORED,
            "Most changed minus random, each at its own chosen fraction: +13.3 points [+9.0 to +17.7].",
        ),
        "smaller_rate_beats_restoring": Expected(
            over_draws([[0.0, 0.0], [-0.1, 0.1], [0.1, 0.0]]),
            "undecided",
            RESTORED,
            "Tuned at learning rate 0.0001 with nothing restored, minus the best restored: +1.7 points [−21.4 to "
            "+24.7].",
            draws=2,
        ),
        "collapse_stays_above_base": Expected(  # the base model answers 0.1
            over_draws([[-0.1, -0.1, -0.1], [0.0, -0.1, 0.1], [-0.1, 0.0, -0.1]]),
            "undecided",
            RESTORED,
            "Before any tuning the base model answers 10.0% of the test facts with the fine-tuning prompt (50.0% of "
            "those it knows best, 100.0% of them after solved examples, 50.0% of them asked plainly; 20.0% of answers "
            "empty). With 60% restored the models minus the base: −5.6 points [−12.4 to +1.3].",
        ),
    },
}
