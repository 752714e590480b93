"""Calibrated relevance: on features whose matches are known, what is stated is what is found."""

import numpy as np
import pytest

from clipkit.search.relevance import (
    Calibration,
    Nulls,
    _curve,
    fit,
    hub_statistics,
    is_short,
    judged,
    known_queries,
    regression,
)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, list[list[str]], dict[str, np.ndarray]]:
    """300 images with a caption each; features of caption and image are a noisy common vector."""
    generator = np.random.default_rng(0)
    common = unit(generator.standard_normal((300, 32)))
    images = unit(common + 0.18 * generator.standard_normal((300, 32))).astype(np.float16)
    names = [[f"thing number {row}"] for row in range(300)]
    texts = {text: unit(common[row] + 0.02 * generator.standard_normal(32)) for row, (text,) in enumerate(names)}
    return images, names, texts


def test_hub_statistics_are_those_of_a_loop(world: tuple[np.ndarray, list[list[str]], dict[str, np.ndarray]]) -> None:
    images, _, texts = world
    features = np.array(list(texts.values()), np.float16)
    hubs = hub_statistics(images, features, [[row] for row in range(300)])
    for row in (0, 17, 299):
        others = [float(images[row].astype(float) @ features[text].astype(float)) for text in range(300) if text != row]
        assert hubs[row] == pytest.approx([np.mean(others), np.std(others)], abs=1e-5)


def test_stated_probabilities_are_found(world: tuple[np.ndarray, list[list[str]], dict[str, np.ndarray]]) -> None:
    images, names, texts = world
    features = np.array(list(texts.values()), np.float16)
    nulls = Nulls(images, hub_statistics(images, features, [[row] for row in range(300)]))

    def encode(several: list[str]) -> np.ndarray:
        return np.array([texts.get(text, np.ones(32) / 32**0.5) for text in several], np.float32)

    fitted = Calibration(**fit(nulls, names[:150], encode)["long"])  # type: ignore[arg-type]
    queries = [query for query in known_queries(names) if not is_short(query.text) and int(query.relevant[0]) >= 150]
    results = [(fitted.probabilities(x), y) for _, x, y in judged(nulls, queries, encode([q.text for q in queries]))]
    probabilities, labels = (np.concatenate([result[n] for result in results]) for n in (0, 1))
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
        inside = (probabilities >= low) & (probabilities < high)
        noise = 3 * (probabilities[inside] * (1 - probabilities[inside])).sum() ** 0.5 + 1
        assert abs(probabilities[inside].sum() - labels[inside].sum()) < noise + 0.05 * inside.sum()
    shown = probabilities >= fitted.threshold(0.9)
    assert labels[shown].mean() > 0.85
    assert labels[shown].sum() > 0.5 * labels.sum()


def test_regression_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression  # the package itself does not need it

    generator = np.random.default_rng(0)
    evidence = generator.normal(3, 5, (400, 7))
    relevant = evidence[:, 0] + generator.normal(0, 4, 400) > 5
    found = regression([evidence[:100], evidence[100:]], [relevant[:100], relevant[100:]])
    assert found is not None
    theirs = LogisticRegression(C=10, max_iter=2000, tol=1e-8)
    theirs.fit((evidence - evidence.mean(axis=0)) / evidence.std(axis=0), relevant)
    assert found.weights == pytest.approx(theirs.coef_[0], abs=1e-4)
    assert found.bias == pytest.approx(theirs.intercept_[0], abs=1e-4)
    assert regression([evidence], [np.ones(400, bool)]) is None


def test_the_threshold_is_the_lowest_that_reaches_a_precision() -> None:
    probabilities = np.linspace(1, 0, 1000)
    labels = np.arange(1000) < 300
    calibration = Calibration([], [], [], 0, 0, _curve(probabilities, labels))
    assert 0.66 < calibration.threshold(0.9) < 0.70  # 300 right of 333
    assert calibration.threshold(0.999) > 1  # too few results to promise it


def test_words_are_queries_for_the_images_that_mention_them_often() -> None:
    captions = [["a dog", "the dog", "snow"], ["one dog here", "x", "y"], ["dog", "a dog", "z"]] + [["w"]] * 20
    dog = next(query for query in known_queries(captions) if query.text == "dog" and len(query.relevant) == 2)
    assert dog.relevant.tolist() == [0, 2]
    assert dog.unknown.tolist() == [1]
