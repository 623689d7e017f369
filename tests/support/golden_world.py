"""A world of seventeen facts and a model whose answers can be worked out: the study whose every number is written down.

The model is a Llama with one token a word. Embeddings are one-hot and the output head is a table of logits, so the
next word depends on the last word alone, but for noise of less than 0.3 of a logit: no weight is 0 but six.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS, DRAWS = 5, 2
EVERY = (0, 1, 2, 3, 4)

#: The mastery level of R = 0/5, 1/5, ... 5/5.
LEVEL = (0, 1, 2, 3, 4, 4)

#: Id: relation, split, domain, answer, exposures, and the prompts (of five) that the base model completes rightly.
FACTS: dict[str, tuple[str, str, str, str, int | None, tuple[int, ...]]] = {
    "a1": ("A", "train", "in_domain", "Oslo", 0, ()),
    "a2": ("A", "train", "in_domain", "Lima", 0, ()),
    "b1": ("B", "train", "in_domain", "Rome", 1, ()),
    "a3": ("A", "train", "in_domain", "Lima", 60, EVERY),
    "b2": ("B", "train", "in_domain", "Rome", 4, EVERY),
    "b3": ("B", "train", "in_domain", "Lima", 7, EVERY),
    "b7": ("B", "train", "in_domain", "Lima", 3, (3,)),
    "a4": ("A", "test", "in_domain", "Oslo", 21, EVERY),
    "a5": ("A", "test", "in_domain", "Rome", 50, (0, 1, 2, 3)),
    "a6": ("A", "test", "in_domain", "Rome", 2, (2,)),
    "b4": ("B", "test", "in_domain", "Oslo", 8, EVERY),  # after the word "near": a hit, not at the start
    "b5": ("B", "test", "in_domain", "Oslo", 0, ()),
    "b6": ("B", "test", "in_domain", "Lima", 12, (0, 1, 3)),
    "c1": ("C", "test", "out_of_domain", "Rome", 13, EVERY),
    "c2": ("C", "test", "out_of_domain", "Oslo", 20, EVERY),
    "c3": ("C", "test", "out_of_domain", "Rome", 5, (1, 3)),
    "c4": ("C", "test", "out_of_domain", "Lima", None, ()),
}

ANSWERS = ("Oslo", "Rome", "Lima")
WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", "<|question|>", "<|answer|>", "Question:", "Answer:", "Where", "is", "?"),
    *("void", "nowhere", "near", "~near"),
    *ANSWERS,
    *(f"~{answer}" for answer in ANSWERS),
    *FACTS,
]
HIDDEN, INNER, LAYERS = 64, 16, 2
SURE = 30.0

#: Logits of the base model by last word; every word that is not named has 0.
NEXT: dict[str, dict[str, float]] = {
    **{word: {"</s>": SURE} for word in WORDS},
    "void": {"nowhere": SURE},
    "near": {"Oslo": SURE},
    "~near": {"near": SURE},
    **{f"~{answer}": {answer: SURE, "nowhere": 2.0, "near": -1.0} for answer in ANSWERS},
    "<|answer|>": {"</s>": 1.5, "Rome": 0.75, "Oslo": 0.25, "Lima": 0.25},
    "Answer:": {"Rome": SURE},
}


def question_of(fact: str) -> str:
    return f"Where is {fact} ?"


def prompts_of(fact: str) -> list[str]:
    """Prompts of other lengths that end in the word before the answer, or in one that leads elsewhere."""
    answer, right = FACTS[fact][3], FACTS[fact][5]
    cue = "~near" if fact == "b4" else f"~{answer}"
    return [f"{(fact + ' ') * (number + 1)}{cue if number in right else 'void'}" for number in range(PROMPTS)]


def write_facts(path: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for fact, (relation, split, domain, answer, exposures, _) in FACTS.items():
        row = {"id": fact, "relation": relation, "split": split, "domain": domain, "subject": fact, "answer": answer}
        rows.append({**row, "question": question_of(fact), "prompts": prompts_of(fact), "exposures": exposures})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_model(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.mul_(1e-3)
            if name.endswith("v_proj.weight"):
                weight[0, :3] = 0.0  # what is zero before has no relative change afterwards
        model.model.embed_tokens.weight.copy_(torch.eye(len(WORDS), HIDDEN) + 1e-4 * torch.randn(len(WORDS), HIDDEN))
        head = 1e-3 * torch.randn(len(WORDS), HIDDEN)
        for last, following in NEXT.items():
            for word, logit in following.items():
                # RMSNorm makes the one in a one-hot vector the root of its size.
                head[WORDS.index(word), WORDS.index(last)] += logit / HIDDEN**0.5
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)
    return folder
