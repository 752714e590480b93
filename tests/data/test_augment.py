"""Policies of images and views of captions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2 as T

from clipkit.data import Pairs, Policy, Sample, TextSafe, TextView, augment, read_pairs
from clipkit.data.preview import preview
from clipkit.errors import DataError
from clipkit.images import open_image
from clipkit.recipe import Step, policies, steps_of
from clipkit.seeds import mix
from tests.conftest import draw, write_csv

EVERY: list[Step] = [
    policies.Crop(), policies.Flip(p=1), policies.Flip(p=1, direction="vertical"), policies.Rotate(degrees=20),
    policies.Jitter(p=1), policies.Grayscale(p=1), policies.Blur(p=1), policies.Solarize(p=1), policies.Cutout(p=1),
    policies.RandAugment(),
]  # fmt: skip


def pixels(image: Image.Image | torch.Tensor) -> dict[str, torch.Tensor]:
    if isinstance(image, torch.Tensor):  # what a crop at the end gives
        return {"pixel_values": image.permute(1, 2, 0)}
    return {"pixel_values": torch.from_numpy(np.asarray(image).copy())}


def made(steps: list[Step], view: int = 1, epoch: int = 0, index: int = 0, seed: int = 0) -> torch.Tensor:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (140, 160, 3), dtype=np.uint8))
    return Policy(steps, 24, pixels, pixels, seed, view)(image, epoch, index)["pixel_values"]


@pytest.mark.parametrize("step", EVERY, ids=lambda step: step.name)
def test_every_step_changes_only_the_image(step: Step) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    changed = made([step])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made([step]), changed)
    plain = made([])
    assert changed.shape != plain.shape or not torch.equal(changed, plain)
    assert changed.shape == ((24, 24, 3) if step.name == "crop" else (140, 160, 3))


def test_steps_change_pixels_as_documented() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))

    def of(step: Step) -> np.ndarray:
        return np.asarray(Policy([step], 24, pixels, pixels, 0, 1).augmented(image, 0, 0))

    plain = np.asarray(image)
    assert (of(policies.Flip(p=1)) == plain[:, ::-1]).all()
    assert (of(policies.Flip(p=1, direction="vertical")) == plain[::-1]).all()
    assert (np.ptp(of(policies.Grayscale(p=1)), axis=2) == 0).all()
    assert (of(policies.Solarize(p=1, threshold=128)) == np.where(plain >= 128, 255 - plain, plain)).all()
    cut = of(policies.Cutout(p=1, scale=(0.25, 0.25)))
    assert 0.2 < (cut == 128).all(axis=2).mean() < 0.3
    assert (of(policies.Blur(p=1, sigma=(3, 3))).std() < 0.5 * plain.std()).all()
    turned = of(policies.Rotate(degrees=45))
    assert turned.shape == plain.shape
    assert (of(policies.Flip(p=0)) == plain).all()


@pytest.mark.parametrize("name", policies.POLICIES)
def test_random_choices_depend_on_seed_epoch_image_and_view(name: str) -> None:
    steps = list(steps_of(name))
    first = made(steps)
    assert torch.equal(made(steps), first)
    if name == "none":
        assert torch.equal(first, made(steps, view=2, epoch=3, index=4, seed=5))
        return
    others = [made(steps, view=2), made(steps, epoch=1), made(steps, index=1), made(steps, seed=1)]
    assert sum(not torch.equal(other, first) for other in others) == 4


def test_text_safe_does_not_flip_or_recolor_against_captions() -> None:
    said = ["a dog", "a man turns LEFT", "a white dog", "the right hand of a girl in reddish light", "a bright orange"]
    pairs = Pairs("made", [Path(str(n)) for n in range(4)], said, np.array([0, 1, 2, 3, 1]))
    safe = TextSafe(pairs)
    assert [safe.of(image) for image in range(4)] == [(True, True), (False, False), (True, False), (False, False)]
    for words in ("leftover rice on a plate", "a reddening of skin", "a tangled net"):
        assert TextSafe(Pairs("m", [Path("a")], [words], np.array([0]))).of(0) == (True, True), words

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    every = [step for step in EVERY if step.name in ("flip", "jitter", "grayscale", "solarize", "randaugment")]
    policy = Policy(every, 24, pixels, pixels, 0, 1, safe)
    assert np.array_equal(policy.augmented(image, 0, 1), image)
    assert not np.array_equal(policy.augmented(image, 0, 0), image)
    flipped = policy.augmented(image, 0, 2)
    assert np.array_equal(flipped, np.asarray(image)[::-1, ::-1])


@pytest.fixture
def pairs(tmp_path: Path, shapes: Path) -> Pairs:
    rows = [[str(shapes / "images/00.png"), f"one two three four five {n}", f"other {n}"] for n in range(3)]
    rows.append([str(shapes / "images/01.png"), "alone", "again"])
    return read_pairs(str(write_csv(tmp_path / "p.csv", ["image", "caption", "paraphrase"], rows)))


def test_views_of_captions(pairs: Pairs) -> None:
    sample = Sample(epoch=0, image=0, caption=1)
    assert TextView("same", pairs)(sample) == "one two three four five 1"
    assert TextView("paraphrase", pairs)(sample) == "other 1"
    siblings = {TextView("sibling", pairs, view=1)(sample._replace(epoch=epoch)) for epoch in range(20)}
    assert siblings == {"one two three four five 0", "one two three four five 2"}
    assert TextView("sibling", pairs)(Sample(0, 1, 3)) == "alone"
    crops = [TextView("crop", pairs, (0.5, 0.7), 0, 1)(sample._replace(epoch=epoch)) for epoch in range(30)]
    assert len(set(crops)) > 3
    assert {len(crop.split()) for crop in crops} == {3, 4}
    assert all(crop in "one two three four five 1" for crop in crops)
    assert crops[0] == TextView("crop", pairs, (0.5, 0.7), 0, 1)(sample)
    assert TextView("crop", pairs, (0.5, 0.7), 0, 1)(Sample(0, 1, 3)) == "alone"


def test_caption_views_refuse_data_without_their_columns(shapes: Path, tmp_path: Path) -> None:
    plain = read_pairs(str(write_csv(tmp_path / "p.csv", ["caption"], [["a"], ["b"]])), images=False)
    with pytest.raises(DataError, match="column named paraphrase"):
        TextView("paraphrase", plain)
    with pytest.raises(DataError, match="sibling"):
        TextView("sibling", plain)


def test_the_preview_shows_the_views_of_the_first_epoch(shapes: Path) -> None:
    pairs = read_pairs(str(shapes / "captions.csv"))
    steps = [policies.Crop(scale=(0.5, 1.0)), policies.Jitter(p=1)]
    sheet = preview(pairs, steps, count=3, views=2, size=40, safe=False, seed=3)
    assert sheet.size == (3 * 46 + 18, 3 * (46 + 16) + 6)
    own = Policy(steps, 40, pixels, pixels, 3, 2).augmented(Image.open(pairs.images[8]).convert("RGB"), 0, 8)
    left, top = 6 + 2 * 46 + 12, 6 + 62
    assert np.array_equal(sheet.crop((left, top, left + 40, top + 40)), own)
    kept = preview(pairs, steps, count=3, views=2, size=40, safe=True, seed=3)
    assert not np.array_equal(kept, sheet)


def test_the_blur_kernel_is_not_larger_than_the_image() -> None:
    for size in ((5, 9), (1, 1)):
        image = Image.new("RGB", size, (9, 8, 7))
        policy = Policy([policies.Blur(sigma=(0.1, 20), p=1)], 24, pixels, pixels, 0, 1)
        assert policy.augmented(image, 0, 0).size == size


def test_text_safe_limits_rotations() -> None:
    pairs = Pairs("m", [Path("a")], ["the left one"], np.array([0]))
    policy = Policy([policies.Rotate(degrees=180)], 24, pixels, pixels, 0, 1, TextSafe(pairs))
    sides = np.zeros((40, 40, 3), dtype=np.uint8)
    sides[:, :20] = 255
    for epoch in range(40):
        turned = np.asarray(policy.augmented(Image.fromarray(sides), epoch, 0))
        assert turned[20, 12:16].mean() > turned[20, 24:28].mean()


def test_draft_keeps_enough_pixels_for_the_smallest_crop(tmp_path: Path) -> None:
    policy = Policy(steps_of("simclr"), 32, pixels, pixels, 0)
    assert policy.draft == 114  # 32 / sqrt(0.08)
    assert Policy((), 32, pixels, pixels, 0).draft is None
    draw("red", "circle", 512).resize((640, 480)).save(tmp_path / "a.jpg", quality=95)
    draw("red", "circle", 512).resize((640, 480)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.jpg").size == (640, 480)
    for side, size in ((241, (640, 480)), (240, (320, 240)), (114, (160, 120)), (31, (80, 60))):
        assert open_image(tmp_path / "a.jpg", draft=side).size == size
        assert open_image(tmp_path / "a.png", draft=side).size == (640, 480)
    small, whole = open_image(tmp_path / "a.jpg", draft=240), open_image(tmp_path / "a.jpg").resize((320, 240))
    assert np.abs(np.asarray(small).astype(int) - np.asarray(whole)).mean() < 2


def test_crops_differ_from_pillow_by_at_most_one_level() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5))  # as smooth as a photograph
    for step in (policies.Crop(scale=(0.1, 1.0)), policies.Crop(scale=(0.9, 1.0))):
        for index in range(6):
            found = Policy([step], 24, pixels, pixels, 0).augmented(image, 0, index)
            torch.default_generator.manual_seed(mix(0, 2, 0, index))
            box = T.RandomResizedCrop(1, step.scale, step.ratio).make_params([image])
            left, top = box["left"], box["top"]
            expected = image.crop((left, top, left + box["width"], top + box["height"])).resize(
                (24, 24), Image.Resampling.BICUBIC
            )
            difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.25


@pytest.mark.parametrize(("spelling", "name"), [("grey", "grayscale"), ("gray", "grayscale"), ("solarise", "solarize")])
def test_other_spellings_of_a_step_are_accepted(spelling: str, name: str) -> None:
    assert policies.parse_policy(f"[{spelling}, {{name: {spelling}, p: 0.5}}]") == (
        *policies.parse_policy(f"[{name}]"),
        *policies.parse_policy(f"[{{name: {name}, p: 0.5}}]"),
    )


@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0)])
def test_random_crops_and_the_random_state_after_them_are_those_of_torchvision(scale: tuple[float, float]) -> None:
    step = policies.Crop(scale=scale)
    crop, theirs = augment._Crop(step, 8), T.RandomResizedCrop(8, step.scale, step.ratio)
    for number in range(150):
        image = Image.new("RGB", (1 + number * 37 % 300, 1 + number * 11 % (20 if number % 3 else 200)))
        torch.manual_seed(number)
        box = crop._box(image)
        state = torch.get_rng_state()
        torch.manual_seed(number)
        expected = theirs.make_params([image])
        assert torch.equal(torch.get_rng_state(), state)
        left, top = expected["left"], expected["top"]
        assert box == (left, top, left + expected["width"], top + expected["height"])


def test_a_resized_crop_has_channels_last_and_the_bytes_of_a_plain_one() -> None:
    image = Image.effect_noise((61, 47), 80).convert("RGB")
    crop = augment._Crop(policies.Crop(scale=(0.5, 1.0)), 24)
    torch.manual_seed(0)
    found = crop.bytes(image)
    torch.manual_seed(0)
    left, top, right, bottom = crop._box(image)
    pixels = T.functional.pil_to_tensor(image)[None, :, top:bottom, left:right].contiguous()
    expected = torch.nn.functional.interpolate(pixels, size=(24, 24), mode="bicubic", antialias=True)[0]
    assert torch.equal(found, expected)
    assert found[None].is_contiguous(memory_format=torch.channels_last)
