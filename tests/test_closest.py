from clipkit.closest import closest


def test_names_that_start_with_the_given_one_come_first() -> None:
    assert closest("imagenet", ["imagenet1k", "imagenet_a", "imagent"], count=2) == (
        "did you mean imagenet1k or imagenet_a?"
    )


def test_without_a_close_name_all_names_are_listed_up_to_a_limit() -> None:
    assert closest("xyz", ["b", "a"]) == "choose one of a, b"
    assert closest("xyz", [f"name{number}" for number in range(30)]).endswith(", …")
