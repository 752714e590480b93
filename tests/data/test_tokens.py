"""`TokenStore` gives the tokens of the tokenizer."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from clipkit.data import EpochSampler, InputMaker, TextView, TokenStore, pair_loader, read_pairs
from clipkit.models.tokenizer import Tokenizer, load_tokenizer, transformers_tokenizer

TEXTS = ["a dog", "a dog and a cat in the snow", "", "x " * 100, "a dog", "ünïcödé 🐕"]


def tokenizers(tiny_clip: Path) -> dict[str, Tokenizer]:
    return {
        "open_clip": load_tokenizer("open_clip:ViT-B-32", 77),
        "masked": transformers_tokenizer(tiny_clip, 32),
        "fixed": transformers_tokenizer(tiny_clip, 32, fixed=True, mask=False),
    }


@pytest.mark.parametrize("name", ["open_clip", "masked", "fixed"])
def test_stored_tokens_equal_those_of_the_tokenizer(name: str, tiny_clip: Path) -> None:
    tokenizer = tokenizers(tiny_clip)[name]
    store = TokenStore(TEXTS, tokenizer, tokenizer.context_length, tokenizer.pad_id)
    for rows in ([0], [1, 0], [2], [5, 3, 4, 0], [4, 0], range(6)):
        expected = tokenizer([TEXTS[row] for row in rows])
        found = store(list(rows))
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert found[key].dtype == values.dtype
            assert torch.equal(found[key], values)


def test_workers_tokenize_each_caption_once(shapes: Path) -> None:
    pairs = read_pairs(str(shapes / "captions.csv"))
    made = multiprocessing.get_context("fork").Value("i", 0)

    def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
        with made.get_lock():
            made.value += len(texts)
        return {"input_ids": torch.tensor([[len(text), 1] for text in texts])}

    store = TokenStore(pairs.captions, tokenize, 2, 0)
    sampler = EpochSampler(pairs, "one", 8, 0)
    maker = InputMaker({}, {"text_features": TextView("same", pairs)}, tokenize, store=store)
    for _ in range(2):
        for batch in pair_loader(pairs, sampler.slices(0, 20, slice(0, 8)), maker, 2):
            ids = batch.inputs["text_features"]["input_ids"]
            assert ids[:, 0].tolist() == [len(pairs.captions[row]) for row in batch.caption_rows.tolist()]
    assert made.value == 1 + len(pairs.captions)


def test_too_many_captions_do_not_fit() -> None:
    assert TokenStore.fits(1_000_000, 77)
    assert not TokenStore.fits(3_000_000, 77)
