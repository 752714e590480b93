"""Real images and captions on which an export is proven, where the user gives none of their own."""

from PIL import Image

CAPTIONS = (
    "a photo of a cat",
    "A black dog and a spotted dog are fighting.",
    "Two dogs of different breeds looking at each other on the road, in front of a red-brick house!",
    "x",
    "the  two   spaces",
    "Ein Mädchen läuft über die Brücke; «où est-il ?» – 犬が走る 🐕",
    "3 of 7 people (aged 20–35) wear T-shirts & jeans: it's 50% off, isn't it?",
    # Longer than any context, so that it has to be cut.
    "a long caption of a street at night with many people and cars and lights and shops and signs " * 8,
)


def images() -> list[Image.Image]:
    """Photographs in several sizes and shapes, a grey one and one in a palette among them."""
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
    """The image, its longer side a little shorter where a square in its middle would not lie on whole pixels.

    Resized to `image_size` on its shorter side, what is cut off on both sides of the longer one may be an odd number of
    pixels. Then it is a library's own choice where the middle lies, and no property of the model.
    """
    shorter = min(image.size)
    if image_size is None or image.width == image.height:
        return image
    longer = max(image.size)
    while (longer * image_size // shorter - image_size) % 2:
        longer -= 1
    return image.crop((0, 0, longer, shorter) if image.width > image.height else (0, 0, shorter, longer))
