"""Real pictures and captions on which an export is proven, where the user gives none of their own."""

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


def pictures() -> list[Image.Image]:
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
