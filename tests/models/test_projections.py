"""Projections of coordinates: dropout in training only, and the same weights with and without it."""

import torch

from clipkit.models.projections import linear_of, projection_of_coordinates


def test_dropout_drops_features_before_a_linear_projection() -> None:
    head = projection_of_coordinates(6, 6, "linear", 0.5)
    torch.nn.init.eye_(linear_of(head).weight)
    plain = projection_of_coordinates(6, 6, "linear", 0.0)
    plain.load_state_dict(head.state_dict())
    features = torch.rand(1, 6).expand(20_000, 6)
    for equal in (plain.train(), plain.eval(), head.eval()):
        assert torch.equal(equal(features), features)
    torch.manual_seed(0)
    dropped = head.train()(features)
    assert len(dropped.unique(dim=0)) == 2**6  # each feature is dropped or doubled
    torch.testing.assert_close(dropped.mean(dim=0), features[0], rtol=0, atol=0.05)
