"""The checkpoint directory: everything another program needs, rebuilt from itself, verified before it is believed.

    config.yaml  model.json  model.safetensors  preprocess.json  tokenizer/  MODEL_CARD.md  metrics.json  provenance.json
    DATA_CARD.md (of the data it was trained on)
    structures.yaml (the lexicon of a model whose texts are units of structures)
    objectives.json, .safetensors (the objectives whose attention can be looked at; nothing else reads them)
    patients.npy (hashes of the training patients, so that a benchmark can refuse a leak)
    state/trainer.pt (for --resume only)  manifest.json (sha256 of every other file)

directory: written whole or not at all, verified, the newest good one.   contents: models into it and out of it.
origin: provenance.   cards: in words.   export: what is handed on.          python -m elvis.checkpoints inspect | verify | export DIR
"""

from elvis.checkpoints.cards import About, about, card, data_card, lists
from elvis.checkpoints.contents import (
    STRUCTURES,
    Whole,
    annotate,
    load_backbone,
    load_into,
    load_pretrained,
    load_state,
    load_weights,
    load_whole,
    metrics,
    save,
    write_cards,
    write_json,
    write_tensors,
)
from elvis.checkpoints.directory import (
    FORMAT,
    MANIFEST,
    NEEDED,
    candidates,
    claim,
    newest,
    opened,
    prune,
    resolve,
    run_of,
    standing,
    sweep,
    verify,
    write,
)
from elvis.checkpoints.origin import commit, provenance

__all__ = [
    "FORMAT",
    "MANIFEST",
    "NEEDED",
    "STRUCTURES",
    "About",
    "Whole",
    "about",
    "annotate",
    "candidates",
    "card",
    "claim",
    "commit",
    "data_card",
    "lists",
    "load_backbone",
    "load_into",
    "load_pretrained",
    "load_state",
    "load_weights",
    "load_whole",
    "metrics",
    "newest",
    "opened",
    "provenance",
    "prune",
    "resolve",
    "run_of",
    "save",
    "standing",
    "sweep",
    "verify",
    "write",
    "write_cards",
    "write_json",
    "write_tensors",
]
