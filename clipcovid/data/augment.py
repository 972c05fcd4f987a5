"""Random changes to a batch of images, on the device that it is on."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from clipcovid.config import AugmentConfig
from clipcovid.randomness import stream_seed

RANDOM_NUMBERS_PER_IMAGE = 10  # uniform numbers that an image's changes are made from


class Augment:
    """Changes each image of a batch by numbers that follow from (seed, epoch, its row) alone.

    So an epoch can be replayed, and an image is changed alike whatever the number of workers or the batch it is in. Noise is
    drawn on the device, and is another on a GPU than on a CPU.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        moves = (config.rotate, config.shift, config.scale, config.flip)
        self.moves, self.colours = any(moves), any((config.intensity, config.noise))

    def __call__(self, images: torch.Tensor, epoch: int, rows: Sequence[int]) -> torch.Tensor:
        """Float32 images of 0–255 from images (n, h, w) or (n, h, w, c); the same ones where everything is switched off."""
        if not (self.moves or self.colours):
            return images
        draws = self._draws(epoch, rows).to(images.device)
        values = images.float().unsqueeze(1) if images.ndim == 3 else images.float().permute(0, 3, 1, 2)
        if self.moves:
            values = self._move(values, draws)
        if self.colours:
            values = self._colour(values, draws, epoch, rows)
        return values.squeeze(1) if images.ndim == 3 else values.permute(0, 2, 3, 1)

    def transform_masks(self, masks: torch.Tensor, epoch: int, rows: Sequence[int]) -> torch.Tensor:
        """uint8 masks of 0 and 255, (n, k, h, w), moved as their images are."""
        if not self.moves:
            return masks
        moved = self._move(masks.float(), self._draws(epoch, rows).to(masks.device))
        return (moved > 127.5).to(torch.uint8) * 255

    def matrices(self, draws: torch.Tensor) -> torch.Tensor:
        """Affine maps (n, 2, 3) from output to input coordinates, as `affine_grid` takes them."""
        config = self.config
        angle = torch.deg2rad(config.rotate * (2 * draws[:, 0] - 1))
        zoom = 1 / (1 + config.scale * (2 * draws[:, 1] - 1))
        mirror = torch.where(draws[:, 2] < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(zoom)
        shift = 2 * config.shift * (2 * draws[:, 3:5] - 1)  # the coordinates span 2
        cosine, sine = zoom * angle.cos(), zoom * angle.sin()
        rows = [
            torch.stack([mirror * cosine, -sine, shift[:, 0]], 1),
            torch.stack([mirror * sine, cosine, shift[:, 1]], 1),
        ]
        return torch.stack(rows, 1)

    def _draws(self, epoch: int, rows: Sequence[int]) -> torch.Tensor:
        generator = torch.Generator()
        return torch.stack(
            [
                torch.rand(RANDOM_NUMBERS_PER_IMAGE, generator=self._seeded(generator, "augment", epoch, row))
                for row in rows
            ]
        )

    def _noise(self, values: torch.Tensor, epoch: int, rows: Sequence[int]) -> torch.Tensor:
        """Standard normal numbers in the shape of `values`, on their device: a CPU's would take longer than a GPU's step."""
        generator = torch.Generator(values.device)
        noise = torch.empty(values.shape, device=values.device)
        for image, row in zip(noise, rows, strict=True):
            image.normal_(generator=self._seeded(generator, "noise", epoch, row))
        return noise

    def _seeded(self, generator: torch.Generator, stream: str, epoch: int, row: int) -> torch.Generator:
        return generator.manual_seed(stream_seed(stream, self.seed, epoch, row))

    def _move(self, values: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        grid = F.affine_grid(self.matrices(draws), list(values.shape), align_corners=False)
        return F.grid_sample(values, grid, align_corners=False)  # black beyond the border

    def _colour(self, values: torch.Tensor, draws: torch.Tensor, epoch: int, rows: Sequence[int]) -> torch.Tensor:
        share, each = self.config.intensity, (-1, 1, 1, 1)
        if share:
            gamma = torch.exp(share * (2 * draws[:, 5] - 1)).view(each)
            contrast = (1 + share * (2 * draws[:, 6] - 1)).view(each)
            bright = (255 * share / 2 * (2 * draws[:, 7] - 1)).view(each)
            values = (values / 255).clamp_(0, 1).pow(gamma) * 255
            middle = values.mean(dim=(1, 2, 3), keepdim=True)
            values = (values - middle) * contrast + middle + bright
        if self.config.noise:
            values = values + self._noise(values, epoch, rows) * (255 * self.config.noise * draws[:, 8]).view(each)
        return values.clamp(0, 255)
