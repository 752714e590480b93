"""Train several recipes one after the other in the processes of one launch; each process notes its last scale."""

import sys
from pathlib import Path

from clipkit.recipe import Recipe
from clipkit.report import run as report
from clipkit.training.run import Run
from clipkit.training.stop import StopRequest
from tests.training.conftest import not_drawn

if __name__ == "__main__":
    report.line_chart = not_drawn
    for file in sys.argv[1:]:
        run = Run(Recipe.from_yaml(file), StopRequest())
        run.go(resume=False, overwrite=False)
        run.folder.release()
        index, count = run.processes.index, run.processes.count
        Path(f"{run.folder.path}-{index}-of-{count}.txt").write_text(run.model.logit_scale.item().hex())
