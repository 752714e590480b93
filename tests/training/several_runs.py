"""Train several recipes in turn in the processes of one launch.

Each process writes its last scale to a .txt file, and its collective operations to a .calls file.
"""

import sys
from pathlib import Path

from clipkit.recipe import Recipe
from clipkit.report import run as report
from clipkit.training.folder.run_folder import RunFolder, claimed
from clipkit.training.plan import make_plan
from clipkit.training.run import run
from clipkit.training.stop import StopRequest
from tests.charts import not_drawn
from tests.collectives import recorded

if __name__ == "__main__":
    report.line_chart = not_drawn
    calls: list[str] = []
    recorded(calls)
    for file in sys.argv[1:]:
        calls.clear()
        recipe = Recipe.from_yaml(file)
        plan = make_plan(recipe)
        with claimed(RunFolder(recipe.output), plan.processes, resume=False, overwrite=False) as folder:
            run(plan, folder, StopRequest())
        index, count = plan.processes.index, plan.processes.count
        Path(f"{folder.path}-{index}-of-{count}.txt").write_text(plan.model.logit_scale.item().hex())
        Path(f"{folder.path}-{index}-of-{count}.calls").write_text("\n".join(calls))
