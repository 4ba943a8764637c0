"""What a training process imports by and by, within functions, imported at once: by a process whose forks are each to be one. Nothing is computed."""

import albumentations  # noqa: F401
import lightning.fabric  # noqa: F401
import timm  # noqa: F401
import torch._dynamo
import torch.distributed.optim  # noqa: F401
import torchmetrics  # noqa: F401

from elvis import assembly, checkpoints, config, evaluation, fabric, model, pretrain, pretrained, results, training  # noqa: F401
from elvis.data import augment, batches, phantoms  # noqa: F401

config.load("elvis_phantom")  # and what is registered
