"""Run the suite of a file with a model, using the Hub's real client; started by test_wds."""

import json
import sys
from pathlib import Path

from clipkit.evaluation.suites import read_suite, run_suite

if __name__ == "__main__":
    file, model, out = sys.argv[1:]
    result = run_suite(read_suite(file), [model], Path(out), cache=False)
    print(json.dumps(result.to_dict()))
