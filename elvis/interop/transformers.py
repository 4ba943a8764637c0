"""Checkpoints of ours as models of transformers: AutoModel, AutoImageProcessor and AutoTokenizer open a folder that `export` wrote.

    import elvis.interop.transformers                                  # tells transformers what the model type "elvis" is
    elvis.interop.transformers.export("runs/elvis_phantom", "handed-on")
    model, processor = AutoModel.from_pretrained("handed-on"), AutoImageProcessor.from_pretrained("handed-on")
    model(**processor("film.png")).last_hidden_state                   # B N D, as elvis.load_backbone gives it; pooler_output B D; grid
    model.get_image_features(...), model.get_text_features(...)        # after the projections: B dim, comparable by cosine

    config.json  model.safetensors  preprocessor_config.json  tokenizer.json  tokenizer_config.json  README.md  manifest.json

No code is taken from a folder (no trust_remote_code), every weight must be in it, and the bytes of a local one are checked against its manifest.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.utils import ModelOutput, can_return_tuple

from elvis.checkpoints import MANIFEST, load_pretrained, resolve, verify, write
from elvis.checkpoints.border import believed, plausible
from elvis.data import frames
from elvis.data.frames import VolumePreprocess
from elvis.data.tokenizer import Tokenizer
from elvis.errors import CheckpointError, ConfigError, DataError
from elvis.model import build_model
from elvis.notice import NOTICE
from elvis.types import TextUnits


class ElvisConfig(PreTrainedConfig):
    """`recipe`: what the model is rebuilt from, as in a checkpoint's model.json."""

    model_type = "elvis"

    recipe: dict | None = None
    hidden_size: int | None = None  # D of the image tokens
    projection_dim: int | None = None  # of the space that images and texts share
    notice: str = NOTICE


@dataclass
class ElvisOutput(ModelOutput):
    """Tokens B N D, their summary B D, and, of images, where the tokens lie: (H, W) or (Z, H, W), row-major."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    grid: tuple[int, ...] | None = None


class ElvisModel(PreTrainedModel):
    config_class = ElvisConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: ElvisConfig) -> None:
        super().__init__(config)
        plausible(config.recipe, Path("config.json"))
        with believed(Path("config.json")):
            self.model = build_model(config.recipe or {})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module has its own way, and did it when it was built."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """As transformers does, strictly. Raises CheckpointError for damaged files, and weights that are not those of the model."""
        folder, informed = Path(pretrained_model_name_or_path), options.pop("output_loading_info", False)
        if (folder / MANIFEST).is_file():
            verify(folder, needed=("model.safetensors",))
        both: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **options)
        model, found = both
        if unfit := {kind: found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if found[kind]}:
            listed = ", ".join(f"{len(names)} {kind} such as {str(min(names))[:60]}" for kind, names in unfit.items())
            raise CheckpointError(f"{folder}: weights do not fit the model: {listed}", "export the checkpoint again")
        # transformers built it in shapes alone: memory formats, and buffers that are in no file, are those of one that is really built
        whole = cls(model.config).to(model.device, model.dtype)
        whole.load_state_dict(model.state_dict())
        return (whole.eval(), found) if informed else whole.eval()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **_: Any) -> ElvisOutput:
        """pixel_values B C *S -> the backbone's tokens, before the projection."""
        seen = self.model.image(pixel_values)
        return ElvisOutput(seen.tokens, seen.pooled, seen.grid)

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **_: Any) -> ElvisOutput:
        """pixel_values B C *S -> tokens and summary after the projection, B N dim and B dim (not normalised)."""
        one = torch.ones(len(pixel_values), 1, dtype=torch.bool, device=pixel_values.device)
        seen, _raw = self.model.encode_image(pixel_values.unsqueeze(1), one)
        return ElvisOutput(seen.tokens, seen.pooled, seen.grid)

    @can_return_tuple
    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> ElvisOutput:
        """input_ids B L, each a phrase -> the phrase as image tokens are compared with it, B 1 dim, and as a whole image is, B dim."""
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        words = mask.clone()
        for special in self.model.special:
            words &= input_ids != special
        words = words.unsqueeze(1)  # B 1 L
        units = TextUnits(words, words.any(-1), torch.zeros_like(words[..., 0], dtype=torch.int64))
        text, _raw = self.model.encode_text(input_ids, mask, {"sentence": units})
        return ElvisOutput(text.units["sentence"].vectors, text.pooled)


