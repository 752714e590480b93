"""Load the models named on standard input, one per line, and print the results; run by test_hub."""

import json
import os
import sys

import clipkit
from clipkit.errors import ModelError

if __name__ == "__main__":
    for line in sys.stdin:
        name, token = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if token:
            os.environ["HF_TOKEN"] = token
        try:
            features = clipkit.load(name).encode_text(["a red square"])
            answer = {"features": features[0, :4].tolist()}
        except ModelError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
