"""Word to region, all pairs: every word of every report looks for itself in every image; the best-found words speak for the pair.

    s_rt = v_r . w_t                     region r, word t
    a_rt = softmax_r( 4 softmax_t s_rt )                    over the words first, then over the regions
    c_t  = sum_r a_rt v_r
    Z    = log sum_t exp( 5 cos(w_t, c_t) )
    L    = NCE of 10 Z, image to text and text to image     GLoRIA, Huang et al., ICCV 2021

No D-wide context is built where regions are fewer than dimensions, and no B B T R D tensor anywhere. With e = exp(4 softmax_t s),
unnormalised because a cosine does not see the factor, and G = V V^T of each image:

    cos(w, c) = sum_r e_r s_r / ( |w| sqrt(e^T G e) )

Texts are taken in chunks and recomputed in the backward. Patches stay on their rank: gathered texts meet local images, then
the W*B x W*B similarities are gathered for the text rows. Studies of one group or with one text are not negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elvis.distributed import gather, gather_padded, own_rows
from elvis.objectives._shared import choose, in_chunks, study_pairs
from elvis.ops import info_nce, masked_logsumexp, masked_mean, masked_softmax, masked_zero, normalize, upcast
from elvis.registry import OBJECTIVES
from elvis.types import Batch, ImageFeatures, Pair, TextFeatures


@OBJECTIVES.register("word_region")
class WordRegion(nn.Module):
    """Terms `image_to_text` and `text_to_image`, each a mean over studies with a region and a word. GLoRIA adds them."""

    needs = frozenset({"image.tokens", "text.word"})

    def __init__(
        self,
        *,
        attention: str = "dot",  # GLoRIA: raw products. cosine: of unit vectors (then score_scale about 10, the ablation's)
        score_scale: float = 1.0,  # of s; GLoRIA: none
        attention_scale: float = 4.0,  # GLoRIA's temp1
        word_scale: float = 5.0,  # GLoRIA's temp2
        logit_scale: float = 10.0,  # GLoRIA's temp3
        chunk: int = 8,  # texts scored at once; changes memory, not the result
    ) -> None:
        super().__init__()
        self.prepare = choose("attention", attention, {"dot": upcast, "cosine": normalize})
        self.scales = {"score_scale": score_scale, "attention_scale": attention_scale, "word_scale": word_scale}
        self.logit_scale, self.chunk = logit_scale, chunk

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        image, word = pair.image, pair.text.units["word"]
        regions = self.prepare(masked_zero(image.tokens, image.mask))  # B R D
        words, word_mask = gather_padded(self.prepare(masked_zero(word.vectors, word.mask))), gather_padded(word.mask)  # W*B T D
        local = self.logit_scale * word_region_similarity(words, regions, word_mask, image.mask, chunk=self.chunk, **self.scales)  # B W*B

        real = image.mask.any(1) & word.mask.any(1)  # B
        positive, negative = study_pairs(batch, real)  # B W*B
        own_texts = gather(local)[:, own_rows(len(batch), real.device)].T  # B W*B: rows are this rank's texts, columns all images
        by_image, by_text = info_nce(local, positive, negative), info_nce(own_texts, positive, negative)
        count = real.sum().to(local.dtype)
        return {"image_to_text": (by_image.sum(), count), "text_to_image": (by_text.sum(), count)}

    def attention(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Where phrase b looks in image b, the mean of its words (the mean is ours): image B N D, text of one sentence each -> B N, sum 1."""
        word = text.units["word"]
        regions, words = self.prepare(masked_zero(image.tokens, image.mask)), self.prepare(masked_zero(word.vectors, word.mask))
        s = self.scales["score_scale"] * words @ regions.mT  # B T N
        e = self.scales["attention_scale"] * masked_softmax(s, word.mask.unsqueeze(-1), dim=-2)
        return masked_mean(masked_softmax(e, image.mask.unsqueeze(-2)), word.mask)


def word_region_similarity(
    words: Tensor,
    regions: Tensor,
    word_mask: Tensor,
    region_mask: Tensor,
    *,
    score_scale: float = 1.0,
    attention_scale: float = 4.0,
    word_scale: float = 5.0,
    chunk: int = 8,
) -> Tensor:
    """Z of all pairs: words C T D, regions B R D (both finite where masked), masks C T and B R -> B C; 0 without a word or region."""
    cells, width = regions.shape[1:]
    gram = regions @ regions.mT if cells < width else None  # B R R

    def score(words: Tensor, word_mask: Tensor) -> Tensor:  # c T D, c T -> B c
        s = (regions @ words.flatten(0, 1).T).unflatten(-1, word_mask.shape)  # B R c T
        e = torch.exp(attention_scale * masked_softmax(score_scale * s, word_mask)) * region_mask[:, :, None, None]
        flat = e.flatten(2)  # B R cT
        square = (flat * (gram @ flat)).sum(1) if gram is not None else (regions.mT @ flat).square().sum(1)  # B cT, |context|^2
        length = square.view_as(e[:, 0]) * words.square().sum(-1)  # B c T
        cos = (e * s).sum(1) * torch.rsqrt(length.clamp_min(1e-12))
        return masked_logsumexp(word_scale * cos, word_mask)

    z = in_chunks(score, words, word_mask, chunk=chunk)
    return z.masked_fill(~(region_mask.any(1)[:, None] & word_mask.any(1)), 0.0)
