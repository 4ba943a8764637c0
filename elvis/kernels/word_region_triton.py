"""A tile of all pairs (elvis.kernels.word_region) in Triton: what has B I T R elements is made, used and forgotten inside a kernel, but E and G E.

    _look     S = V W^T, a block of regions x some texts, in registers; P = softmax over words of a S; E = exp(b P)          E, sum of E S
    _square   X = G E, or V^T E                                                                          X, sum of X E, or of X X
    _pull     S, P, E again;  dP = b E (gn S + 2 gq (G E));  dS = gn E + a P (dP - sum over words of P dP)                   dS, gq E

The rest of the backward is dS V, dS^T W and (gq E) E^T: products of two matrices, left to torch. All words of a text lie in one block, so that the
softmax over them needs no second pass; regions are cut into blocks, whose sums are added up afterwards, in their order: no atomics, the same bits
each time.

Sums are fp32. E, G E and dS are kept as the inputs are, of fp16 as bf16 (E^T G E has not its range). fp32 is multiplied in fp32, not in tf32.
Compiled for a GPU or, with TRITON_INTERPRET=1 before this is imported, interpreted on a CPU: that is how it is tested where there is none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from elvis.kernels.word_region import OverWords, stored

DOT = 16  # the smallest side of a product of two blocks


@triton.jit
def _dot(a, b, sum, EXACT: tl.constexpr, INTERPRETED: tl.constexpr):
    if INTERPRETED:  # Triton's interpreter multiplies the bits of bf16; on a GPU the product of two of them is exact in fp32, too
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision="ieee" if EXACT else "tf32")


@triton.jit
def _scores(v, w, r, column, inside, R, D, BR: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr, INTERPRETED: tl.constexpr):
    """S, BR x BC: regions r of one image (at v) with words `column` (at w, in a row), those that are `inside`; 0 elsewhere."""
    k = tl.arange(0, BK)
    s = tl.zeros((BR, BC), tl.float32)
    for start in range(0, D, BK):
        d = start + k
        a = tl.load(v + r[:, None] * D + d[None, :], mask=(r < R)[:, None] & (d < D)[None, :], other=0.0)
        b = tl.load(w + column[None, :] * D + d[:, None], mask=inside[None, :] & (d < D)[:, None], other=0.0)
        s = _dot(a, b, s, EXACT, INTERPRETED)
    return s


@triton.jit
def _attention(s, said, seen, score_scale, attention_scale, TEXTS: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr):
    """P and E of S: softmax over the words `said` of each text, which are BT columns; E is 0 where a region is not `seen`."""
    logits = tl.reshape(tl.where(said[None, :], score_scale * s, -1e30), (BR, TEXTS, BT))
    p = tl.exp(logits - tl.max(logits, 2, keep_dims=True))
    p = tl.reshape(p / tl.sum(p, 2, keep_dims=True), (BR, TEXTS * BT))
    return p, tl.where(seen[:, None], tl.exp(attention_scale * p), 0.0)


@triton.jit
def _place(texts, T, group, TEXTS: tl.constexpr, BT: tl.constexpr):
    """Columns of a block of texts: where each lies among all c T words, and whether it is one. A text takes BT columns, T of them its own.

    Nothing is selected here: a place that is no plain sum could not be read several at once.
    """
    at = tl.arange(0, TEXTS * BT)
    text, word = group * TEXTS + at // BT, at % BT
    inside = (text < texts) & (word < T)
    return text * T + word, inside


@triton.jit
def _tile(
    V, W, SAID, SEEN, R, D, T, texts, score_scale, attention_scale,
    BR: tl.constexpr, BT: tl.constexpr, TEXTS: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """What a program looks at, regions BR x words TEXTS BT of an image: the regions, the columns, which of these are words; S, P, E."""
    image, r = tl.program_id(2).to(tl.int64), tl.program_id(0) * BR + tl.arange(0, BR)
    column, inside = _place(texts, T, tl.program_id(1), TEXTS, BT)
    said = tl.load(SAID + column, mask=inside, other=0) != 0
    seen = tl.load(SEEN + image * R + r, mask=r < R, other=0) != 0
    s = _scores(V + image * R * D, W, r, column, inside, R, D, BR, TEXTS * BT, BK, EXACT, INTERPRETED)
    p, e = _attention(s, said, seen, score_scale, attention_scale, TEXTS, BT, BR)
    return r, column, inside, s, p, e


@triton.jit(do_not_specialize=["texts"])
def _look(
    V, W, SAID, SEEN, E, N, R, D, T, texts, score_scale, attention_scale,
    BR: tl.constexpr, BT: tl.constexpr, TEXTS: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    image, columns = tl.program_id(2).to(tl.int64), texts * T
    r, column, inside, s, _, e = _tile(V, W, SAID, SEEN, R, D, T, texts, score_scale, attention_scale, BR, BT, TEXTS, BK, EXACT, INTERPRETED)
    tl.store(E + image * R * columns + r[:, None] * columns + column[None, :], e.to(E.dtype.element_ty), mask=(r < R)[:, None] & inside[None, :])
    tl.store(N + (tl.program_id(0) * tl.num_programs(2) + image) * columns + column, tl.sum(e * s, 0), mask=inside)


@triton.jit
def _square(
    A, E, X, Q, M, R, K, columns, a_image, a_row, a_column,
    GRAM: tl.constexpr, KEEP: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """X = A E, A: G (M = R; K >= R columns, zeros behind R) or V^T (M = D, K = R), by its strides; sum over the rows of a block of X E, or of X X."""
    block, part, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    m, c, k = block * BM + tl.arange(0, BM), part * BC + tl.arange(0, BC), tl.arange(0, BK)
    E += image * R * columns
    x = tl.zeros((BM, BC), tl.float32)
    for start in range(0, R, BK):
        r = start + k
        a = tl.load(A + image * a_image + m[:, None] * a_row + r[None, :] * a_column, mask=(m < M)[:, None] & (r < K)[None, :], other=0.0)
        e = tl.load(E + r[:, None] * columns + c[None, :], mask=(r < R)[:, None] & (c < columns)[None, :], other=0.0)
        x = _dot(a, e, x, EXACT, INTERPRETED)
    inside = (m < M)[:, None] & (c < columns)[None, :]
    other = tl.load(E + m[:, None] * columns + c[None, :], mask=inside, other=0.0).to(tl.float32) if GRAM else x
    if KEEP:
        tl.store(X + image * M * columns + m[:, None] * columns + c[None, :], x.to(X.dtype.element_ty), mask=inside)
    tl.store(Q + (block * tl.num_programs(2) + image) * columns + c, tl.sum(x * other, 0), mask=c < columns)


@triton.jit(do_not_specialize=["texts"])
def _pull(
    V, W, SAID, SEEN, GN, GQ, GE, DS, R, D, T, texts, score_scale, attention_scale,
    BR: tl.constexpr, BT: tl.constexpr, TEXTS: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """dS; and gq E in the place of G E, which no other program reads."""
    image, columns = tl.program_id(2).to(tl.int64), texts * T
    r, column, inside, s, p, e = _tile(V, W, SAID, SEEN, R, D, T, texts, score_scale, attention_scale, BR, BT, TEXTS, BK, EXACT, INTERPRETED)
    gn = tl.load(GN + image * columns + column, mask=inside, other=0.0)[None, :]
    gq = tl.load(GQ + image * columns + column, mask=inside, other=0.0)[None, :]
    GE, DS = GE + image * R * columns, DS + image * R * columns
    place, there = r[:, None] * columns + column[None, :], (r < R)[:, None] & inside[None, :]
    ge = tl.load(GE + place, mask=there, other=0.0).to(tl.float32)
    dp = attention_scale * e * (gn * s + 2 * gq * ge)
    of_text = tl.reshape(p * dp, (BR, TEXTS, BT))
    inner = tl.reshape(tl.broadcast_to(tl.sum(of_text, 2, keep_dims=True), (BR, TEXTS, BT)), (BR, TEXTS * BT))
    ds = gn * e + score_scale * p * (dp - inner)
    tl.store(DS + place, ds.to(DS.dtype.element_ty), mask=there)
    tl.store(GE + place, (gq * e).to(GE.dtype.element_ty), mask=there)


INTERPRETED = not isinstance(_look, triton.runtime.JITFunction)


class TritonTile:
    """`look` and `pull` of elvis.kernels.word_region.TorchTile; words c T D with T <= 256, any of bf16, fp16 and fp32."""

    def __init__(self, form: OverWords) -> None:
        self.form = form

    def look(self, v: Tensor, w: Tensor, gram: Tensor | None, word_mask: Tensor, region_mask: Tensor, keep: bool) -> tuple[Tensor, Tensor, tuple]:
        """-> n, q, both b c T, and what `pull` wants: E and G E (or V^T E), b R cT (or b D cT)."""
        (images, regions, width), (texts, count) = v.shape, word_mask.shape
        columns, low = texts * count, stored(v.dtype)
        blocks = Blocks(regions, count, v.dtype)
        e = v.new_empty(images, regions, columns, dtype=low)
        n = v.new_empty(triton.cdiv(regions, blocks.rows), images, columns, dtype=torch.float32)
        scales = self.form.score_scale, self.form.attention_scale
        masks = word_mask.view(torch.int8), region_mask.view(torch.int8)
        a = v.to(low).mT if gram is None else gram
        m, k = a.shape[1:]
        x = e.new_empty(images, m, columns) if keep else e
        q = n.new_empty(triton.cdiv(m, blocks.square["BM"]), images, columns)
        grid = len(q), triton.cdiv(columns, blocks.square["BC"]), images
        with torch.cuda.device_of(v):
            _look[blocks.grid(images, texts)](v, w, *masks, e, n, regions, width, count, texts, *scales, **blocks.options)
            _square[grid](a, e, x, q, m, regions, k, columns, *a.stride(), GRAM=gram is not None, KEEP=keep, **blocks.square)
        return n.sum(0).view(images, texts, count), q.sum(0).view(images, texts, count), (e, x) if keep else ()

    def pull(
        self, v: Tensor, w: Tensor, gram: Tensor | None, word_mask: Tensor, region_mask: Tensor, kept: tuple, gn: Tensor, gq: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """gn, gq b c T -> dS, gq E, and E (of the Gram form) or V^T E: b R cT, the last one b D cT. `kept` is used up."""
        e, x = kept
        (images, regions, width), (texts, count) = v.shape, word_mask.shape
        ge = x if gram is not None else v.to(e.dtype) @ x
        ds = torch.empty_like(e)
        blocks = Blocks(regions, count, v.dtype, pull=True)
        scales = self.form.score_scale, self.form.attention_scale
        masks = word_mask.view(torch.int8), region_mask.view(torch.int8)
        given = v, w, *masks, gn.contiguous(), gq.contiguous(), ge, ds
        with torch.cuda.device_of(v):
            _pull[blocks.grid(images, texts)](*given, regions, width, count, texts, *scales, **blocks.options)
        return ds, ge, e if gram is not None else x


class Blocks:
    """Sizes of blocks for R regions and T words: about 128 columns, of one text or several, and as many rows as the registers hold
    (`python -m benchmarks.kernels` shows how many each kernel takes, and what it spills)."""

    def __init__(self, regions: int, words: int, dtype: torch.dtype, pull: bool = False) -> None:
        single = dtype == torch.float32
        self.regions, self.words = regions, max(DOT, triton.next_power_of_2(words))
        self.texts = max(1, 128 // self.words)
        wide = self.words > 128
        if pull:
            self.rows = 32 if single or wide else 64
        else:
            self.rows = 64 if single or wide or regions <= 64 else 128
        depth = {"BK": 16 if single else 32, "EXACT": single, "INTERPRETED": INTERPRETED, "num_stages": 2 if single else 3}
        self.options = {"BR": self.rows, "BT": self.words, "TEXTS": self.texts, "num_warps": 16 if wide and not pull else 8, **depth}
        self.square = {"BM": 64 if single or regions <= 64 else 128, "BC": 128, "num_warps": 8, **depth}

    def grid(self, images: int, texts: int) -> tuple[int, int, int]:
        return triton.cdiv(self.regions, self.rows), triton.cdiv(texts, self.texts), images
