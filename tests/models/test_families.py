"""Facts about model families, compared with transformers."""

from typing import Any

import pytest
import torch
import transformers

from clipkit.models.families import FAMILIES, TEXT_ENCODERS, TextEncoder, family_of_class, text_encoder

SMALL = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 300,
} | {f"{kind}_token_id": 0 for kind in ("pad", "bos", "eos", "cls", "sep")}  # fmt: skip
# Text encoders with models for sentences -> further options of a small configuration.
WITH_MASK: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 8},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 1, "use_bidirectional_attention": True},
    "modernbert": {"local_attention": 4},
    "mpnet": {},
    "qwen3": {"head_dim": 8, "num_key_value_heads": 1},
}


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


@pytest.mark.parametrize("model_type", WITH_MASK)
def test_padding_that_may_be_cut_changes_no_state(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type, **SMALL | WITH_MASK[model_type])
    assert text_encoder(config).padding == "cut"
    native = transformers.AutoModel.from_config(config).eval()
    mask = (torch.arange(9) < torch.tensor([[9], [5], [2]])).long()
    ids = torch.randint(1, 60, mask.shape) * mask
    padding = torch.zeros(3, 100, dtype=torch.long)
    with torch.no_grad():
        states = native(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        longer = native(
            torch.cat([ids, padding], dim=1),
            attention_mask=torch.cat([mask, padding], dim=1),
            output_hidden_states=True,
        ).hidden_states
    for state, other in zip(states, longer, strict=True):
        torch.testing.assert_close(state * mask[..., None], other[:, :9] * mask[..., None], rtol=0, atol=1e-5)


def test_unknown_text_encoder_keeps_its_padding() -> None:
    assert text_encoder(transformers.GPT2Config()) == TextEncoder("masked")
