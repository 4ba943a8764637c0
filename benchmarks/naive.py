"""The local losses laid out as published, or a phrase at a time, with the values and gradients of ours: what a step is measured with beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers import gloria_loop, radzero
from elvis import assembly
from elvis import config as configs
from elvis.objectives._shared import study_pairs
from elvis.objectives.phrase_image import PhraseImage
from elvis.objectives.word_region import WordRegion
from elvis.ops import info_nce, masked_zero, normalize
from elvis.training import Terms
from elvis.types import Batch, Pair


class PublishedPhraseImage(PhraseImage):
    """The terms of `phrase_image` with the contexts of all phrases in all images kept, report by report (benchmarks.peers.radzero)."""

    def forward(self, pair: Pair, batch: Batch) -> Terms:
        image, sentence = pair.image, pair.text.units["sentence"]
        seen, real = image.mask.any(1), sentence.mask
        text, study = sentence.group[real], batch.study.unsqueeze(1).expand(real.shape)[real]  # N, of each phrase
        said = ((text[:, None, None] == sentence.group) & real).any(-1)  # N B, which report holds its text
        positive, negative = said & seen, ~said & seen & (study[:, None] != batch.study)
        logits = self.logits(masked_zero(sentence.vectors, real), real, masked_zero(image.tokens, image.mask))
        both = {"sentence_to_image": (logits, positive, negative), "image_to_sentence": (logits.T, positive.T, negative.T)}
        return {name: (self.weight[name] * self.nce(*one), one[1].any(1).sum().to(logits.dtype)) for name, one in both.items()}

    def logits(self, sentences: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """B U D, B U, B R D -> N B, of the N real sentences."""
        return radzero(sentences=sentences, mask=mask, tokens=tokens, scale=self.log_scale.exp()).T

    def nce(self, logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return info_nce(logits, positive, negative).sum()


class LoopedPhraseImage(PublishedPhraseImage):
    """The same, a phrase and a row at a time."""

    def logits(self, sentences: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        scale, tokens = self.log_scale.exp(), normalize(tokens)
        rows = []
        for phrase in normalize(sentences[mask]):  # D
            attention = (scale * tokens @ phrase).softmax(-1)  # B R
            rows.append(scale * normalize((attention.unsqueeze(-1) * tokens).sum(1)) @ phrase)
        return torch.stack(rows)

    def nce(self, logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        total = logits.new_zeros(())
        for row, own, other in zip(logits, positive, negative, strict=True):
            each = [torch.cat([one.unsqueeze(0), row[other]]).logsumexp(0) - one for one in row[own]]
            total = total + (torch.stack(each).mean() if each else 0.0)
        return total


class LoopedWordRegion(WordRegion):
    """The terms of `word_region` with GLoRIA's attention, text by text (benchmarks.peers.gloria_loop)."""

    def forward(self, pair: Pair, batch: Batch) -> Terms:
        image, word = pair.image, pair.text.units["word"]
        words = masked_zero(word.vectors, word.mask)
        logits = self.logit_scale * gloria_loop(words=words, word_mask=word.mask, regions=image.tokens)  # B images, B texts
        real = word.mask.any(1)
        both = {"image_to_text": logits, "text_to_image": logits.T}
        return {name: (info_nce(one, *study_pairs(batch, real)).sum(), real.sum().to(logits.dtype)) for name, one in both.items()}


LOSSES: dict[str, dict[str, type[nn.Module]]] = {
    "ours": {},
    "published": {"phrase_image": PublishedPhraseImage, "word_region": LoopedWordRegion},
    "looped": {"phrase_image": LoopedPhraseImage, "word_region": LoopedWordRegion},
}


def with_losses(config: configs.Config, objectives: nn.ModuleDict, which: str) -> nn.ModuleDict:
    """The objectives of a config, some of them laid out as a row of LOSSES says."""
    for label, recipe in assembly.objective_recipes(config).items():
        options = {k: v for k, v in recipe.items() if k != "name"}
        if recipe["name"] in LOSSES[which]:
            objectives[label] = LOSSES[which][recipe["name"]](**options)
    return objectives
