from clipkit.evaluation.tasks.task import Task, task_of
from clipkit.tasks import TASKS, hub_name_of, readable, title_of


def test_every_row_of_the_table_has_a_task() -> None:
    for name, row in TASKS.items():
        assert isinstance(task_of(name), Task)
        assert row.main_metric in row.headlines
    assert len({id(task_of(name)) for name in TASKS}) == len(TASKS)


def test_unknown_tasks_and_metrics_are_shown_by_their_name() -> None:
    assert (title_of("views"), title_of("new")) == ("Views of images", "new")
    assert (hub_name_of("probe"), hub_name_of("new")) == ("image-classification", "new")
    assert readable("new@3") == "new@3"