class ElvisImageProcessor(BaseImageProcessor):
    """Images or volumes -> pixel_values B C *S, exactly what `Preprocess` makes of them. `elvis`: a checkpoint's preprocess.json."""

    model_input_names = ["pixel_values"]

    def __init__(self, elvis: dict[str, Any] | None = None, channels: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.elvis, self.channels = elvis, channels

    def preprocess(
        self, images: Any, spacing: Sequence[Sequence[float]] = (), return_tensors: str | None = "pt", **_: Any
    ) -> BatchFeature:  # fmt: skip
        """images: one or a list of paths (PNG, JPEG, DICOM; NIfTI and series for a 3D model), PIL images, and arrays uint8 H W or H W 3, or Z Y X.

        spacing: of each volume, (z, y, x) in mm, where it does not tell itself. Raises DataError for what is neither, BadImage for unreadable files.
        """
        with believed(Path("preprocessor_config.json")):
            own = frames.from_json(self.elvis or {})
        each = list(images) if isinstance(images, list | tuple) else [images]
        pixels = np.stack([_pixels(own, image, where) for image, where in zip(each, spacing or [()] * len(each), strict=True)])
        return BatchFeature({"pixel_values": own.tensor(pixels, self.channels)}, tensor_type=return_tensors)


def _pixels(own: Any, image: Any, spacing: Sequence[float]) -> np.ndarray:
    """uint8 *S of an image or volume of any kind."""
    if isinstance(image, str | Path):
        return own.show(Path(image), spacing)
    volumes = isinstance(own, VolumePreprocess)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and not volumes:
        image = Image.fromarray(image)
    if isinstance(image, Image.Image) and image.mode in ("1", "L", "P", "RGB", "RGBA"):
        image = np.asarray((image if image.mode in ("1", "L") else image.convert("RGB")).convert("L"))  # as elvis.data.images reads a file
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = f"{type(image).__name__} {getattr(image, 'mode', getattr(image, 'dtype', ''))}"
        raise DataError(f"an image is a path, a PIL image of 8 bits or a uint8 array, not {kind}", "give the path of a file with more bits")
    return own.resize(image, spacing)


def export(checkpoint: Path | str, out: Path | str) -> Path:
    """A checkpoint, or the best one of a run, as a new folder for transformers. Raises CheckpointError, ConfigError."""
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} is there already", "give a new folder")
    folder = resolve(checkpoint)
    whole = load_pretrained(folder)
    spec = whole.model.image.spec
    model = ElvisModel(ElvisConfig(recipe=whole.model.recipe, hidden_size=spec.width, projection_dim=whole.model.dim))
    model.model.load_state_dict(whole.model.state_dict())

    def fill(stage: Path) -> None:
        model.save_pretrained(stage)
        ElvisImageProcessor(elvis=whole.preprocess.to_json(), channels=spec.in_channels).save_pretrained(stage)
        _tokenizer(whole.tokenizer, whole.max_tokens).save_pretrained(stage)
        if (folder / "MODEL_CARD.md").is_file():
            shutil.copyfile(folder / "MODEL_CARD.md", stage / "README.md")

    return write(out, fill)


def _tokenizer(own: Tokenizer, longest: int) -> PreTrainedTokenizerFast:
    """The same ids of a text as `Tokenizer.encode([text], longest)`."""
    backend = tokenizers.Tokenizer.from_str(own.backend.to_str())
    names = {kind: backend.id_to_token(id) for kind, id in (("pad", own.pad_id), ("cls", own.cls_id), ("sep", own.sep_id))}
    ends = [(names["cls"], own.cls_id), (names["sep"], own.sep_id)]
    backend.post_processor = TemplateProcessing(single=f"{names['cls']} $A {names['sep']}", special_tokens=ends)
    special = {f"{kind}_token": name for kind, name in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **special, model_max_length=longest, split_special_tokens=True, model_input_names=["input_ids", "attention_mask"]
    )  # fmt: skip


AutoConfig.register("elvis", ElvisConfig, exist_ok=True)
AutoModel.register(ElvisConfig, ElvisModel, exist_ok=True)
AutoImageProcessor.register(
    ElvisConfig, image_processor_classes={"torchvision": ElvisImageProcessor, "pil": ElvisImageProcessor}, exist_ok=True
)  # fmt: skip
