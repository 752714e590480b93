"""Default images and captions for verifying an export."""

from PIL import Image

CAPTIONS = (
    "a photo of a cat",
    "A black dog and a spotted dog are fighting.",
    "Two dogs of different breeds looking at each other on the road, in front of a red-brick house!",
    "x",
    "the  two   spaces",
    "Ein Mädchen läuft über die Brücke; «où est-il ?» – 犬が走る 🐕",
    "3 of 7 people (aged 20–35) wear T-shirts & jeans: it's 50% off, isn't it?",
    # Longer than any context length, so that it is cut.
    "a long caption of a street at night with many people and cars and lights and shops and signs " * 8,
)


def images() -> list[Image.Image]:
    """Return photographs of several sizes and shapes, including a gray image and a palette image."""
    from sklearn.datasets import load_sample_images

    temple, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    return [
        temple,
        flower,
        temple.crop((40, 10, 263, 417)),
        flower.crop((200, 100, 301, 170)),
        temple.crop((300, 80, 600, 380)).convert("L"),
        flower.resize((97, 64)).convert("P"),
    ]


def with_even_margins(image: Image.Image, image_size: int | None) -> Image.Image:
    """Shorten the longer side until the center crop is aligned to whole pixels.

    If the shorter side is resized to `image_size`, an odd number of pixels may be left over on the longer one. Then
    libraries disagree about the middle, which is not a property of the model.
    """
    shorter = min(image.size)
    if image_size is None or image.width == image.height:
        return image
    longer = max(image.size)
    while (longer * image_size // shorter - image_size) % 2:
        longer -= 1
    return image.crop((0, 0, longer, shorter) if image.width > image.height else (0, 0, shorter, longer))
