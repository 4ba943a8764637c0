"""Tokens to fewer vectors: of a unit (a word, a sentence), of everything, of a region that a query asks for.

    pool_units       u = mean or max of the unit's own tokens                                            no parameters
    AttentionPool    q = W_q mean(x);        p   = W_o sum_n softmax_n(q . W_k x_n / sqrt(d)) W_v x_n     LoVT's and CLIP's pooling
    RegionQuery      q = W_q s, or learned;  v_q = W_o sum_n softmax_n(q . W_k x_n / (t sqrt(d))) W_v x_n
                     by position:            v_q = sum_n softmax_n( (W_q s)_n / t ) x_n                       SILC's topics
    CrossQuery       learned queries and tokens look at each other, block by block; v_q = W_o q               SO-ITC's structure queries
    Codebook         index_u = argmin_k | a_u - e_k |                                                         SILC's codes

(several heads, d = D / heads). Sources: LoVT (average-pooled query, 8 heads), CLIP's AttentionPool2d (Radford et al. 2021;
here without positions, so that any grid works). RegionQuery is ours: one form for topics from sentences and learned queries; CrossQuery is what
SO-ITC builds around such queries. Padding never matters; where nothing is real, the result is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from elvis.distributed import sum_over_ranks
from elvis.errors import ConfigError
from elvis.ops import attend, masked_fill_low, masked_mean, masked_softmax, upcast
from elvis.types import Codes, Regions, TextUnits


def pool_units(tokens: Tensor, units: TextUnits, how: str) -> Tensor:
    """Vectors B U D of the units of tokens B L D, in fp32 at least: `how` is "mean" or "max" over each unit's tokens; zeros where it has none.

    A token may serve several units. No B U L D tensor is made: beyond copies of the input, memory is O(B U D + B U L).
    """
    member = units.tokens & units.mask.unsqueeze(-1)  # B U L
    tokens = upcast(tokens).masked_fill(~member.any(1).unsqueeze(-1), 0.0)  # NaN in padding must not leak through 0 * NaN
    return {"mean": _mean, "max": _max}[how](tokens, member)


def _mean(tokens: Tensor, member: Tensor) -> Tensor:
    with torch.autocast(tokens.device.type, enabled=False):
        return member.to(tokens.dtype) @ tokens / member.sum(-1, keepdim=True).clamp_min(1)


def _max(tokens: Tensor, member: Tensor) -> Tensor:
    with torch.no_grad():  # which token wins, one unit at a time; among equal ones the first
        winner = [masked_fill_low(tokens, own.unsqueeze(-1)).argmax(1) for own in member.unbind(1)]
    winner = torch.stack(winner, 1)  # B U D
    return tokens.gather(1, winner).masked_fill(~member.any(-1, keepdim=True), 0.0)


class AttentionPool(nn.Module):
    """One vector of all tokens: their mean asks, multi-head attention answers.

    `heads` is the most there may be: the largest number up to it that divides `width` is taken.
    """

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = _dividing(width, heads)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """tokens B N D, mask B N -> pooled B D (zeros without a real token), weights B N (mean over heads, detached, sum 1 over real tokens)."""
        tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
        query = self.query(masked_mean(tokens, mask)).unsqueeze(1)  # B 1 D
        query, key, value = (_split(x, self.heads) for x in (query, self.key(tokens), self.value(tokens)))  # B heads 1|N d
        seen, attention = attend(query, key, value, mask.unsqueeze(1))  # B heads 1 d, B heads 1 N
        pooled = self.out(_join(seen).squeeze(1)).masked_fill(~mask.any(1, keepdim=True), 0.0)
        return pooled, attention.mean((1, 2)).detach()

    def values(self, tokens: Tensor) -> Tensor:
        """B N D -> B N D: each token as `forward` would pool it if it were alone, so that a map can be compared with `pooled` (as MaskCLIP does)."""
        return self.out(self.value(tokens))


class RegionQuery(nn.Module):
    """Where a query looks among the tokens, and what it sees there: queries come from text vectors, or are learned."""

    def __init__(
        self,
        *,
        width: int,  # of the tokens and of what comes out
        queries: int | None = None,  # how many learned ones; None = they are predicted from the `query` of each call
        query_width: int | None = None,  # of that `query`; None = width
        heads: int = 1,  # one: a map per query, as SILC's topics; at most, see AttentionPool
        top_k: int | None = None,  # each head looks only at the k tokens it likes best; None = at all
        temperature: float = 1.0,  # below 1 sharpens
        positions: int | None = None,  # how many tokens an image has: the query says where to look before it sees them (SILC). None = it compares
    ) -> None:
        super().__init__()
        self.positions = positions
        if positions is not None and (queries is not None or heads != 1):
            raise ConfigError("a region query by position is predicted from text and has one head", "leave out queries and heads, or positions")
        self.heads, self.top_k = _dividing(width, heads), top_k
        self.scale = 1.0 / (temperature * math.sqrt(width / self.heads))
        self.learned = None if queries is None else nn.Parameter(torch.randn(queries, width))
        if positions is not None:
            self.scale = 1.0 / temperature
            self.query = nn.Linear(query_width or width, positions, bias=False)
            self.key = self.value = self.out = nn.Identity()
            return
        self.query = nn.Linear(query_width or width, width) if queries is None else nn.Identity()
        self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(3))

    def forward(self, tokens: Tensor, mask: Tensor, query: Tensor | None = None, query_mask: Tensor | None = None) -> Regions:
        """tokens B N D, mask B N; query B Q D', query_mask B Q (None = all real; both unused when queries are learned).

        Regions: vectors B Q D, mask B Q (a real query and a real token to look at), attention B Q heads N, zeros where not real.
        """
        if self.learned is not None:
            query, query_mask = self.learned.expand(len(tokens), -1, -1), None
        elif query is None:
            raise ValueError("this RegionQuery predicts its queries: call it with `query`, or build it with queries=<how many>")
        real = mask.any(1, keepdim=True).expand(-1, query.shape[1])  # B Q
        real = real if query_mask is None else real & query_mask
        tokens, query = tokens.masked_fill(~mask.unsqueeze(-1), 0.0), query.masked_fill(~real.unsqueeze(-1), 0.0)
        query, key, value = (_split(x, self.heads) for x in (self.query(query), self.key(tokens), self.value(tokens)))  # B heads Q|N d
        if self.positions is None:
            logits = upcast(query) @ upcast(key).transpose(-1, -2) * self.scale  # B heads Q N
        else:
            logits = self._by_position(upcast(query), tokens.shape[1])
        seen = mask[:, None, None] & real[:, None, :, None]
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            best = masked_fill_low(logits, seen).topk(self.top_k).indices
            seen = seen & torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)
        attention = masked_softmax(logits, seen)
        vectors = self.out(_join(attention @ upcast(value))).masked_fill(~real.unsqueeze(-1), 0.0)
        return Regions(vectors, real, attention.transpose(1, 2), "text" if self.learned is None else "learned")

    def _by_position(self, query: Tensor, tokens: int) -> Tensor:
        """B 1 Q positions -> the first `tokens` of them, B 1 Q N: of studies with fewer views than the widest, those there are."""
        if tokens > query.shape[-1]:
            raise ConfigError(f"an image has {tokens} tokens, this region query knows {query.shape[-1]} positions", f"set positions: {tokens}")
        return query[..., :tokens] * self.scale


class CrossQuery(nn.Module):
    """Learned queries that look at the tokens while the tokens look at them: SO-ITC's structure queries (arXiv 2603.04878; the authors' code).

    q, x = learned, W_i x;   blocks times:  q, x = block(q, x), block(x, q)    the same weights both ways, each from the other's old state
    block(a, b):  a = norm(a + self-attention(a)),  a = norm(a + attention(a to b)),  a = norm(a + mlp(a))             BERT's cross layer, post-norm
    v_q = W_o q (no bias),   attention = that of the queries in the last block

    A region query of a config that says `blocks`. It costs N N where RegionQuery costs Q N: tokens attend each other, too.
    """

    positions = None  # it compares (see RegionQuery)

    def __init__(
        self,
        *,
        width: int,  # of the tokens that come in, and of the vectors that come out
        queries: int,
        blocks: int = 2,  # published
        inner: int | None = None,  # W, width of the blocks (published: 768 between tokens and vectors of 512); None = width
        heads: int = 12,  # at most, see AttentionPool
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if queries < 1 or blocks < 1:
            raise ConfigError(f"a cross query of {queries} queries and {blocks} blocks", "one or more of both")
        inner = inner or width
        self.learned = nn.Parameter(torch.randn(queries, inner) * 0.02)
        self.into = nn.Identity() if inner == width else nn.Linear(width, inner)
        self.blocks = nn.ModuleList(CrossBlock(inner, _dividing(inner, heads), dropout) for _ in range(blocks))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor, *, whole: bool = False) -> Regions:
        """tokens B N D, mask B N -> Regions: vectors B Q D, states B Q W, attention B Q heads N; tokens B N W only if `whole`.

        Zeros where there is no real token.
        """
        real = mask.any(1, keepdim=True)  # B 1
        asked = real.expand(-1, len(self.learned))  # B Q
        x = self.into(tokens.masked_fill(~mask.unsqueeze(-1), 0.0))
        q = self.learned.expand(len(tokens), -1, -1).to(x.dtype)
        attention = x.new_zeros(0)
        for number, block in enumerate(self.blocks, 1):
            seen, attention = block(q, asked, x, mask)
            if number < len(self.blocks) or whole:
                x, _ = block(x, mask, q, asked)
            q = seen
        q = q.masked_fill(~asked.unsqueeze(-1), 0.0)
        looked = x.masked_fill(~mask.unsqueeze(-1), 0.0) if whole else None
        return Regions(self.out(q), asked, attention.transpose(1, 2), "learned", states=q, tokens=looked)


class CrossBlock(nn.Module):
    """Self-attention, attention to the others, MLP; a norm behind each (BERT's layer with cross-attention)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.own, self.other = _Attention(width, heads, dropout), _Attention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor) -> tuple[Tensor, Tensor]:
        """a B Q W looks at b B M W -> a B Q W, and where it looked, B heads Q M (0 at what is not real)."""
        a = self.norms[0](a + self.own(a, a, a_mask))
        seen, attention = self.other.looked(a, b, b_mask)
        a = self.norms[1](a + seen)
        return self.norms[2](a + self.mlp(a)), attention


class _Attention(nn.Module):
    """Multi-head attention of a B Q W to b B M W."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self._split(a, b)
        keys = mask | ~mask.any(1, keepdim=True)  # who has nothing to look at looks at its padding: the caller drops it
        seen = scaled_dot_product_attention(query, key, value, attn_mask=keys[:, None, None])  # never Q M in memory: tokens are thousands
        return self.dropout(self.out(_join(seen)))

    def looked(self, a: Tensor, b: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and where it looked: B heads Q M."""
        query, key, value = self._split(a, b)
        seen, attention = attend(query, key, value, mask.unsqueeze(1))
        return self.dropout(self.out(_join(seen).to(a.dtype))), attention

    def _split(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _split(self.query(a), self.heads), _split(self.key(b), self.heads), _split(self.value(b), self.heads)


class Codebook(nn.Module):
    """A few maps that stand for all: each unit's attention is rounded to the nearest of `codes` (squared distance).

    Code 0 is the uniform map, fixed: no unit gets it, a decoder says "nothing more" with it. The others begin as softmax(N(0, 1)) and are moved
    by an objective. A code that was nearest to no unit in the last `patience` forward passes of training, or never yet, is `dead`: an objective
    revives it. SILC, the authors' code.
    """

    def __init__(self, *, width: int, codes: int = 1024, patience: int = 100) -> None:  # width: positions of the maps
        super().__init__()
        if codes < 2:
            raise ConfigError(f"a codebook of {codes}", "two codes or more: the first is the end")
        self.patience = patience
        self.vectors = nn.Parameter(torch.randn(codes - 1, width).softmax(-1))
        self.register_buffer("end", torch.full((1, width), 1.0 / width))
        self.register_buffer("idle", torch.full((codes,), patience))  # passes since it was some unit's nearest; from the start as if for long
        self.idle[0] = 0

    def forward(self, regions: Regions) -> Codes:
        """Regions with attention B Q heads N (mean over heads; N at most the width) -> Codes. Counts in train mode what was used, over all ranks."""
        maps = upcast(regions.attention.detach()).mean(2)  # B Q N
        maps = pad(maps, (0, self.vectors.shape[1] - maps.shape[-1]))
        vectors = torch.cat([upcast(self.end), upcast(self.vectors)])  # K N
        with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
            index = (nearest_rows(maps, vectors[1:]) + 1).masked_fill(~regions.mask, 0)
            if self.training:
                counted = torch.zeros(len(vectors), dtype=torch.int64, device=index.device)  # bincount would ask the device for the largest
                used = sum_over_ranks(counted.index_add_(0, index.flatten(), regions.mask.flatten().long()))
                self.idle.add_(1).masked_fill_(used > 0, 0)[0] = 0
        return Codes(vectors, index, self.idle >= self.patience)


def nearest_rows(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Which row of b M D, of those in `mask` M, is nearest to each row of a (..., N, D): (..., N) int64, without gradient.

    The differences themselves are squared, not |a|^2 - 2ab + |b|^2 taken: maps are small numbers, and codes come to lie close to each other.
    """
    apart = torch.cdist(a.detach(), b.detach().to(a.dtype), compute_mode="donot_use_mm_for_euclid_dist")
    return (apart if mask is None else apart.masked_fill(~mask, torch.inf)).argmin(-1)


def _dividing(width: int, heads: int) -> int:
    return next(h for h in range(heads, 0, -1) if width % h == 0)


def _split(x: Tensor, heads: int) -> Tensor:
    """B N D -> B heads N D/heads."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """B heads N d -> B N heads*d."""
    return x.transpose(1, 2).flatten(2)
