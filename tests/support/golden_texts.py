"""What the findings of ``golden_run`` say: scope, statement and sentence of every claim.

Written down from the report once the independent formulas agreed with every number, and read against them: shares and
points are the estimates and intervals of the same claim, times 100.
"""

from __future__ import annotations

TEXTS: dict[str, tuple[str, str, str]] = {
    "more_data_hurts": (
        "mean of training levels, both domains",
        "the best smaller size beats the largest",
        "Tuned on 960 samples the models answer 29.1% of the test facts; on the best smaller size, chosen on "
        "other facts and draws (240 samples in 14 of 16 choices), 18.5 points more [+11.2 to +25.8].",
    ),
    "rises_first": (
        "mean of training levels, both domains",
        "an inner size beats the smallest",
        "The best inner size (240 samples in 16 of 16 choices) minus 60 samples: +10.1 points [+2.7 to +17.4].",
    ),
    "more_data_hurts_in_domain": (
        "mean of training levels, in-domain",
        "the best smaller size beats the largest",
        "In-domain, the best smaller size minus the largest: +21.3 points [+10.1 to +32.4].",
    ),
    "more_data_hurts_out_of_domain": (
        "mean of training levels, out-of-domain",
        "the best smaller size beats the largest",
        "Out-of-domain, the best smaller size minus the largest: +15.7 points [+4.0 to +27.4].",
    ),
    "more_data_hurts_level_0": (
        "training level 0, both domains",
        "the best smaller size beats the largest",
        "Level 0: 240 samples in 5 of 6 choices; minus 960 samples: +15.6 points [+0.4 to +30.8].",
    ),
    "more_data_hurts_level_1": (
        "training level 1, both domains",
        "the best smaller size beats the largest",
        "Level 1: 240 samples in 3 of 4 choices; minus 960 samples: +12.9 points [+0.4 to +25.4].",
    ),
    "more_data_hurts_level_2": (
        "training level 2, both domains",
        "the best smaller size beats the largest",
        "Level 2: 240 samples in 6 of 6 choices; minus 960 samples: +26.9 points [+13.7 to +40.2].",
    ),
    "smaller_rate_helps": (
        "mean of training levels, both domains",
        "a smaller learning rate beats the grid's at the largest size",
        "The same 960 samples at learning rate 0.0001 instead of 0.0003: +26.5 points [−7.3 to +60.3], 143% "
        "of what the best smaller size gains.",
    ),
    "hurts_at_smaller_rate": (
        "mean of training levels, both domains",
        "the best smaller size still beats the largest tuned at the smaller rate",
        "The best smaller size minus the largest at that smaller learning rate: +0.3 points [−35.0 to +35.7].",
    ),
    "level_matters": (
        "960 samples, both domains",
        "the best training level beats the worst",
        "With 960 samples: level 2 36.3%, level 1 31.4% and level 0 19.6%. Best minus worst, both chosen on "
        "other facts and draws: +13.0 points [−8.9 to +34.9].",
    ),
    "level_0_worst": (
        "960 samples, both domains",
        "every other training level beats level 0",
        "The lowest of the other levels minus level 0: +12.0 points [−4.6 to +28.6]; level 0 was the worst "
        "in 3 of 4 choices.",
    ),
    "level_2_best": (
        "960 samples, both domains",
        "level 2 beats the best of the others",
        "Level 2 minus the best other level (most often level 1): +12.3 points [−4.7 to +29.3].",
    ),
    "level_matters_in_domain": (
        "960 samples, in-domain",
        "the best training level beats the worst",
        "In-domain, best minus worst training level: +6.3 points [−10.0 to +22.5].",
    ),
    "level_matters_out_of_domain": (
        "960 samples, out-of-domain",
        "the best training level beats the worst",
        "Out-of-domain, best minus worst training level: +19.8 points [−18.8 to +58.4].",
    ),
    "level_matters_at_smaller_rate": (
        "960 samples, both domains",
        "the best training level beats the worst at the smaller learning rate too",
        "At the smaller learning rate, 0.0001, best minus worst training level: 0.0 points [−19.9 to +19.9].",
    ),
    "kl_rises": (
        "mean of training levels, level-4 test facts",
        "KL rises from its lowest size to the largest",
        "Mean KL to the base over 9 well-known facts: 1.25 at 60, 0.83 at 240, 2.21 at 960 samples. From its "
        "lowest smaller size (240 samples in 16 of 16 choices) to 960: +1.37 nats [+1.27 to +1.47].",
    ),
    "kl_falls_first": (
        "mean of training levels, level-4 test facts",
        "KL falls from the smallest size to an inner one",
        "From 60 samples down to the lowest inner size (240 samples in 16 of 16 choices): a fall of +0.42 "
        "nats [+0.31 to +0.52].",
    ),
    "kl_against_accuracy": (
        "9 settings",
        "KL moves against accuracy over training levels and sizes",
        "Over the 9 settings the rank correlation of KL with accuracy is −0.77 [−0.90 to −0.53].",
    ),
    "kl_against_accuracy_within": (
        "mean of training levels",
        "KL moves against accuracy over sizes, within a training level",
        "Over sizes within a training level, the mean rank correlation is −0.83 [−1.00 to −0.33].",
    ),
    "kl_most_for_low_levels": (
        "levels 0 and 1 minus levels 2 to 4",
        "KL at the largest size is higher for levels 0 and 1",
        "With 960 samples, KL after levels 0 and 1 minus KL after levels 2 to 4: +0.24 nats [+0.17 to +0.31].",
    ),
    "kl_rises_level_0": (
        "training level 0",
        "KL rises from its lowest size to the largest",
        "Level 0: lowest at 240 samples in 6 of 6 choices; from there to 960: +1.38 nats [+1.26 to +1.50].",
    ),
    "kl_rises_level_1": (
        "training level 1",
        "KL rises from its lowest size to the largest",
        "Level 1: lowest at 240 samples in 4 of 4 choices; from there to 960: +1.35 nats [+1.19 to +1.51].",
    ),
    "kl_rises_level_2": (
        "training level 2",
        "KL rises from its lowest size to the largest",
        "Level 2: lowest at 240 samples in 6 of 6 choices; from there to 960: +1.38 nats [+1.26 to +1.50].",
    ),
    "smaller_rate_lowers_kl": (
        "mean of training levels, level-4 test facts",
        "KL at the largest size is lower at a smaller learning rate",
        "The same 960 samples at learning rate 0.0001 instead of 0.0003: a fall of +1.21 nats [+1.13 to +1.30].",
    ),
    "kl_rises_at_smaller_rate": (
        "mean of training levels, level-4 test facts",
        "KL still rises where the largest size is tuned at the smaller rate",
        "From the lowest smaller size to the largest at that smaller learning rate: +0.16 nats [+0.02 to +0.29].",
    ),
    "restoring_helps": (
        "mean of training levels, 960 samples, both domains",
        "restoring the most changed weights beats the model as tuned",
        "Restoring the most changed weights of the 960-sample models, the fraction chosen on other facts and "
        "draws (20% in 11 of 16 choices), gives 12.3 points more than as tuned [+5.4 to +19.2].",
    ),
    "restoring_too_many_collapses": (
        "mean of training levels, 960 samples, both domains",
        "restoring 60% falls below the model as tuned",
        "With 60% restored, accuracy goes from 29.1% to 9.4%: −19.6 points [−28.1 to −11.2].",
    ),
    "restoring_helps_in_domain": (
        "mean of training levels, 960 samples, in-domain",
        "restoring the most changed weights beats the model as tuned",
        "In-domain, the chosen fraction minus as tuned: +14.1 points [+5.1 to +23.2].",
    ),
    "restoring_helps_out_of_domain": (
        "mean of training levels, 960 samples, out-of-domain",
        "restoring the most changed weights beats the model as tuned",
        "Out-of-domain, the chosen fraction minus as tuned: +10.4 points [−1.7 to +22.5].",
    ),
    "restoring_helps_level_0": (
        "training level 0, 960 samples, both domains",
        "restoring the most changed weights beats the model as tuned",
        "Level 0: 20% in 5 of 6 choices; minus as tuned: +17.0 points [+4.3 to +29.7].",
    ),
    "restoring_helps_level_1": (
        "training level 1, 960 samples, both domains",
        "restoring the most changed weights beats the model as tuned",
        "Level 1: 20% in 3 of 4 choices; minus as tuned: +12.9 points [−0.9 to +26.8].",
    ),
    "restoring_helps_level_2": (
        "training level 2, 960 samples, both domains",
        "restoring the most changed weights beats the model as tuned",
        "Level 2: 1% in 3 of 6 choices; minus as tuned: +6.9 points [−3.9 to +17.7].",
    ),
    "concentration_0.01": (
        "top 1% of weights",
        "the relative change is more concentrated than its no-signal null",
        "The top 1% of weights hold 71.0% of summed relative change, in the no-signal null 70.3% "
        "(LLaMA-3-8B: 70.8%; by absolute change 17.8%): +0.61 points [+0.55 to +0.67] against the null.",
    ),
    "concentration_0.2": (
        "top 20% of weights",
        "the relative change is more concentrated than its no-signal null",
        "The top 20% of weights hold 90.4% of summed relative change, in the no-signal null 90.3% "
        "(LLaMA-3-8B: 92.0%; by absolute change 22.8%): +0.01 points [−0.05 to +0.07] against the null.",
    ),
    "random_restoring_helps": (
        "mean of training levels, 960 samples, both domains",
        "restoring weights drawn at random beats the model as tuned",
        "Restoring weights drawn at random instead (20% in 9 of 16 choices): −0.1 points [−4.6 to +4.4].",
    ),
    "relative_beats_random": (
        "mean of training levels, 960 samples, both domains",
        "restoring the most changed weights beats restoring at random",
        "Most changed minus random, each at its own chosen fraction: +12.3 points [+6.2 to +18.5].",
    ),
    "smaller_rate_beats_restoring": (
        "mean of training levels, 960 samples, both domains",
        "tuning at the smaller learning rate beats restoring",
        "Tuned at learning rate 0.0001 with nothing restored, minus the best restored: +10.5 points [−25.7 to +46.7].",
    ),
    "collapse_stays_above_base": (
        "mean of training levels, 960 samples, both domains",
        "restored to 60%, the models still beat the base model on this prompt",
        "Before any tuning the base model answers 7.1% of the test facts with the fine-tuning prompt (8.3% "
        "of those it knows best, 50.0% of them after solved examples, 83.3% of them asked plainly; 20.0% of "
        "answers empty). With 60% restored the models minus the base: +2.4 points [−5.4 to +10.1].",
    ),
}
