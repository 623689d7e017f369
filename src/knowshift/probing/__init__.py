"""How well a model knows a fact: sampled hit rates over its completion prompts, and five levels (paper 2.3)."""
