"""The local losses as others lay them out, written from their formulas: what ours are measured beside, and checked against in float64.

    gloria_loop   z_bi of GLoRIA (the formula: elvis/objectives/word_region.py), a Python loop over texts           Huang et al., ICCV 2021
    dense         the same z_bi, one einsum over all pairs; autograd keeps everything, a context for each word of each pair among it
    radzero       l_in of VL-CABS (elvis/objectives/phrase_image.py), a list over reports; the N B D contexts are kept        arXiv 2504.07416
    by_parts      any of these, a few texts at a time, computed again in the backward: for references in float64 that memory can hold
    LoVT          attention of both modalities to each other inside a study, then soft NCE of N x N                  Mueller et al., ECCV 2022
    mgca_tokens   word to region and region to word inside a study, NCE over the tokens of that study               Wang et al., NeurIPS 2022

What makes them slow is theirs and is kept: loops, repeated words, copies, a device sync for each study. Their code is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# ------------------------------------------------------------------------------------------------------- all pairs


def gloria_loop(words: Tensor, word_mask: Tensor, regions: Tensor) -> Tensor:
    """words I T D, mask I T (the real ones first), regions B R D (all real) -> z, B I."""
    columns = []
    for text, count in zip(words, word_mask.sum(1).tolist(), strict=True):
        repeated = text[:count].T.repeat(len(regions), 1, 1)  # B D n
        over_words = torch.bmm(regions, repeated).softmax(-1)  # B R n
        attention = (4.0 * over_words.transpose(1, 2).contiguous()).softmax(-1)  # B n R
        contexts = torch.bmm(regions.transpose(1, 2).contiguous(), attention.transpose(1, 2).contiguous())  # B D n
        cosine = F.cosine_similarity(repeated, contexts, dim=1)  # B n
        columns.append((5.0 * cosine).exp().sum(-1, keepdim=True).log())
    return torch.cat(columns, 1)


def dense(words: Tensor, word_mask: Tensor, regions: Tensor) -> Tensor:
    """words I T D, mask I T, regions B R D (all real) -> z, B I."""
    said = word_mask[None, :, :, None]  # 1 I T 1
    scores = torch.einsum("itd,brd->bitr", words, regions)
    over_words = scores.masked_fill(~said, -torch.inf).softmax(2)
    contexts = torch.einsum("bitr,brd->bitd", (4.0 * over_words).softmax(3), regions)
    cosine = F.cosine_similarity(words, contexts, dim=-1)  # B I T
    return (5.0 * cosine).masked_fill(~word_mask, -torch.inf).logsumexp(-1)


def contrast(z: Tensor) -> Tensor:
    """NCE of 10 z, image to text and text to image, added (GLoRIA)."""
    own = torch.arange(len(z), device=z.device)
    return F.cross_entropy(10.0 * z, own) + F.cross_entropy(10.0 * z.T, own)


def radzero(sentences: Tensor, mask: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
    """sentences B U D, mask B U, tokens B R D (all real), s -> logits B N: all real sentences, report by report."""
    tokens = F.normalize(tokens, dim=-1)
    columns = []
    for report, real in zip(sentences, mask, strict=True):
        phrases = F.normalize(report[real], dim=-1)  # n D
        attention = (scale * torch.einsum("nd,brd->nbr", phrases, tokens)).softmax(-1)
        contexts = F.normalize(torch.einsum("nbr,brd->nbd", attention, tokens), dim=-1)
        columns.append(scale * (phrases[:, None] * contexts).sum(-1).T)
    return torch.cat(columns, 1)


def multi_positive(logits: Tensor, mask: Tensor) -> Tensor:
    """logits B N of sentences that are of one report each, told by mask B U -> the mean of both directions of MP-NCE."""
    owner = mask.nonzero()[:, 0]  # N
    own = torch.arange(len(mask), device=mask.device)[:, None] == owner  # B N
    against = logits.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
    each = torch.logaddexp(logits, against) - logits  # B N
    by_image = (each.masked_fill(~own, 0.0).sum(1) / own.sum(1)).mean()
    return (F.cross_entropy(logits.T, owner) + by_image) / 2


def by_parts(score: Callable[..., Tensor], texts: Tensor, mask: Tensor, *others: Tensor, size: int = 4) -> Tensor:
    """`score(texts, mask, *others)` for `size` texts at a time: B by as many columns as there are."""
    parts = zip(texts.split(size), mask.split(size), strict=True)
    return torch.cat([checkpoint(score, *part, *others, use_reentrant=False) for part in parts], 1)


# ---------------------------------------------------------------------------------------------------- inside a study


class LoVT(nn.Module):
    """Local alignment as published: shared projections, BatchNorm, -inf added where padded, N x N logits of each study and their transposes."""

    def __init__(self, width: int, side: int) -> None:
        """width D; `side` of the square grid of regions."""
        super().__init__()
        self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(3))
        self.norm: nn.Module = nn.BatchNorm1d(width)
        place = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()  # R 2
        apart = torch.cdist(place, place) / (2 * side**2) ** 0.5
        near = torch.exp(-apart) * (apart <= 0.5)
        self.register_buffer("near", (near / near.sum(-1, keepdim=True)).float())

    def forward(self, regions: Tensor, sentences: Tensor, mask: Tensor, region_weights: Tensor, sentence_weights: Tensor) -> Tensor:
        """regions B R D (all real), sentences B U D, mask B U, weights B R and B U, sum 1 -> the four terms, added."""
        unsaid = torch.zeros(mask.shape, dtype=regions.dtype, device=mask.device).masked_fill(~mask, -torch.inf)[:, None]  # B 1 U
        said = self.context(regions, sentences, unsaid)
        shown = self.context(sentences, regions, torch.zeros_like(unsaid[..., :1]))
        a = F.normalize(regions, dim=-1) @ F.normalize(said, dim=-1).mT / 0.3  # B R R
        b = F.normalize(sentences, dim=-1) @ F.normalize(shown, dim=-1).mT / 0.3  # B U U
        loss = a.new_zeros(())
        for rows in (a, a.mT):
            loss = loss - ((self.near * rows.log_softmax(-1)).sum(-1) * region_weights).sum(-1).mean()
        for rows in (b, b.mT):
            own = (rows + unsaid).log_softmax(-1).diagonal(dim1=1, dim2=2)
            loss = loss - (own.masked_fill(~mask, 0.0) * sentence_weights).sum(-1).mean()
        return loss

    def context(self, rows: Tensor, other: Tensor, unsaid: Tensor) -> Tensor:
        """Each row attends the other modality: B N D, B M D, B 1 M (or B 1 1) to add -> B N D."""
        logits = self.key(rows) @ self.key(other).mT / rows.shape[-1] ** 0.5 + unsaid
        attended = self.output(logits.softmax(-1) @ self.value(other))
        return self.norm(attended.flatten(0, 1)).view_as(attended)


def mgca_tokens(words: Tensor, word_mask: Tensor, regions: Tensor, word_weights: Tensor, region_weights: Tensor) -> Tensor:
    """words B T D, mask B T, regions B R D (all real), weights B T and B R -> the mean of both directions. Padded words stay negatives of words."""
    words, regions = F.normalize(words, dim=-1), F.normalize(regions, dim=-1)
    with torch.no_grad():
        weights = [torch.zeros_like(word_weights), torch.zeros_like(region_weights)]
        for clipped, given in zip(weights, (word_weights, region_weights), strict=True):
            for row, own in zip(clipped, given, strict=True):
                place = own.nonzero()[:, 0]
                low, high = torch.quantile(own[place], 0.1), torch.quantile(own[place], 0.9)
                row[place] = own[place].clip(low, high) / own[place].clip(low, high).sum()
    scores = words @ regions.mT / 0.1  # B T R
    found = F.normalize(scores.softmax(-1) @ regions, dim=-1)  # B T D
    heard = F.normalize(scores.mT.masked_fill(~word_mask[:, None], -torch.inf).softmax(-1) @ words, dim=-1)  # B R D
    loss = words.new_zeros((), dtype=word_weights.dtype)
    for one, other, weight in ((words, found, weights[0]), (regions, heard, weights[1])):
        logits = one @ other.mT / 0.1  # B N N
        own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        each = (F.cross_entropy(logits.mT, own, reduction="none") + F.cross_entropy(logits, own, reduction="none")) / 2  # B N
        loss = loss + (each * weight).sum(-1).mean() / 2
    return loss
