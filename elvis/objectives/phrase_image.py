"""Phrase to image: every sentence looks for itself in every image; what it finds must tell its own image from the others.

    a_nir = softmax_r( s cos(t_n, v_ir) )          sentence n attends the tokens r of image i
    l_ni  = s cos(t_n, sum_r a_nir v_ir)           unit vectors v, s: one learned scale for both

    sentence_to_image   rows n, multi-positive NCE over images
    image_to_sentence   rows i, multi-positive NCE over the sentences of the batch

VL-CABS with the MP-NCE of RadZero (arXiv 2504.07416). Ours: an image is a positive of every sentence its report contains
word by word, so that the same sentence in two reports is a positive of both images; studies of one group are not
negatives; and every image counts once in `image_to_sentence` (RadZero: every sentence once).

Patches stay on their rank: the sentences of all ranks are gathered and scored against local images (elvis.kernels.word_region: no N B R D
tensor); the N x B logits are gathered for the rows, of which each rank keeps its own sentences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from elvis.distributed import gather, gather_padded, own_rows
from elvis.kernels.word_region import attended_cosine
from elvis.objectives._shared import rows_to_compare, says
from elvis.ops import attend, held_exp, info_nce, masked_zero, normalize
from elvis.registry import OBJECTIVES
from elvis.types import Batch, ImageFeatures, Pair, TextFeatures


@OBJECTIVES.register("phrase_image")
class PhraseImage(nn.Module):
    """Terms `sentence_to_image` (mean over sentences) and `image_to_sentence` (mean over images with a sentence), times their weights."""

    needs = frozenset({"image.tokens", "text.sentence"})
    max_scale = 100.0  # CLIP

    def __init__(
        self,
        *,
        sentence_to_image: float = 0.5,  # weight of the direction; RadZero: the mean of both
        image_to_sentence: float = 0.5,
        scale: float = 1 / 0.07,  # start of s, RadZero
    ) -> None:
        super().__init__()
        self.weight = {"sentence_to_image": sentence_to_image, "image_to_sentence": image_to_sentence}
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        image, sentence = pair.image, pair.text.units["sentence"]
        mask, group = gather_padded(sentence.mask), gather_padded(sentence.group)  # W*B U
        rows = rows_to_compare(mask)  # N
        real, owner = mask.flatten()[rows], rows // mask.shape[1]  # N; owner: the study a sentence is of
        sentences = normalize(gather_padded(masked_zero(sentence.vectors, sentence.mask)).flatten(0, 1)[rows])  # N D
        tokens = normalize(masked_zero(image.tokens, image.mask))  # B R D
        scale = held_exp(self.log_scale, self.max_scale, self.training)
        local = phrase_image_logits(sentences, tokens, image.mask, scale)  # B N
        logits = gather(local)  # W*B N

        said, seen, study = says(group, mask, rows), gather(image.mask.any(1))[:, None] & real, gather(batch.study)  # W*B N, W*B N, W*B
        positive = said & seen  # W*B N
        negative = ~said & seen & (study[:, None] != study[owner])

        own = own_rows(len(batch), real.device)
        mine = torch.isin(owner, own)  # the sentences of this rank; those of others are no one's positive here
        by_image = info_nce(local, positive[own], negative[own])  # B
        by_sentence = info_nce(logits, positive & mine, negative, dim=0)  # N
        return {
            "sentence_to_image": (self.weight["sentence_to_image"] * by_sentence.sum(), (positive & mine).any(0).sum().to(local.dtype)),
            "image_to_sentence": (self.weight["image_to_sentence"] * by_image.sum(), positive[own].any(1).sum().to(local.dtype)),
        }

    def attention(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Where phrase b looks in image b: image B N D, text of one sentence each -> B N, sum 1 over real tokens."""
        tokens, sentence = normalize(masked_zero(image.tokens, image.mask)), normalize(text.units["sentence"].vectors[:, :1])
        return attend(sentence, tokens, tokens, image.mask, held_exp(self.log_scale, self.max_scale, False))[1][:, 0]


def phrase_image_logits(sentences: Tensor, tokens: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """Unit sentences N D against the unit tokens B R D of images with mask B R -> logits B N."""
    return scale * attended_cosine(scale * sentences, tokens, mask)
