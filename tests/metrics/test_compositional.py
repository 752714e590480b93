import pytest
import torch

from clipkit.metrics import selection


@pytest.mark.parametrize(("images", "texts"), [(1, 2), (2, 2)])
def test_equals_clip_benchmark(images: int, texts: int) -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.image_caption_selection")
    image, text = torch.randn(40, images, 8), torch.randn(40, texts, 8)

    class Model:
        """A model whose images and tokens already are features."""

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return text.view(-1, 8)[tokens]

    rows = [[str(k * texts + c) for c in range(texts)] for k in range(40)]
    loader = [(image[:, :, :, None, None], rows)]
    expected = theirs.evaluate(
        Model(), loader, lambda names: torch.tensor([int(name) for name in names]), "cpu", amp=False
    )
    scores = torch.einsum("kid,kcd->kic", *(torch.nn.functional.normalize(part, dim=-1) for part in (image, text)))
    text_right, image_right = selection(scores)
    assert expected["text_acc"] == pytest.approx(text_right.double().mean().item(), abs=1e-6)
    assert expected["image_acc"] == pytest.approx(image_right.double().mean().item(), abs=1e-6)
    assert expected["acc"] == pytest.approx((text_right & image_right).double().mean().item(), abs=1e-6)


def test_ties_go_to_the_first_candidate() -> None:
    text, image = selection(torch.ones(1, 2, 2))
    assert not text.item()  # the second image chooses the first caption too
    assert not image.item()
    assert selection(torch.ones(1, 1, 2))[0].item()
