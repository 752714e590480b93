"""Push the models named on standard input, one per line, and print the results; run by test_push."""

import json
import os
import sys
from pathlib import Path

import clipkit
from clipkit.errors import ModelError
from clipkit.models.publish.push import push

if __name__ == "__main__":
    for line in sys.stdin:
        what = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if what["token"]:
            os.environ["HF_TOKEN"] = what["token"]
        try:
            if what["by"] in ("model", "changed model"):
                model = clipkit.load(what["folder"])
                if what["by"] == "changed model":
                    model.logit_scale.data += 1
                answer = {"url": model.push(what["repository"])}
            elif what["by"] == "load":
                features = clipkit.load(what["repository"]).encode_text(["a red square"])
                answer = {"features": features[0, :4].tolist()}
            else:
                done = push(Path(what["folder"]), what["repository"], private=what["private"], names=what["names"])
                answer = {"url": done.url, "files": done.files, "size": done.size, "notes": done.notes}
        except ModelError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
