"""Two checkpoints audited: what a fine-tuning did to what a model knew, with chance subtracted, and what repairs it."""
