"""Sentence-level contrast with topics (SILC): a sentence says WHERE to look in any image, and must tell its own image by what is seen there.

    t_i  = softmax(W s_i)                         topic: a map over the image tokens, from the sentence alone (head `region_query`, positions)
    v_ik = norm( sum_n t_i[n] V_kn )              what image k shows under the topic of sentence i;   c_i = norm(content of the sentence)
    z_ik = e^tau <c_i, v_ik>

    sentence_to_image   rows i: which image k is its own?          mean over a report's sentences, then over reports
    image_to_sentence   rows k: which sentences are its own?       ours, off as published
    repulsion           of one report:  CE( T T^t, identity ),  T the unit topics, no temperature
    codebook            mean || e_i - sg(t_i) ||^2                 e_i: the nearest code (head `codebook`); no straight-through, no commitment
    revival             mean over dead codes e of  min_i mean_n ( sg(t_i) - e )^2

MGRRG's pretraining side (Liu et al., IEEE TMI 2024, doi 10.1109/TMI.2024.3372638), read in the authors' code (liuaohanjsj/SILC). V and c are the
projected tokens and sentences; the paper's projections are linear (model.projection: linear), its sentence vector s is the encoder's output at the
start of the sentence (model.sentence_pool: cls). As published each other image of the batch is a negative, also where its report holds the same
sentence ("No pneumothorax."): `targets` mends that.

    one_hot   the own image (published)
    equal     every image whose report holds the sentence, word by word, is a positive (as in phrase_image)
    soft      alpha softmax_k( max over sentences u of report k of cos(s_i, s_u) / t ) + (1 - alpha) one_hot, s before projection, without
              gradient: near-equal sentences share. Ours, after SO-ITC's mixed target (arXiv 2603.04878)

Studies of one group are never each other's negatives (published: they are). Patches stay on their rank: contents and topics of all ranks meet
local images in recomputed chunks, and the logits are gathered. The sg of `revival` sees the topics of all ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from elvis.distributed import gather, gather_padded, own_rows
from elvis.objectives._shared import choose, in_chunks, rows_to_compare, says
from elvis.ops import cosine, held_exp, info_nce, masked_pairs, masked_softmax, masked_zero, normalize, soft_cross_entropy, upcast
from elvis.pooling import nearest_rows
from elvis.registry import OBJECTIVES
from elvis.types import Batch, Pair


@OBJECTIVES.register("sentence_topic")
class SentenceTopic(nn.Module):
    """Terms of the formulas above, each times its weight; the defaults are the published ones of the joint loss."""

    max_scale = 100.0  # CLIP

    def __init__(
        self,
        *,
        head: str = "topic",  # the region query that makes topics of sentences
        codebook: str = "codes",  # the codebook of its maps; empty = none
        sentence_to_image: float = 0.3,  # weights of the terms
        image_to_sentence: float = 0.0,
        repulsion: float = 1.0,
        codes: float = 1.0,  # of codebook and revival
        targets: str = "one_hot",
        tau: float = 1.0,  # start of the learned log scale
        soft_weight: float = 0.5,  # alpha
        soft_temperature: float = 0.1,
        chunk: int = 256,  # sentences scored at once; more of them are recomputed in the backward. Changes memory, not the result
    ) -> None:
        super().__init__()
        self.head, self.codebook, self.chunk = head, codebook, chunk
        self.by_position = frozenset({head})  # the heads that must say where to look before they see an image: their maps are laid on others
        self.weight = {"sentence_to_image": sentence_to_image, "image_to_sentence": image_to_sentence, "repulsion": repulsion, "codes": codes}
        self.compare = choose("targets", targets, {"one_hot": self.one_hot, "equal": self.equal, "soft": self.soft})
        self.soft_weight, self.soft_temperature = soft_weight, soft_temperature
        self.log_scale = nn.Parameter(torch.tensor(float(tau)))
        raw = {"text_raw.sentence"} if targets == "soft" else set()
        self.needs = frozenset({"image.tokens", "text.sentence", f"regions.{head}"} | ({f"codes.{codebook}"} if codebook else set()) | raw)

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        sentence, regions = pair.text.units["sentence"], pair.regions[self.head]
        told = sentence.mask & regions.mask & pair.image.mask.any(1, keepdim=True)  # B U, sentences with an image to look at
        topics = masked_zero(upcast(regions.attention[:, :, 0]), told)  # B U N
        topics = topics.masked_fill(~pair.image.mask.unsqueeze(1), 0.0)
        real, maps = gather_padded(told), gather_padded(topics, dim=(1, 2))  # W*B U, W*B U N' (N' of the study with most views on any rank)
        rows = rows_to_compare(real)  # S
        maps, heard = maps.flatten(0, 1)[rows], real.flatten()[rows]  # S N', S
        terms = self.contrast(pair, batch, told, real, rows, maps)
        terms["repulsion"] = self.repel(topics, told)
        if self.codebook:
            terms |= self.quantise(pair, topics.detach(), told, maps.detach(), heard)
        return {name: (self.weight["codes" if name in ("codebook", "revival") else name] * value, count) for name, (value, count) in terms.items()}

    def contrast(self, pair: Pair, batch: Batch, told: Tensor, real: Tensor, rows: Tensor, maps: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sentences (told B U; of all ranks real W*B U, of them `rows` S with their topics S N') against images, those of all ranks."""
        owner = rows // real.shape[1]  # S, the study each sentence is of
        contents = normalize(gather_padded(masked_zero(pair.text.units["sentence"].vectors, told)).flatten(0, 1)[rows])  # S D
        tokens = masked_zero(upcast(pair.image.tokens), pair.image.mask)  # B N D
        tokens = pad(tokens, (0, 0, 0, maps.shape[1] - tokens.shape[1]))
        scale = held_exp(self.log_scale, self.max_scale, self.training)
        local = topic_logits(contents, maps, tokens, scale, chunk=self.chunk)  # B S
        logits = gather(local)  # W*B S

        seen, study = gather(pair.image.mask.any(1)).unsqueeze(-1) & real.flatten()[rows], gather(batch.study)  # W*B S, W*B
        own = (torch.arange(len(real), device=real.device)[:, None] == owner) & seen  # W*B S
        others = ~own & seen & (study.unsqueeze(-1) != study[owner])
        here = own_rows(len(batch), real.device)
        share = torch.isin(owner, here) / real.sum(1).clamp_min(1).to(logits.dtype)[owner]  # S, of a sentence in its report; 0 of other ranks
        by_sentence = self.compare(pair, logits, own, others, real, rows, 0)  # S
        by_image = self.compare(pair, logits, own, others, real, rows, 1)[here]  # B
        reports = told.any(1).sum().to(logits.dtype)
        return {"sentence_to_image": ((by_sentence * share).sum(), reports), "image_to_sentence": (by_image.sum(), reports)}

    # What is right: logits, own and other pairs W*B S, real W*B U and the S rows of it, the axis compared over (0: images, 1: sentences).

    def one_hot(self, pair: Pair, logits: Tensor, own: Tensor, others: Tensor, real: Tensor, rows: Tensor, dim: int) -> Tensor:
        return info_nce(logits, own, others, dim)

    def equal(self, pair: Pair, logits: Tensor, own: Tensor, others: Tensor, real: Tensor, rows: Tensor, dim: int) -> Tensor:
        same = says(gather_padded(pair.text.units["sentence"].group), real, rows) & real.flatten()[rows]  # W*B S, the own ones among them
        return info_nce(logits, same, others & ~same, dim)

    def soft(self, pair: Pair, logits: Tensor, own: Tensor, others: Tensor, real: Tensor, rows: Tensor, dim: int) -> Tensor:
        raw = pair.text_raw.units["sentence"]
        vectors = gather_padded(masked_zero(upcast(raw.vectors.detach()), raw.mask))  # W*B U D
        alike = cosine(vectors, vectors.flatten(0, 1)[rows])  # W*B U S
        nearest = alike.masked_fill(~real.unsqueeze(-1), -1.0).amax(1)  # W*B S
        both = own | others
        share = own.to(alike.dtype) / own.sum(dim, keepdim=True).clamp_min(1)
        target = self.soft_weight * masked_softmax(nearest / self.soft_temperature, both, dim) + (1 - self.soft_weight) * share
        target = target * own.any(dim, keepdim=True)  # a row without an own pair takes no part
        return soft_cross_entropy(logits, target.to(logits.dtype), both, dim)

    def repel(self, topics: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """Topics of one report apart from each other: a mean over its sentences, summed over reports."""
        unit = normalize(topics)
        alike, pairs = unit @ unit.mT, masked_pairs(told)  # B U U
        each = soft_cross_entropy(alike, pairs & torch.eye(told.shape[1], dtype=torch.bool, device=told.device), pairs)  # B U
        return (each.sum(1) / told.sum(1).clamp_min(1)).sum(), told.any(1).sum().to(each.dtype)

    def quantise(self, pair: Pair, topics: Tensor, told: Tensor, everyones: Tensor, heard: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Codes towards the local topics B U N they are nearest to; dead ones each towards the nearest of the topics of all ranks, S N' (heard S).

        Every rank gives the same `revival` and the same count of it: their quotient is that of one process.
        """
        codes = pair.codes[self.codebook]
        vectors = upcast(codes.vectors).to(topics.dtype)  # K M
        topics, everyones = (pad(maps, (0, vectors.shape[1] - maps.shape[-1])) for maps in (topics, everyones))  # B U M, S M
        gaps = (vectors[codes.index] - topics).square().mean(-1)  # B U
        dead = torch.zeros_like(vectors[:, 0], dtype=torch.bool) if codes.dead is None else codes.dead & heard.any()  # K
        which = rows_to_compare(dead)
        revived = vectors[:0].sum(-1)
        if len(which) and len(everyones):
            revived = (vectors[which] - everyones[nearest_rows(vectors[which], everyones, heard)]).square().mean(-1) * dead[which]
        return {
            "codebook": (gaps.masked_fill(~told, 0.0).sum(), told.sum().to(gaps.dtype)),
            "revival": (revived.sum(), dead.sum().to(gaps.dtype)),
        }


def topic_logits(contents: Tensor, topics: Tensor, tokens: Tensor, scale: Tensor, *, chunk: int = 256) -> Tensor:
    """Unit contents S D with topics S N against the tokens B N D of images -> logits B S."""

    def score(some: Tensor, maps: Tensor) -> Tensor:  # n D, n N -> B n
        return scale * (normalize(maps @ tokens) * some).sum(-1)

    return in_chunks(score, contents, topics, chunk=chunk)
