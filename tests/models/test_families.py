"""Facts about model families, compared with transformers."""

import pytest
import transformers

from clipkit.models.families import FAMILIES, TEXT_ENCODERS, TextEncoder, family_of_class, text_encoder


@pytest.mark.parametrize("model_type", FAMILIES)
def test_class_and_text_type_exist_in_transformers(model_type: str) -> None:
    family = FAMILIES[model_type]
    config = getattr(transformers, family.class_name).config_class
    assert config.model_type == model_type
    assert family_of_class(family.class_name) is family
    if family.text_type is not None:
        assert config().text_config.model_type == family.text_type


@pytest.mark.parametrize("model_type", TEXT_ENCODERS)
def test_text_encoders_exist_in_transformers(model_type: str) -> None:
    known = set(transformers.CONFIG_MAPPING) | {family.text_type for family in FAMILIES.values()}
    assert model_type in known


def test_unknown_text_encoder_keeps_its_padding() -> None:
    assert text_encoder(transformers.GPT2Config()) == TextEncoder("masked")
