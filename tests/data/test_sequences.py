from clipkit.data.sequences import evenly_spaced


def test_positions_are_evenly_spaced_and_include_both_ends() -> None:
    assert evenly_spaced(11, 3) == [0, 5, 10]
    assert evenly_spaced(3, 8) == [0, 1, 2]
    assert evenly_spaced(1, 8) == [0]
    assert len(evenly_spaced(1000, 8)) == 8
