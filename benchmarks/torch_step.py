"""One step of linear gradient matching in PyTorch, for `benchmarks/step.py` to compare with.

Written from the paper (arXiv 2511.16674, section 3 and appendix A). The `authors` way keeps two
habits of their public code that cost time: the backbone's weights require gradients, and so does
the forward pass of the real images. The `tuned` way has frozen weights, no graph of real images,
and a compiled backbone where `torch.compile` works. Both run in autocast unless it is float32.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_COLOR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_HEAD_STD, _LEARNING_RATE = 0.01, 0.002
# Keeps float16 gradients of images from vanishing; Adam does not see it.
_LOSS_SCALE = 1024.0


def make_model(architecture: str, side: int) -> torch.nn.Module:
    """timm's model with random weights and without a head."""
    torch.manual_seed(0)
    return timm.create_model(architecture, num_classes=0, img_size=side).eval()


class Step:
    """The state of a distillation, and its step.

    Args:
        model: The backbone.
        classes: Number of classes.
        copies: Augmentations of each of the synthetic images, one a class.
        resolution: Side of the images that crops are taken from, in pixels.
        crop: Side of what the backbone sees.
        dtype: What autocast computes in; float32 for none.
        tuned: Whether to do without what the authors' code wastes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        classes: int,
        copies: int,
        resolution: int,
        crop: int,
        dtype: torch.dtype,
        tuned: bool,
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.classes, self.copies, self.crop = classes, copies, crop
        self.dtype, self.tuned = dtype, tuned
        model = model.to(self.device).requires_grad_(not tuned)
        self.width = int(model.num_features)  # type: ignore[arg-type]
        self.compiled = False
        self.model: Callable[[torch.Tensor], torch.Tensor] = model
        batch = classes * copies
        self.real = torch.randint(
            0, 256, (batch, 3, resolution, resolution), dtype=torch.uint8, device=self.device
        )
        self.real_labels = torch.arange(batch, device=self.device) % classes
        sizes = [1]
        while sizes[-1] < resolution:
            sizes.append(min(2 * sizes[-1], resolution))
        self.resolution = resolution
        self.levels = [
            torch.nn.Parameter(torch.randn(classes, 3, n, n, device=self.device) / len(sizes))
            for n in sizes
        ]
        self.adam = torch.optim.Adam(self.levels, lr=_LEARNING_RATE)
        color = torch.tensor(_COLOR, device=self.device)
        self.color = color / color.norm(dim=0).max()
        self.mean, self.std = (
            torch.tensor(values, device=self.device)[:, None, None] for values in (_MEAN, _STD)
        )
        if tuned:
            self._compile(model)

    def _compile(self, model: torch.nn.Module) -> None:
        """Compiles the backbone, if that works here."""
        compiled = torch.compile(model)
        views = torch.zeros(2, 3, self.crop, self.crop, device=self.device, requires_grad=True)
        try:
            compiled(views).sum().backward()
        except Exception as error:  # Compilers fail in many ways; without one, eager is tuned.
            print(f"tuned: not compiled ({type(error).__name__})", flush=True)
            return
        self.model, self.compiled = compiled, True

    def __call__(self) -> float:
        """Makes a step and returns its loss."""
        kernel = _HEAD_STD * torch.randn(self.classes, self.width, device=self.device)
        target = self._head_gradient(self.features_real(), self.real_labels, kernel).detach()
        loss = self.update(kernel, target)
        self.adam.step()
        return loss

    def features_real(self) -> torch.Tensor:
        """Of the real batch, augmented."""
        with torch.set_grad_enabled(not self.tuned):
            return self._embed(self._augment(self.real.float() / 255))

    def update(self, kernel: torch.Tensor, target: torch.Tensor) -> float:
        """The gradient of the synthetic images for a head and the real images' head gradient."""
        images = self._render().repeat_interleave(self.copies, dim=0)
        labels = torch.arange(self.classes, device=self.device).repeat_interleave(self.copies)
        features = self._embed(self._augment(images))
        gradient = self._head_gradient(features, labels, kernel)
        loss = 1 - F.cosine_similarity(gradient, target, dim=0)
        self.adam.zero_grad()
        (_LOSS_SCALE * loss).backward()
        return loss.item()

    def timed(self, part: str) -> float:
        """Seconds of the whole step or of a part of it."""
        kernel = _HEAD_STD * torch.randn(self.classes, self.width, device=self.device)
        target = torch.randn(self.classes * (self.width + 1), device=self.device)
        parts: dict[str, Callable[[], object]] = {
            "step": self,
            "real": self.features_real,
            "synthetic": lambda: self.update(kernel, target),
        }
        self._wait()
        started = time.perf_counter()
        parts[part]()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _render(self) -> torch.Tensor:
        side = (self.resolution, self.resolution)
        total = sum(
            F.interpolate(level, size=side, mode="bilinear", align_corners=False)
            for level in self.levels
        )
        return torch.sigmoid(2 * torch.einsum("nihw,oi->nohw", total, self.color))

    def _augment(self, images: torch.Tensor) -> torch.Tensor:
        """Random resized crop, flip and noise, each image its own."""
        count = len(images)
        draw = torch.rand(5, count, device=self.device)
        area = 0.08 + 0.92 * draw[0]
        aspect = torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
        width = torch.sqrt(area * aspect).clamp(max=1)
        height = torch.sqrt(area / aspect).clamp(max=1)
        mirror = torch.where(torch.rand(count, device=self.device) < 0.5, -1.0, 1.0)
        transform = torch.zeros(count, 2, 3, device=self.device)
        transform[:, 0, 0], transform[:, 1, 1] = width * mirror, height
        transform[:, 0, 2] = (2 * draw[2] - 1) * (1 - width)
        transform[:, 1, 2] = (2 * draw[3] - 1) * (1 - height)
        shape = [count, 3, self.crop, self.crop]
        grid = F.affine_grid(transform, shape, align_corners=False)
        views = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
        chosen = (draw[4] < 0.5).float()[:, None, None, None]
        return views + chosen * 0.2 * torch.randn_like(views)

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        images = (images - self.mean) / self.std
        lowered = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=lowered):
            return self.model(images).float()

    def _head_gradient(
        self, features: torch.Tensor, labels: torch.Tensor, kernel: torch.Tensor
    ) -> torch.Tensor:
        weight = kernel.clone().requires_grad_()
        bias = torch.zeros(self.classes, device=self.device, requires_grad=True)
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        parts = torch.autograd.grad(loss, (weight, bias), create_graph=True)
        return torch.cat([part.flatten() for part in parts])


def save(model: torch.nn.Module, architecture: str, side: int, folder: Path) -> None:
    """Writes the model as timm's users publish theirs, for `lgm_jax.backbones.load`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "model_args": {"img_size": side, "num_classes": 0},
        "pretrained_cfg": {"mean": _MEAN, "std": _STD},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
