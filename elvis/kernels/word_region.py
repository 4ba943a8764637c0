"""All pairs of images and texts: every word looks for itself in every image; how alike is what it finds?

    S = W V^T                        words W T D of a text, regions V R D of an image
    P = softmax over words of  a S                  a: score_scale
    E = exp( b P )                                  b: attention_scale.  E / sum over regions of E  is GLoRIA's attention
    cos = n / ( |w| sqrt q ),   n = sum_r E S,   q = E^T G E,   G = V V^T
    z   = log sum over words of exp( c cos )        c: word_scale

No context (a D-wide vector a pair and word) is kept: a cosine does not see the normaliser of E, and its two products need S and G alone. Where
regions are as many as dimensions, or words are few, q = |V^T E|^2 is cheaper (`gram_pays`). It is also the more exact of the two: E^T G E cancels
where attention is even and the mean of the regions is near zero. What rounds to |cos| > 1 there counts as 0 / 0: cosine and gradient are 0.
Of `attended_cosine` E = exp(S - max over regions).

Backward, with g = dL/dcos, gn = g / (|w| sqrt q), gq = - g cos / (2 q):

    dE = gn S + 2 gq (G E)        dP = b E dE        dS = gn E + a P ( dP - sum over words of P dP )
    dW = dS V - w sum_b (g cos) / |w|^2              dV = dS^T W + 2 ( sum (gq E) E^T ) V

    u = 2 B I T R D,  m = 2 B I T R min(R, D)        FLOP: forward u + m; both 3 u + 2 m when all is kept, 4 u + 3 m when tiles are computed again
                                                     (triton: S once more, one u; by the context: one m more)

Pairs are taken in tiles of images x texts, so that memory is that of a tile. A tile has two steps, `look` (S to n and q) and `pull` (gn and gq to
dS), in torch here and in Triton beside (elvis.kernels.word_region_triton); what lies between tiles is the same for all engines:

    dense     tiles are kept for the backward                 small problems
    chunked   tiles are computed again in the backward        any device, size and dtype
    triton    the same, S, P and their gradients never leave a kernel           CUDA, T <= 256; fp32 on request alone
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from elvis.errors import ConfigError
from elvis.ops import masked_fill_low, masked_logsumexp, upcast

ENGINES = ("auto", "dense", "chunked", "triton")
MOST_WORDS = 256  # of a text in the Triton engine: they lie in one block
HALF = (torch.bfloat16, torch.float16)
SMALLEST = 1e-12  # of |w|^2 q: below it the cosine is 0 / 0


# ---------------------------------------------------------------------------------------------------------- engines


@dataclass(frozen=True)
class Rule:
    """A row of the table: the engine takes a problem of these devices, dtypes, most words, and from `least` to `most` elements B I T R."""

    engine: str
    devices: tuple[str, ...] = ()  # () = any, as below
    dtypes: tuple[torch.dtype, ...] = ()
    words: float = math.inf
    least: float = 0
    most: float = math.inf


RULES = (  # the first that fits
    Rule("triton", devices=("cuda",), dtypes=HALF, words=MOST_WORDS, least=2**18),
    Rule("dense", most=2**24),  # 4 floats an element: 256 MiB in fp32
    Rule("chunked"),
)
TILE = {"cpu": 2**19, "cuda": 2**25}  # elements of a tile: what stays in a cache; some hundred MiB
TILE_TRITON = 2**26  # E, G E and dS of 2 bytes each (fp32: 4)
MOST_ROWS = 2**16 - 1  # images of a tile: what a GPU's grid takes
ALIGNED = 16  # words of a text and columns of G are filled up to a multiple, so that a GPU can read several at once


def choose_engine(device: str, dtype: torch.dtype, *, words: int, elements: int, triton: bool = True) -> str:
    """The first row of RULES that fits: words T of a text, elements B I T R of the problem."""
    for rule in RULES:
        allowed = (not rule.devices or device in rule.devices) and (not rule.dtypes or dtype in rule.dtypes) and words <= rule.words
        if allowed and rule.least <= elements <= rule.most and (triton or rule.engine != "triton"):
            return rule.engine
    raise AssertionError("the last rule takes everything")


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


# --------------------------------------------------------------------------------------------------------- functions


def word_region_similarity(
    words: Tensor,
    regions: Tensor,
    word_mask: Tensor,
    region_mask: Tensor,
    *,
    score_scale: float = 1.0,
    attention_scale: float = 4.0,
    word_scale: float = 5.0,
    engine: str = "auto",
) -> Tensor:
    """z of all pairs (GLoRIA's, Huang et al. 2021): words I T D, regions B R D, masks I T and B R -> B I; 0 without a word or a region.

    Words and regions are finite where masked. The result is fp32 (fp64 of fp64); half precision is multiplied as it is on CUDA, and cast up on a CPU.
    engine: auto | dense | chunked | triton. Raises ConfigError for an unknown one, and for one that cannot take the problem.
    """
    form = OverWords(score_scale, attention_scale, word_scale)
    z = _all_pairs(words, regions, word_mask, region_mask, form, engine)
    return z.masked_fill(~(region_mask.any(1)[:, None] & word_mask.any(1)), 0.0)


def attended_cosine(queries: Tensor, regions: Tensor, region_mask: Tensor, *, engine: str = "auto") -> Tensor:
    """cos(w_n, sum_r softmax_r(w_n . v_br) v_br) of all pairs: queries N D, regions B R D (finite where masked), mask B R -> B N; 0 without a region.

    A temperature is part of the queries: the cosine does not see their length. engine: auto | dense | chunked.
    """
    mask = torch.ones_like(queries[:, :1], dtype=torch.bool)
    return _all_pairs(queries[:, None], regions, mask, region_mask, OverRegions(), engine).masked_fill(~region_mask.any(1, keepdim=True), 0.0)


def _all_pairs(words: Tensor, regions: Tensor, word_mask: Tensor, region_mask: Tensor, form: OverWords | OverRegions, engine: str) -> Tensor:
    device, dtype = regions.device.type, torch.promote_types(words.dtype, regions.dtype)
    words, regions = words.to(dtype), regions.to(dtype)
    elements = word_mask.numel() * region_mask.numel()
    if engine == "auto":
        usable = has_triton() and isinstance(form, OverWords)
        engine = choose_engine(device, dtype, words=words.shape[1], elements=elements, triton=usable)
    if engine == "triton":
        tile, size = _triton_tile(form, words), TILE_TRITON
    elif engine in ("dense", "chunked"):
        tile, size = TorchTile(form), TILE.get(device, TILE["cuda"])
    else:
        raise ConfigError(f"no engine '{engine}' for all pairs of words and regions", f"write engine: {' | '.join(ENGINES)}")
    if device == "cpu" and engine != "triton":
        words, regions = upcast(words), upcast(regions)
    elif words.shape[1] > 1:
        more = -words.shape[1] % ALIGNED
        words, word_mask = F.pad(words, (0, 0, 0, more)), F.pad(word_mask, (0, more))
    given = (x.contiguous() for x in (words, regions, word_mask, region_mask))
    with torch.autocast(device, enabled=False):
        return _AllPairs.apply(*given, tile, engine == "dense", size)


def _triton_tile(form: OverWords | OverRegions, words: Tensor) -> Any:
    if not has_triton():
        raise ConfigError("engine 'triton' needs the package triton", "install it, or write engine: chunked")
    from elvis.kernels import word_region_triton as kernels

    if not isinstance(form, OverWords):
        raise ConfigError("engine 'triton' does not take attention over regions alone", "write engine: auto")
    if words.shape[1] > MOST_WORDS or words.dtype == torch.float64:
        what = f"{words.shape[1]} words a text in {str(words.dtype).removeprefix('torch.')}"
        raise ConfigError(f"engine 'triton' takes up to {MOST_WORDS} in bf16, fp16 or fp32, not {what}", "write engine: auto")
    if not (words.is_cuda or kernels.INTERPRETED):
        raise ConfigError(f"engine 'triton' needs a GPU, the words are on {words.device}", "write engine: auto")
    return kernels.TritonTile(form)


# -------------------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class OverWords:
    """Softmax over the words of a text, then over the regions; a text's words speak together."""

    score_scale: float
    attention_scale: float
    word_scale: float

    def attend(self, s: Tensor, word_mask: Tensor, region_mask: Tensor) -> tuple[Tensor, Tensor]:
        """S b R c T -> P and E."""
        low = masked_fill_low(s.new_zeros(word_mask.shape), word_mask)  # c T
        p = torch.add(low, s, alpha=self.score_scale).softmax(-1)
        return p, torch.exp(self.attention_scale * p).mul_(region_mask[:, :, None, None])

    def pull(self, de: Tensor, e: Tensor, p: Tensor) -> Tensor:
        """dL/dE -> dL/dS through E; `de` is used up."""
        dp = de.mul_(e).mul_(self.attention_scale)
        inner = (p * dp).sum(-1, keepdim=True)
        return dp.sub_(inner).mul_(p).mul_(self.score_scale)

    def speak(self, cos: Tensor, word_mask: Tensor) -> Tensor:
        """b c T -> b c."""
        return masked_logsumexp(self.word_scale * cos, word_mask)

    def heard(self, dz: Tensor, cos: Tensor, word_mask: Tensor) -> Tensor:
        """dL/dz b c -> dL/dcos b c T."""
        share = masked_fill_low(self.word_scale * cos, word_mask).softmax(-1) * word_mask
        return self.word_scale * dz.unsqueeze(-1) * share


@dataclass(frozen=True)
class OverRegions:
    """Softmax over the regions; each text is one query."""

    def attend(self, s: Tensor, word_mask: Tensor, region_mask: Tensor) -> tuple[Tensor, Tensor]:
        s = masked_fill_low(s, region_mask[:, :, None, None])
        return s, torch.exp(s - s.amax(1, keepdim=True)).mul_(region_mask[:, :, None, None])

    def pull(self, de: Tensor, e: Tensor, p: Tensor) -> Tensor:
        return de.mul_(e)

    def speak(self, cos: Tensor, word_mask: Tensor) -> Tensor:
        return cos.squeeze(-1)

    def heard(self, dz: Tensor, cos: Tensor, word_mask: Tensor) -> Tensor:
        return dz.unsqueeze(-1)


# ------------------------------------------------------------------------------------------------------------- tile


@dataclass(frozen=True)
class TorchTile:
    """One tile in torch: regions b R D, words c T D, gram b R >=R or None, all of one dtype; S and what comes of it in fp32 at least."""

    form: OverWords | OverRegions

    def look(self, v: Tensor, w: Tensor, gram: Tensor | None, word_mask: Tensor, region_mask: Tensor, keep: bool) -> tuple[Tensor, Tensor, tuple]:
        """-> n, q, both b c T, and what `pull` wants: S, P, E b R c T, and G E or V^T E."""
        s = product(v.flatten(0, 1), w.flatten(0, 1).mT).unflatten(0, v.shape[:2]).unflatten(-1, w.shape[:2])  # b R c T
        p, e = self.form.attend(s, word_mask, region_mask)
        flat, low = e.flatten(2), stored(v.dtype)  # b R cT
        x = product(v.to(low).mT if gram is None else gram[..., : v.shape[1]], flat.to(low))  # b D cT or b R cT
        q = (x * (x if gram is None else flat)).sum(1).unflatten(-1, w.shape[:2])
        return (e * s).sum(1), q, (s, p, e, x)

    def pull(
        self, v: Tensor, w: Tensor, gram: Tensor | None, word_mask: Tensor, region_mask: Tensor, kept: Sequence[Tensor], gn: Tensor, gq: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """gn, gq b c T -> dS, gq E, and E (of the Gram form) or V^T E: b R cT, the last one b D cT."""
        (s, p, e, x), low = kept, stored(v.dtype)
        gn, gq = gn.unsqueeze(1), gq.unsqueeze(1)  # b 1 c T
        ge = x if gram is not None else product(v.to(low), x.to(low))
        de = (gn * s).addcmul_(ge.view_as(s), gq, value=2.0)
        ds = self.form.pull(de, e, p).addcmul_(gn.expand_as(e), e)
        return ds.flatten(2).to(low), (gq * e).flatten(2).to(low), (e.flatten(2) if gram is not None else x).to(low)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, of two or three axes, summed and given in fp32 at least: half precision is multiplied as it is on CUDA, and cast up elsewhere."""
    if a.dtype not in HALF:
        return a @ b
    if not a.is_cuda:
        return a.float() @ b.float()
    return (torch.mm if a.ndim == 2 else torch.bmm)(a, b, out_dtype=torch.float32)


# ---------------------------------------------------------------------------------------------------------- all pairs


class _AllPairs(torch.autograd.Function):
    """z B I from words I T D and regions B R D, tile by tile. keep: what a tile found is kept for the backward. size: elements of a tile."""

    @staticmethod
    def forward(ctx: Any, words: Tensor, regions: Tensor, word_mask: Tensor, region_mask: Tensor, tile: Any, keep: bool, size: int) -> Tensor:
        gram = None
        if gram_pays(*regions.shape[1:], word_mask.numel()):
            gram = product(regions, regions.mT).to(stored(regions.dtype))  # B R R
            gram = F.pad(gram, (0, -gram.shape[-1] % ALIGNED)) if regions.is_cuda or not isinstance(tile, TorchTile) else gram
        square = upcast(words).square().sum(-1)  # I T
        z, kept, keep = square.new_empty(len(regions), len(words)), [], keep and any(ctx.needs_input_grad)
        inputs = regions, words, gram, word_mask, region_mask
        for rows, columns in tiles(regions.shape[:2], words.shape[:2], size):
            n, q, more = tile.look(*pick(rows, columns, *inputs), keep=keep)
            z[rows, columns] = tile.form.speak(cosine_of(n, q, square[columns])[0], word_mask[columns])
            kept += [n, q, *more] if keep else []
            del n, q, more  # or they live on while the next tile is computed
        ctx.save_for_backward(*inputs, square, *kept)
        ctx.tile, ctx.size = tile, size
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        regions, words, gram, word_mask, region_mask, square, *kept = ctx.saved_tensors
        low, parts = stored(words.dtype), list(tiles(regions.shape[:2], words.shape[:2], ctx.size))
        dw, dv = torch.zeros_like(words, dtype=dz.dtype), torch.zeros_like(regions, dtype=dz.dtype)
        dg = None if gram is None else dv.new_zeros(*regions.shape[:2], regions.shape[1])
        gw = torch.zeros_like(square)  # I T, sum of g cos / |w|^2
        texts, images, each = words.to(low), regions.to(low), len(kept) // max(1, len(parts))

        def pull(rows: slice, columns: slice, found: list[Tensor]) -> None:
            given = pick(rows, columns, regions, words, gram, word_mask, region_mask)
            n, q, more = (*found[:2], found[2:]) if found else ctx.tile.look(*given, keep=True)
            cos, over, real = cosine_of(n, q, square[columns])
            g = ctx.tile.form.heard(dz[rows, columns], cos, word_mask[columns])  # b c T
            gw[columns] += torch.where(real, g * cos / square[columns], 0.0).sum(0)
            ds, ge, x = ctx.tile.pull(*given, more, g * over, torch.where(real, g * cos / (-2 * q), 0.0))  # b R cT, b R cT, b R cT or b D cT
            v, w = images[rows].flatten(0, 1), texts[columns].flatten(0, 1)  # bR D, cT D
            dw[columns] += product(ds.flatten(0, 1).mT, v).view(words[columns].shape)
            dv[rows] += product(ds.flatten(0, 1), w).view(regions[rows].shape)
            if dg is None:
                dv[rows].add_(product(ge, x.mT), alpha=2)
            else:
                dg[rows] += product(ge, x.mT)

        with torch.autocast(dz.device.type, enabled=False):
            for at, (rows, columns) in enumerate(parts):
                pull(rows, columns, kept[at * each : (at + 1) * each])
            dw -= gw.unsqueeze(-1) * words
            if dg is not None:
                dv.add_(product(dg.to(low), images), alpha=2)
        return dw.to(words.dtype), dv.to(regions.dtype), None, None, None, None, None


def gram_pays(regions: int, width: int, words: int) -> bool:
    """Whether G is taken: 3 products R x R a word and 2 of R x R x D an image (G, its gradient) are less than 3 of R x D a word. The other form
    takes 4 of these; it is more exact, and has the benefit of the doubt."""
    return regions * (3 * words + 2 * width) < 3 * words * width


def stored(dtype: torch.dtype) -> torch.dtype:
    """What E, G and dS are kept in between two products: fp16 has not their range."""
    return torch.bfloat16 if dtype == torch.float16 else dtype


def cosine_of(n: Tensor, q: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """n, q b c T, |w|^2 c T -> n / sqrt(q |w|^2), 1 / that root, and where it is a cosine: elsewhere (0 / 0, or cancelled to above 1) all are 0."""
    length = q * square
    real = length > (n.square() / 1.1).clamp_min(SMALLEST)
    over = torch.where(real, torch.rsqrt(length.clamp_min(SMALLEST)), 0.0)
    return n * over, over, real


def tiles(images: tuple[int, ...], texts: tuple[int, ...], size: int) -> Iterator[tuple[slice, slice]]:
    """(B, R), (I, T) -> slices of images and of texts with at most `size` elements b R c T, about as many rows b R as columns c T."""
    (b, i), (r, t) = (images[0], texts[0]), (max(1, images[1]), max(1, texts[1]))
    rows = max(1, min(b, round(math.sqrt(size) / r)))
    columns = max(1, min(i, int(size / (rows * r * t))))
    rows = max(1, min(b, MOST_ROWS, int(size / (columns * r * t))))
    rows, columns = (max(1, -(-whole // -(-whole // part))) if whole else 1 for whole, part in ((b, rows), (i, columns)))  # as many, of equal size
    for row in range(0, b, rows):
        for column in range(0, i, columns):
            yield slice(row, row + rows), slice(column, column + columns)


def pick(
    rows: slice, columns: slice, regions: Tensor, words: Tensor, gram: Tensor | None, word_mask: Tensor, region_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """What a tile is given."""
    return regions[rows], words[columns], None if gram is None else gram[rows], word_mask[columns], region_mask[rows]
