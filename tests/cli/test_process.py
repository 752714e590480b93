"""Settings of the process of a command."""

import gc

from clipkit.cli.process import without_collection


def test_garbage_collection_pauses_and_ignores_what_was_created() -> None:
    is_enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    try:
        with without_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == is_enabled
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
