"""Train several recipes in turn in the processes of one launch; each process writes its last scale to a file."""

import sys
from pathlib import Path

from clipkit.recipe import Recipe
from clipkit.report import run as report
from clipkit.training.folder.run_folder import RunFolder, claimed
from clipkit.training.plan import make_plan
from clipkit.training.run import run
from clipkit.training.stop import StopRequest
from tests.charts import not_drawn

if __name__ == "__main__":
    report.line_chart = not_drawn
    for file in sys.argv[1:]:
        recipe = Recipe.from_yaml(file)
        plan = make_plan(recipe)
        with claimed(RunFolder(recipe.output), plan.processes, resume=False, overwrite=False) as folder:
            run(plan, folder, StopRequest())
        index, count = plan.processes.index, plan.processes.count
        Path(f"{folder.path}-{index}-of-{count}.txt").write_text(plan.model.logit_scale.item().hex())
