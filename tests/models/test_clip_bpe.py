"""CLIP's tokenizer: the same IDs as open_clip's for any string."""

import random
import sys

import open_clip
import pytest
import torch

from clipkit.models import clip_bpe
from clipkit.models.clip_bpe import ClipBpe
from clipkit.models.tokenizer import OpenClipTokenizer

CONTEXT = 77

PIECES = [
    *["aA", "zZ", "0", "7", "!", "'", '"', "&", "<", ">", ";", "#", "/", "\\", "_", "-", ".", ",", "\t", "\n", "\r"],
    *("don't", "I'LL", "we've", "O'Clock", "'s", "''re", "rock'n'roll", "it’s", "“curly”", "‘q’", "…", "—"),
    *("&amp;", "&amp;amp;lt;", "&lt;b&gt;", "&#39;", "&#x27;", "&nbsp;", "&copy", "&notit;", "&;", "AT&T", "&AMP;"),
    *("<start_of_text>", "<end_of_text>", "<START_OF_TEXT>", "x<end_of_text>y", "<start_of_text", "<|endoftext|>"),
    *("cafe\u0301", "Å", "ﬁ", "Ｆｕｌｌ", "ﾊﾝｶｸ", "İstanbul", "ẞ", "ŉ", "ǅ", "Ω", "²", "½", "Ⅷ", "①", "٣", "१"),
    *("👩‍👩‍👧", "🐈", "🇩🇪", "1️⃣", "☺️", "\u200b", "\u200d", "\ufeff", "\u2028", "\u0085", "\u00a0", "\u3000"),
    *("\x00", "\x07", "\x1b[31m", "\x1c", "\x1f", "\x7f", "\x80", "\x93", "\ufffd", "\ud83d", "\udc08", "\ue000"),
    *("sÃ³", "âœ” No", "voilÃ", "Ã©tÃ©", "â€œ", "Ð¿Ñ€", "schön", "一张猫的照片", "фото", "صورة", "תמונה", "रंग"),
    *("supercalifragilisticexpialidocious", "x" * 90, "!" * 30, "'" * 9, "1234567890", "http://a.b/c?d=e&f=g"),
]  # fmt: skip


def random_text(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.3:  # any characters of one or several blocks, including invalid ones
        start = draw.choice([0x20, 0x80, 0x250, 0x370, 0x590, 0x900, 0xE00, 0x2000, 0x3000, 0xAC00, 0xFE00, 0x1F300])
        return "".join(chr(draw.randrange(start, start + 0x180)) for _ in range(draw.randrange(24)))
    if kind < 0.4:
        return "".join(chr(draw.randrange(sys.maxunicode + 1)) for _ in range(draw.randrange(12)))
    if kind < 0.6:
        return "".join(chr(draw.randrange(0x20, 0x7F)) for _ in range(draw.randrange(60)))
    words = draw.choices(PIECES, k=draw.randrange(160 if kind > 0.97 else 12))
    return draw.choice(["", " ", "  ", " a "]).join(words)


def check_equal(
    count: int, seed: int, padding: int | None = 0, native: open_clip.SimpleTokenizer | None = None
) -> None:
    native = native or open_clip.SimpleTokenizer()
    tokenizer = OpenClipTokenizer(native, None, CONTEXT, padding)
    assert tokenizer.bpe is not None
    draw = random.Random(seed)
    texts = ["", " ", *(random_text(draw) for _ in range(count - 2))]
    for start in range(0, count, 1000):
        some = texts[start : start + 1000]
        expected = native(some, context_length=CONTEXT)
        tokens = tokenizer(some)
        ids = tokens["input_ids"]
        if padding is None:
            assert list(tokens) == ["input_ids"]
        else:
            lengths = torch.tensor([min(len(native.encode(text)) + 2, CONTEXT) for text in some])
            assert tokens["attention_mask"].sum(1).tolist() == lengths.tolist()
            assert ids.shape[1] == int(lengths.max())
            assert not expected[:, ids.shape[1] :].any()
            expected = expected[:, : ids.shape[1]]
        different = (ids != expected).any(1).nonzero()[:, 0].tolist() if ids.shape == expected.shape else [0]
        assert not different, ascii(some[different[0]])
        assert ids.dtype == torch.int64
    assert tokenizer.count(texts[:200]) == [len(native.encode(text)) + 2 for text in texts[:200]]


def test_ids_equal_those_of_open_clip_for_3000_strings() -> None:
    check_equal(3000, 0)


@pytest.mark.slow
def test_ids_equal_those_of_open_clip_for_100000_strings() -> None:
    check_equal(100_000, 1)


@pytest.mark.parametrize("clean", ["canonicalize", "whitespace"])
def test_ids_equal_those_of_open_clip_for_other_kinds_of_cleaning(clean: str) -> None:
    check_equal(600, 2, native=open_clip.SimpleTokenizer(clean=clean))


def test_rows_have_the_full_length_for_towers_that_attend_to_padding() -> None:
    check_equal(600, 3, padding=None)


def test_a_full_cache_of_words_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_bpe, "_MOST_WORDS", 50)
    check_equal(600, 4)


def test_other_tokenizers_and_random_truncation_are_left_to_open_clip() -> None:
    assert not ClipBpe.supports(open_clip.SimpleTokenizer(reduction_mask="random"))
    assert not ClipBpe.supports(open_clip.SimpleTokenizer(additional_special_tokens=["two words"]))
    assert not ClipBpe.supports(object())


@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_contexts_truncate_like_open_clip(length: int) -> None:
    native = open_clip.SimpleTokenizer()
    texts = ["", "a", "a photo of a cat on a mat"]
    tokens = OpenClipTokenizer(native, None, length, 0)(texts)
    assert torch.equal(tokens["input_ids"], native(texts, context_length=length)[:, : tokens["input_ids"].shape[1]])
