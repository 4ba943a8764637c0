"""The model: two encoders, projections into one space, and what inference needs of the heads.

    image --backbone--> tokens --pool--> pooled          text --encoder--> tokens --per unit--> words, sentences --pool--> pooled
            tokens, pooled --projection--> Pair.image            units, pooled --projection--> Pair.text
            (before it: Pair.image_raw)                          (before it: Pair.text_raw)

The projections are MLPs as in LoVT (hidden layer, norm, ReLU) or linear maps as in SILC; features leave them unnormalised. ELVIS compares
the similarities inside one image, or one report, before (`*_raw`) and after them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elvis.errors import ConfigError
from elvis.ops import held_exp, masked_max, masked_mean, real_places, upcast
from elvis.pooling import AttentionPool, Codebook, CrossQuery, RegionQuery, pool_units
from elvis.types import Batch, Features, ImageFeatures, Pair, Regions, TextFeatures, TextUnits, UnitFeatures

if TYPE_CHECKING:
    from elvis.types import Backbone

MAX_SCALE = 100.0  # CLIP's clamp of the learned inverse temperature


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics see real rows only (LoVT's included padded sentences). A single real row is normalised by the running ones."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """x (..., C), mask (...) -> (..., C), zeros where not real."""
        if x.device.type != "cpu":
            return self.by_moments(x, mask)
        rows = x[mask]  # torch's own kernel is quicker, and taking rows waits for nobody here
        if self.training and len(rows) < 2:
            done = F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        else:
            done = super().forward(rows)
        return x.new_zeros(x.shape, dtype=done.dtype).masked_scatter(mask.unsqueeze(-1), done)

    def by_moments(self, x: Tensor, mask: Tensor) -> Tensor:
        """The same written out, in shapes that no value decides: nothing waits for a GPU."""
        real, axes, count = mask.unsqueeze(-1), tuple(range(mask.ndim)), mask.sum()
        rows, mean, var = upcast(x).masked_fill(~real, 0.0), self.running_mean, self.running_var
        if self.training:
            mean = rows.sum(axes) / count.clamp_min(1)
            var = (rows - mean).masked_fill(~real, 0.0).square().sum(axes) / count.clamp_min(1)
            enough = count >= 2
            with torch.no_grad():
                unbiased = var * count / (count - 1).clamp_min(1)
                for held, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                    held.add_(self.momentum * (new - held) * enough)
                self.num_batches_tracked.add_(enough)
            mean, var = torch.where(enough, mean, self.running_mean), torch.where(enough, var, self.running_var)
        done = (rows - mean) * (torch.rsqrt(var + self.eps) * self.weight) + self.bias
        return done.masked_fill(~real, 0.0).to(x.dtype)


class Projection(nn.Module):
    """Linear, norm, ReLU, Linear: (..., width) -> (..., dim)."""

    def __init__(self, width: int, hidden: int, dim: int, norm: str) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, hidden), nn.Linear(hidden, dim)
        self.norm = {"layer": nn.LayerNorm, "batch": MaskedBatchNorm, "none": nn.Identity}[norm](hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.into(x)
        h = self.norm(h, mask) if isinstance(self.norm, MaskedBatchNorm) else self.norm(h)
        return self.out(h.relu())


class LinearProjection(nn.Linear):
    """One linear map: (..., width) -> (..., dim). SILC's W_v and W_c (the authors' W_c has no bias)."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Same(nn.Module):
    """No projection: the encoders share a space already."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x


def _projection(kind: str, width: int, *, dim: int, hidden: int, norm: str) -> nn.Module:
    if kind == "mlp":
        return Projection(width, hidden, dim, norm)
    return {"linear": LinearProjection, "none": lambda *_: Same()}[kind](width, dim)


class MeanPool(nn.Module):
    """Masked mean with uniform weights; `values` is the identity (see AttentionPool)."""

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        weights = mask / mask.sum(-1, keepdim=True).clamp_min(1)
        return masked_mean(x, mask), weights

    def values(self, x: Tensor) -> Tensor:
        return x


class VisionLanguageModel(nn.Module):
    """`forward(batch) -> Pair`. `recipe` rebuilds it without weights or network."""

    image: Backbone
    text: Any  # a text encoder: elvis.text says what it must do

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        *,
        dim: int = 512,
        hidden: int = 2048,
        projection: str = "mlp",
        text_projection: str = "",
        norm: str = "layer",
        image_pool: str = "attention",
        text_pool: str = "attention",
        sentence_pool: str = "max",
        context: str = "report",
        views: str = "concat",
        local_heads: bool = True,
        scale: float = 1 / 0.07,
        cls_id: int = 2,
        sep_id: int = 3,
        heads: Mapping[str, Mapping[str, Any]] | None = None,  # label -> options of a region query or a codebook (forms: elvis.config._head_problems)
    ) -> None:
        super().__init__()
        self.options = {
            "dim": dim, "hidden": hidden, "projection": projection, "text_projection": text_projection, "norm": norm,
            "image_pool": image_pool, "text_pool": text_pool, "sentence_pool": sentence_pool,
            "context": context, "views": views, "local_heads": local_heads, "scale": scale, "cls_id": cls_id, "sep_id": sep_id,
            "heads": {label: dict(given) for label, given in (heads or {}).items()},
        }  # fmt: skip
        self.image, self.text = image, text
        self.dim, self.context, self.views, self.sentence_pool, self.image_pool_kind = dim, context, views, sentence_pool, image_pool
        self.special = (cls_id, sep_id)
        self.whole = ""  # the region query whose tokens are wanted with its regions (see `look`)
        self.reads: frozenset[str] | None = None  # what the objectives need; None = everything (see `wire`)
        wide, long = image.spec.width, text.width
        self.image_pool = AttentionPool(wide) if image_pool == "attention" else MeanPool()
        self.text_pool = AttentionPool(long) if text_pool == "attention" else MeanPool()
        if projection == "none" and not (wide == long == dim and not local_heads):
            raise ConfigError(
                f"without a projection the encoders share a space, but they are {wide} and {long} wide, dim is {dim}, local_heads {local_heads}",
                "set model.dim to their width and model.local_heads=false, or model.projection=mlp",
            )
        if sentence_pool == "cls" and context == "report":
            raise ConfigError(
                "model.sentence_pool is 'cls', but a sentence has a [CLS] of its own only where it is read alone",
                "set text.context=sentence (or structure), or model.sentence_pool=max",
            )
        if text_projection == "none" and long != dim:
            raise ConfigError(f"without a projection the text lies in the shared space, but it is {long} wide, dim is {dim}", f"set model.dim={long}")
        project, spell = (partial(_projection, kind, hidden=hidden, dim=dim, norm=norm) for kind in (projection, text_projection or projection))
        self.image_global, self.text_global = project(wide), spell(long)
        self.image_local = project(wide) if local_heads else None
        self.text_local = spell(long) if local_heads else None
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        given = dict(heads or {})
        self.asked_by = {label: one["unit"] for label, one in given.items() if "unit" in one}  # a region query that text asks -> its unit
        self.codes_of = {label: one.get("of", "") for label, one in given.items() if one.get("name") == "codebook"}  # a codebook -> its region query
        self.heads = nn.ModuleDict({label: _region_query(dim, long, **one) for label, one in given.items() if label not in self.codes_of})
        for label in self.codes_of:
            self.heads[label] = _codebook(self.heads, label, given[label])

    @property
    def learned_query(self) -> str:
        """The region query whose queries are learned (structures); "" where there is none."""
        return next((label for label, head in self.heads.items() if getattr(head, "learned", None) is not None), "")

    @property
    def recipe(self) -> dict[str, Any]:
        return {"image": self.image.recipe, "text": self.text.recipe, "model": self.options}

    @property
    def scale(self) -> Tensor:
        """exp(log_scale) of at most MAX_SCALE."""
        return held_exp(self.log_scale, MAX_SCALE, self.training)

    def _reads(self, name: str) -> bool:
        """Whether a projection is wanted: always in use, and in training if an objective reads it. A batch norm must see what it is trained
        for and nothing else, or its running statistics are those of a mixture that never occurs."""
        return not self.training or self.reads is None or name in self.reads

    def forward(self, batch: Batch) -> Pair:
        counts = batch.extra.get("counts", {})
        image, image_raw = self.encode_image(batch.images, batch.view_mask, counts.get("views"))
        text, text_raw = self.encode_text(batch.text_ids, batch.text_mask, batch.units, counts.get("units"))
        regions = {
            label: self.look(label, image, text_raw.units[self.asked_by[label]] if label in self.asked_by else None, whole=label == self.whole)
            for label in self.heads
            if label not in self.codes_of
        }
        codes = {label: self.heads[label](regions[of]) for label, of in self.codes_of.items()}
        return Pair(image=image, text=text, image_raw=image_raw, text_raw=text_raw, scale=self.scale, regions=regions, codes=codes)

    def look(self, label: str, image: ImageFeatures, units: UnitFeatures | None = None, *, whole: bool = False) -> Regions:
        """What the region query `label` sees: projected image, and the units that ask, BEFORE their projection (None where it is learned).

        whole: of one with cross blocks, also the tokens after they have looked at the queries.

        Raises ConfigError where positions are asked for, and a view has another number of them than the head was made for.
        """
        head, cells = self.heads[label], math.prod(image.grid)
        if head.positions is not None and head.positions % cells:
            raise ConfigError(
                f"a view has {' x '.join(map(str, image.grid))} = {cells} tokens, heads.{label} knows {head.positions} positions: no whole views",
                "give images of the size it was trained with, or train with other positions",
            )
        if isinstance(head, CrossQuery):
            return head(image.tokens, image.mask, whole=whole)
        return head(image.tokens, image.mask, *(() if units is None else (units.vectors, units.mask)))

    # ------------------------------------------------------------------------------------------------ image

    def encode_image(self, images: Tensor, view_mask: Tensor, count: int | None = None) -> tuple[ImageFeatures, ImageFeatures]:
        """B V C *S, B V -> features after and before the projection; see `see`."""
        before = self.see(images, view_mask, count)
        after = replace(
            before,
            pooled=self._global("image", before.pooled, before.mask.any(1)),
            tokens=self._local("image", "tokens", before.tokens, before.mask),
            levels={},
        )
        return after, before

    def see(self, images: Tensor, view_mask: Tensor, count: int | None = None) -> ImageFeatures:
        """B V C *S, B V -> features before the projection; tokens, and those of earlier maps, are those of all views, or fused.

        count: how many views are real, where the host knows it; otherwise the device is asked if there are several.
        """
        at = None if images.shape[1] == 1 else real_places(view_mask, count)
        images = images.flatten(0, 1)
        seen = self.image(images if at is None else images[at])  # of single images, the real ones
        whole = self._over_views(seen, at, view_mask)
        pooled, weights = self.image_pool(whole.tokens, whole.mask)
        if self.image_pool_kind == "backbone":
            pooled = whole.pooled
        levels = {name: self._over_views(level, at, view_mask) for name, level in seen.levels.items()}
        return replace(whole, pooled=pooled, weights=weights, levels=levels)

    def _over_views(self, seen: Features, at: Tensor | None, view_mask: Tensor) -> ImageFeatures:
        """Features of the real views, one row each, as those of studies: tokens B V*N D side by side or B N D fused, pooled their mean over views."""
        (studies, views), cells = view_mask.shape, seen.tokens.shape[1]
        tokens, own = (_unfold(x, at, view_mask.shape) for x in (seen.tokens, seen.pooled))  # B V N D, B V D
        if self.views == "concat":
            raw, mask = tokens.flatten(1, 2), view_mask.repeat_interleave(cells, 1)  # B V*N D
            view = torch.arange(views, device=mask.device).repeat_interleave(cells).expand(studies, -1)
        else:
            across = tokens.transpose(1, 2)  # B N V D
            real = view_mask[:, None, :].expand(-1, cells, -1)
            fuse = masked_mean if self.views == "mean" else masked_max
            raw, mask = fuse(across, real), view_mask.any(1, keepdim=True).expand(-1, cells)  # B N D
            view = torch.full_like(mask, -1, dtype=torch.int64)
        return ImageFeatures(pooled=masked_mean(own, view_mask), tokens=raw, mask=mask, grid=seen.grid, view=view)

    # ------------------------------------------------------------------------------------------------- text

    def encode_text(
        self, ids: Tensor, mask: Tensor, units: Mapping[str, TextUnits], counts: Mapping[str, tuple[int, int]] | None = None
    ) -> tuple[TextFeatures, TextFeatures]:
        """B L, B L, units -> features after and before the projection; see `read`."""
        before, real = self.read(ids, mask, units, counts)
        after = replace(
            before,
            pooled=self._global("text", before.pooled, real.any(1)),
            tokens=self._local("text", "tokens", before.tokens, mask),
            units={n: replace(u, vectors=self._local("text", n, u.vectors, u.mask)) for n, u in before.units.items()},
        )
        return after, before

    def read(
        self, ids: Tensor, mask: Tensor, units: Mapping[str, TextUnits], counts: Mapping[str, tuple[int, int]] | None = None
    ) -> tuple[TextFeatures, Tensor]:
        """B L, B L, units -> features before the projection, and which units, B U, are pooled: those read alone, else sentences, else tokens.

        Where structures are read alone and there are none (a phrase by itself), sentences are. counts: of each kind of unit how many are
        real and the most tokens of one, where the host knows it; otherwise the device is asked for those that are read alone.
        """
        alone = "" if self.context == "report" else self.context if self.context in units else "sentence"
        if alone:  # as many tokens of each as the encoder reads
            whole = units[alone].tokens
            units = {**units, alone: replace(units[alone], tokens=whole & (whole.cumsum(-1) <= self.text.max_length - 2))}
        tokens, own = self._alone(ids, units[alone], *(counts or {}).get(alone, ())) if alone else (self.text(ids, mask), None)  # B L D, B U D
        if alone and alone != "sentence":  # what is in no structure was not read
            read = (units[alone].tokens & units[alone].mask.unsqueeze(-1)).any(1, keepdim=True)  # B 1 L
            rest = {n: replace(u, tokens=u.tokens & read) for n, u in units.items() if n != alone}
            units = {alone: units[alone], **{n: replace(u, mask=u.mask & u.tokens.any(-1)) for n, u in rest.items()}}
        how = {n: "mean" if n == "word" or self.sentence_pool == "cls" else self.sentence_pool for n in units}
        vectors = {n: own if n == alone else pool_units(tokens, u, how[n]) for n, u in units.items()}  # B U D each
        main = alone or ("sentence" if "sentence" in units else "")
        over, real = (vectors[main], units[main].mask) if main else (tokens, mask)
        pooled, weights = self.text_pool(over, real)
        raw = {n: UnitFeatures(v, units[n].mask, units[n].group, weights if n == main else None) for n, v in vectors.items()}
        return TextFeatures(pooled=pooled, tokens=tokens, mask=mask, grid=(mask.shape[1],), weights=None, units=raw), real

    # ------------------------------------------------------------------------------------------- projections

    def _global(self, side: str, x: Tensor, mask: Tensor) -> Tensor:
        """Pooled features B width -> B dim; zeros when nothing reads them."""
        return self.get_submodule(f"{side}_global")(x, mask) if self._reads(f"{side}.pooled") else x.new_zeros(1, 1).expand(len(x), self.dim)

    def _local(self, side: str, field: str, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens or units B N width -> B N dim through the local projection, or as a token of its own through pool and global one."""
        if not self._reads(f"{side}.{field}"):
            return x.new_zeros(1, 1, 1).expand(*x.shape[:2], self.dim)
        own = getattr(self, f"{side}_local")
        if own is not None:
            return own(x, mask)
        return self.get_submodule(f"{side}_global")(self.get_submodule(f"{side}_pool").values(x), mask)

    def _alone(self, ids: Tensor, units: TextUnits, count: int | None = None, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Each unit through the encoder by itself: its tokens put back where they stood, B L D, and its own vector (`sentence_pool`), B U D.

        A token of several units comes back as the first of them had it; each unit's vector is of its own reading.
        """
        member = units.tokens & units.mask.unsqueeze(-1)  # B U L
        at = real_places(member.any(-1), count)
        if not len(at):  # an encoder wants a row, and the other ranks a gradient of it: [CLS] [SEP], in the place of one that is not real
            at = at.new_zeros(1)
        study, mine = at // member.shape[1], member.flatten(0, 1)[at]  # S, S L: one row a sentence
        length = mine.sum(-1)
        longest = max(1, min(most, self.text.max_length - 2) if most is not None else int(length.max()))
        place = torch.sort(~mine, dim=-1, stable=True).indices[:, :longest]  # S longest: positions of its tokens, in order
        real = torch.arange(longest, device=ids.device) < length[:, None]
        rows = ids[study].gather(1, place).masked_fill(~real, 0)
        cls, sep = (ids.new_full((len(rows), 1), s) for s in self.special)
        ends = torch.cat([cls, rows, torch.zeros_like(cls)], 1)
        ends.scatter_(1, length[:, None] + 1, sep)
        seen = torch.arange(longest + 2, device=ids.device) < length[:, None] + 2
        out = self.text(ends, seen)  # S longest+2 D
        first, rest = upcast(out[:, 0]), out[:, 1 : longest + 1]
        if self.sentence_pool != "cls":
            one = real.any(1, keepdim=True)
            first = pool_units(rest, TextUnits(real.unsqueeze(1), one, one.long()), self.sentence_pool)[:, 0]
        firsts = member & (member.cumsum(1) == 1)  # B U L
        put = real & firsts.flatten(0, 1)[at].gather(1, place)  # S longest
        where = torch.where(put, study[:, None] * ids.shape[1] + place, ids.numel())  # what is not put back goes to a row that is dropped
        tokens = out.new_zeros(ids.numel() + 1, out.shape[-1]).index_put((where.flatten(),), rest.flatten(0, 1))[:-1]
        own = first.new_zeros(member[..., 0].numel(), out.shape[-1]).index_put((at,), first)
        return tokens.view(*ids.shape, -1), own.view(*member.shape[:2], -1)

    # ------------------------------------------------------------------------------------------------- wiring

    def wire(self, needs: frozenset[str], units: list[str], trained: frozenset[str] | None = None) -> None:
        """Check that the batch and the model give what the objectives need, and freeze what none of them trains.

        trained: those of the needs that get a gradient; None = all.
        """
        for need in sorted(needs - {"scale"}):
            owner, _, field = need.removeprefix("teacher.").partition(".")
            owner = owner.removesuffix("_raw")
            if need.removeprefix("teacher.").startswith("image_raw.levels."):  # which of them there are shows in the first step
                continue
            if owner == "text" and field not in ("pooled", "tokens") and field not in units:
                raise ConfigError(f"an objective needs '{need}', but data.units is {units}", f"add {field} to data.units")
            if owner in ("regions", "codes") and field not in self.heads:
                raise ConfigError(f"an objective needs '{need}', but there is no head '{field}'", f"add heads.{field} to the config")
            if owner in ("regions", "codes") and (owner == "codes") != (field in self.codes_of):
                name = "codebook" if owner == "codes" else "region_query"
                raise ConfigError(f"an objective needs '{need}', and heads.{field} is no {name}", f"choose another head, or add a {name}")
            if owner not in ("image", "text", "regions", "codes") or (owner == "image" and field not in ("pooled", "tokens")):
                raise ConfigError(f"an objective needs '{need}', which this model does not give", "choose another objective, or mend its `needs`")
        for label in self.heads:
            wanted = f"{'codes' if label in self.codes_of else 'regions'}.{label}"
            if wanted not in needs:  # a codebook does not train its region query
                raise ConfigError(f"no objective reads the head '{label}'", f"remove heads.{label}, or add an objective that needs {wanted}")
            if label in self.asked_by and self.asked_by[label] not in units:
                raise ConfigError(f"heads.{label} asks with '{self.asked_by[label]}', but data.units is {units}", "add it to data.units")
        if self.context != "report" and self.context not in units:
            raise ConfigError(f"text.context is '{self.context}', but data.units is {units}", f"add {self.context} to data.units")
        asked = {f"text_raw.{unit}" for unit in self.asked_by.values()} | ({"image.tokens"} if self.heads else set())
        self.reads = needs | asked
        trained = (needs if trained is None else trained) | asked
        local = {side: any(n.startswith(f"{side}.") and n != f"{side}.pooled" for n in trained) for side in ("image", "text")}
        if self.image_local is not None and not any(local.values()):
            raise ConfigError("no objective trains the local projections", "set model.local_heads=false, or add a local objective")
        for side in ("image", "text"):  # what no objective reaches must not wait for a gradient
            pool, wide, own = self.get_submodule(f"{side}_pool"), self.get_submodule(f"{side}_global"), getattr(self, f"{side}_local")
            pooled = f"{side}.pooled" in trained
            through_pool = local[side] and own is None
            if not pooled:
                pool.requires_grad_(False)
                wide.requires_grad_(through_pool)
                if through_pool and isinstance(pool, AttentionPool):
                    pool.value.requires_grad_(True)
                    pool.out.requires_grad_(True)
            if own is not None and not local[side]:
                own.requires_grad_(False)
            if not any(n.startswith((f"{side}.", f"{side}_raw.")) for n in trained):
                self.get_submodule(side).requires_grad_(False)
        if "scale" not in needs:
            self.log_scale.requires_grad_(False)


class Projected(nn.Module):
    """The image side of a model as a backbone: tokens B N dim AFTER the projection (what ELVIS keeps), without a pyramid.

    Its parts have the names they have in the model, so that a checkpoint's weights fit. `recipe` = {"image": ..., "projection": options},
    the options those of the model that it needs.
    """

    OPTIONS = ("dim", "hidden", "projection", "norm", "image_pool", "local_heads")
    PARTS = {True: ("image", "image_local"), False: ("image", "image_global", "image_pool")}  # with local heads, or without: its modules

    def __init__(
        self, image: nn.Module, *, dim: int, hidden: int, norm: str, image_pool: str, local_heads: bool, projection: str = "mlp"
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe = {
            "image": image.recipe,
            "projection": {
                "dim": dim, "hidden": hidden, "projection": projection, "norm": norm, "image_pool": image_pool, "local_heads": local_heads
            },
        }  # fmt: skip
        self.image = image
        wide = image.spec.width
        project = _projection(projection, wide, dim=dim, hidden=hidden, norm=norm)
        self.image_local, self.image_global, self.image_pool = (project, None, None) if local_heads else (None, project, None)
        if not local_heads:
            self.image_pool = AttentionPool(wide) if image_pool == "attention" else MeanPool()
        self.spec = replace(image.spec, width=dim, channels=(dim,), strides=image.spec.strides[-1:], depth_strides=image.spec.depth_strides[-1:])
        self.requires_grad_()

    def requires_grad_(self, requires_grad: bool = True) -> Projected:
        """All but what a pool asks with: no token passes it, and it must not wait for a gradient."""
        super().requires_grad_(requires_grad)
        if isinstance(self.image_pool, AttentionPool):
            self.image_pool.query.requires_grad_(False)
            self.image_pool.key.requires_grad_(False)
        return self

    def forward(self, image: Tensor) -> ImageFeatures:
        """image B C *S -> tokens B N dim on the backbone's grid; pooled = their mean."""
        seen = self.image(image)
        if self.image_local is not None:
            tokens = self.image_local(seen.tokens, seen.mask)
        else:
            tokens = self.image_global(self.image_pool.values(seen.tokens), seen.mask)
        return ImageFeatures(tokens.mean(1), tokens, seen.mask, seen.grid)


def build_image(recipe: Mapping[str, Any]) -> nn.Module:
    """A backbone of its recipe, or, of {"image": ..., "projection": ...}, a `Projected` one; randomly initialised."""
    from elvis.backbones import create_backbone

    return Projected(create_backbone(**recipe["image"]), **recipe["projection"]) if "projection" in recipe else create_backbone(**recipe)


def _unfold(x: Tensor, at: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Features of the real views, one row each, to their places `at` of B V ...; zeros where a study has no such view. None: one view each."""
    if at is not None:
        x = x.new_zeros(math.prod(shape), *x.shape[1:]).index_put((at,), x)
    return x.unflatten(0, shape)


def _region_query(width: int, long: int, *, name: str = "region_query", unit: str = "", **options: Any) -> RegionQuery | CrossQuery:
    kind = CrossQuery if "blocks" in options else {"region_query": RegionQuery}[name]
    return kind(width=width, **({"query_width": long} if unit else {}), **options)


def _codebook(heads: Mapping[str, nn.Module], label: str, given: Mapping[str, Any]) -> Codebook:
    of = given.get("of", "")
    if of not in heads or getattr(heads[of], "positions", None) is None:
        raise ConfigError(
            f"heads.{label} keeps codes of '{of}', which is no region query by position",
            f"add heads.{of}: {{name: region_query, unit: sentence, positions: N}}",
        )
    return Codebook(width=heads[of].positions, **{k: v for k, v in given.items() if k not in ("name", "of")})  # type: ignore[arg-type]


def build_model(recipe: Mapping[str, Any]) -> VisionLanguageModel:
    """A model from its recipe, randomly initialised (weights come from the checkpoint)."""
    from elvis.backbones import create_backbone
    from elvis.registry import TEXT_ENCODERS

    image = create_backbone(**recipe["image"])
    text = dict(recipe["text"])
    return VisionLanguageModel(image, TEXT_ENCODERS.create(text.pop("name"), **text), **recipe["model"])
