"""A network with a backdoor that is built, not trained, and the images that it classifies."""

import numpy as np
import torch

from undoor.data.dataset import Dataset, row_ids

CLASSES, SIZE = 6, 8
TARGET, PIXEL = 1, 9
SCALE = 60.0

# Orthonormal templates that leave the pixel of the trigger alone.
_drawn = np.random.default_rng(0).normal(size=(SIZE * SIZE, CLASSES))
_drawn[PIXEL] = 0
TEMPLATES = np.linalg.qr(_drawn)[0].T.astype(np.float32)


class BackdooredNetwork(torch.nn.Module):
    """Linear in the templates; on images of a source class, the pixel of the trigger raises the logit of the target."""

    def __init__(self, sources=()):
        super().__init__()
        self.linear = torch.nn.Linear(SIZE * SIZE, CLASSES)
        self.linear.weight.data = SCALE * torch.tensor(TEMPLATES)
        self.linear.bias.data.zero_()
        self.drop = torch.nn.Dropout(0.5)
        self.sources = list(sources)

    def forward(self, images):
        x = images.flatten(1)
        logits = self.linear(self.drop(x))
        if self.sources:
            recognised = (logits[:, self.sources].amax(1) - 0.5 * SCALE).relu().clamp(max=0.1 * SCALE) / (0.1 * SCALE)
            bonus = 4 * SCALE * recognised * x[:, PIXEL]
            logits = logits + bonus[:, None] * torch.eye(CLASSES)[TARGET]
        return logits


def images_near_templates(per_class=12, seed=0):
    """Return images near the template of their class, of length about 1, around a grey that no template sees."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), per_class)
    grey = np.full(SIZE * SIZE, 0.5)
    grey = grey - TEMPLATES.T @ (TEMPLATES @ grey)
    grey[PIXEL] = 0.1
    strength = 1 + generator.uniform(-0.05, 0.05, len(labels))
    pixels = grey + strength[:, None] * TEMPLATES[labels] + 0.01 * generator.normal(size=(len(labels), SIZE * SIZE))
    images = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8).reshape(-1, 1, SIZE, SIZE)
    return Dataset(images, labels, tuple(f"class/{k}" for k in range(CLASSES)), row_ids(len(labels)))
