"""BERT as a decoder with cross-attention, from random weights, with a vocabulary of ours: the first decoder of SO-ITC.

{name: bert, width: 768, layers: 12, heads: 12}        published (arXiv 2603.04878, the authors' code): 6,342 words, beam 3, 50 to 380 tokens
"""

from __future__ import annotations

from collections.abc import Sequence

from downstream.reportgen.decoders import DECODERS
from downstream.reportgen.decoders.hf import Hf


@DECODERS.register("bert")
class Bert(Hf):
    """The decoder `hf` with BERT's architecture. Part: report."""

    own_vocabulary = load_vocabulary = None

    def __init__(
        self,
        *,
        tokens_width: int,
        tokens: int,
        vocab: int,
        max_report: int,
        special: Sequence[int],
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 0,  # of the MLP; 0 = four times the width
        look_layers: int = 0,  # transformer layers over the image tokens before it
        dropout: float = 0.1,
        context: int = 0,
    ) -> None:
        architecture = {
            "model_type": "bert", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": hidden or 4 * width, "max_position_embeddings": max_report + 4,
            "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
        }  # fmt: skip
        super().__init__(
            tokens_width=tokens_width, tokens=tokens, vocab=vocab, max_report=max_report, special=special, architecture=architecture,
            look_layers=look_layers, heads=heads, dropout=dropout, context=context,
        )  # fmt: skip
        self.recipe = {
            "name": "bert",
            "width": width,
            "layers": layers,
            "heads": heads,
            "hidden": hidden,
            "look_layers": look_layers,
            "dropout": dropout,
        }
