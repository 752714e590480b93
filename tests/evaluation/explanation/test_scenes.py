"""Planted scenes: small models trained on two objects per image point at the object of each text."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import clipkit
from clipkit.models import DualEncoder
from clipkit.models.image_processors import processor_class
from tests.conftest import COLOURS, SHAPES, clip_vocabulary, draw

KINDS = [(color, shape) for color in COLOURS for shape in SHAPES]
OBJECTS = [np.asarray(draw(*kind, size=16)) for kind in KINDS]
TEXTS = [f"a {color} {shape}" for color, shape in KINDS]


def scene(generator: np.random.Generator) -> tuple[NDArray[np.uint8], list[tuple[int, tuple[int, int]]]]:
    """Return an image with two objects of different colors, and their numbers and cells in a grid of 3 × 3."""
    pixels = np.full((48, 48, 3), 128, np.uint8)
    first = int(generator.integers(16))
    second = int(generator.choice([k for k in range(16) if KINDS[k][0] != KINDS[first][0]]))
    cells = [divmod(int(cell), 3) for cell in generator.choice(9, 2, replace=False)]
    objects = list(zip((first, second), cells, strict=True))
    for number, (row, column) in objects:
        pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = OBJECTS[number]
    return pixels, objects


def trained(folder: Path, steps: int) -> DualEncoder:
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    vocabulary, merges = clip_vocabulary(2000)
    end = len(vocabulary) - 1
    ids = {"vocab_size": end + 1, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = shape | ids | {"max_position_embeddings": 16}
    config = CLIPConfig(text_config=text, vision_config=shape | {"image_size": 48, "patch_size": 8}, projection_dim=32)
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[tuple(m.split()) for m in merges]).save_pretrained(folder)
    processor_class("CLIP")(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}).save_pretrained(folder)
    model = clipkit.load(str(folder)).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = model.text.tokenize(TEXTS)
    generator = np.random.default_rng(0)
    for _ in range(steps):
        scenes = [scene(generator) for _ in range(64)]
        pixels = torch.from_numpy(np.stack([one for one, _ in scenes])).permute(0, 3, 1, 2)
        image = F.normalize(model.image(model.image.ready({"pixel_values": pixels.contiguous()})), dim=-1)
        scores = 20 * image @ F.normalize(model.text(tokens), dim=-1).T
        targets = torch.tensor([[number for number, _ in objects] for _, objects in scenes])
        loss = -scores.log_softmax(dim=-1).gather(1, targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def convolutional(steps: int) -> DualEncoder:
    """Return a trained model of four stages of convolutions and one embedding per text."""
    widths = [3, 32, 64, 96, 128]

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.Sequential(
                *(
                    nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                    for a, b in pairwise(widths)
                )
            )
            self.head = nn.Linear(128, 32)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.head(self.stages(pixels).mean(dim=(2, 3)))

    class Texts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(16, 32)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.embedding(input_ids[:, 0])

    images, texts, generator = Images(), Texts(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW([*images.parameters(), *texts.parameters()], lr=2e-3)
    for _ in range(steps):
        scenes = [scene(generator) for _ in range(32)]
        pixels = torch.from_numpy(np.stack([one for one, _ in scenes])).permute(0, 3, 1, 2) / 64 - 2
        scores = 20 * F.normalize(images(pixels), dim=-1) @ F.normalize(texts.embedding.weight, dim=-1).T
        targets = torch.tensor([[number for number, _ in objects] for _, objects in scenes])
        loss = -scores.log_softmax(dim=-1).gather(1, targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return DualEncoder.from_modules(
        image_tower=images.eval(),
        text_tower=texts.eval(),
        preprocess=lambda image: torch.from_numpy(np.array(image.resize((48, 48)))).permute(2, 0, 1) / 64 - 2,
        tokenizer=lambda given: torch.tensor([[TEXTS.index(text) if text in TEXTS else 0] for text in given]),
    )


@pytest.mark.slow
def test_maps_of_a_convolutional_tower_point_at_the_object_of_each_text() -> None:
    model, generator, hits = convolutional(400), np.random.default_rng(1), 0
    for _ in range(30):
        pixels, objects = scene(generator)
        texts = [TEXTS[number] for number, _ in objects]
        shown = clipkit.explain(model, Image.fromarray(pixels), texts, score=False)
        for one, (_, cell) in zip(shown.texts, objects, strict=True):
            row, column = divmod(int(one.map.argmax()), len(one.map))
            hits += (row, column) == cell
    assert hits >= 0.95 * 60


@pytest.mark.slow
def test_maps_point_at_the_object_of_each_text(tmp_path: Path) -> None:
    model = trained(tmp_path, 400)
    generator = np.random.default_rng(1)
    hits = {"gradient": 0, "patches": 0, "occlusion": 0, "gradient against all": 0}
    for _ in range(60):
        pixels, objects = scene(generator)
        texts = [TEXTS[number] for number, _ in objects]
        for name in hits:
            method, _, others = name.partition(" against ")
            shown = clipkit.explain(
                model,
                Image.fromarray(pixels),
                texts,
                method=method,  # type: ignore[arg-type]
                against=TEXTS if others else (),
                score=False,
            )
            for one, (_, cell) in zip(shown.texts, objects, strict=True):
                side = len(one.map)
                row, column = divmod(int(one.map.argmax()), side)
                hits[name] += (int(3 * (row + 0.5) / side), int(3 * (column + 0.5) / side)) == cell
    # By chance 1/9.
    assert hits["gradient"] >= 0.7 * 120
    assert hits["patches"] >= 0.5 * 120
    assert hits["occlusion"] >= 0.92 * 120
    assert hits["gradient against all"] >= 0.88 * 120
