"""A tiny BERT as transformers would save one (config, weights, tokenizer), written where a test says; nothing of it is in git."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SENTENCES = ("no pleural effusion", "small left pleural effusion", "the heart is enlarged", "lungs are clear", "right upper lobe opacity")


def bert_config(**changes: Any) -> dict[str, Any]:
    """The config of the tiny BERT, for `text: {name: hf, config: ...}`."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24}
    return {"model_type": "bert", "vocab_size": 80, **sizes, **changes}


def write_bert(folder: Path, texts: Sequence[str] = SENTENCES, **changes: Any) -> Path:
    """A checkpoint as Bio_ClinicalBERT's: a masked language model, so with a head that an encoder leaves out. Returns the folder."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    from elvis.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(texts, 80)
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **special).save_pretrained(folder)
    config = bert_config(**changes)
    config.pop("model_type")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(BertConfig(**config)).save_pretrained(folder)
    return folder
