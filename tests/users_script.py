"""A script of a user that uses every public name; test_public_names checks its types with mypy --strict."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import clipkit

print(clipkit.__version__)
recipe: clipkit.Recipe = clipkit.Recipe.from_yaml("recipe.yaml").override({"optim.lr": 1e-5})


def my_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    return clipkit.losses.infonce(image_features, text_features, scale)


class Watch(clipkit.Callback):
    def on_step(self, run: clipkit.Progress, row: dict[str, Any]) -> Mapping[str, float] | None:
        if run.step > 10 and run.is_main:
            run.stop("enough")
        return {"half": row["loss"] / 2}


def same(default: clipkit.Objective) -> clipkit.Objective:
    return default


model: clipkit.DualEncoder = clipkit.load("my-clip", device=torch.device("cpu"), dtype="bf16")
modules = clipkit.DualEncoder.from_modules(
    image_tower=nn.Identity(),
    text_tower=nn.Identity(),
    preprocess=lambda image: torch.zeros(3),
    tokenizer=lambda texts: torch.zeros(len(texts), 3),
    embed_dim=2,
)
result: clipkit.Result = clipkit.train(recipe, train=[("a.png", "a")], model=modules, loss=my_loss, callbacks=[Watch()])
clipkit.train({"output": "runs/a"}, {"optim.lr": 1e-4}, objective=same, identity="content", resume=True)
value: float | None = result.value("mean_recall")
figure = result.metrics["mean_recall"]["low"]
result.plot("recall")
features: Tensor = model.to("cpu").encode_image(["a.png"]) @ model.encode_text(["a"]).T
run: clipkit.Run = clipkit.Run("runs/a")
loaded: clipkit.DualEncoder = run.model()
again: clipkit.Result = clipkit.evaluate.retrieval(loaded, {"image": ["a.png"], "caption": ["a"]})
clipkit.evaluate.zeroshot(loaded, "photos", classes=["cat"])
step = clipkit.Step(model, my_loss, Accelerator(), batch_size=4, micro_batch_size=2)
loss: Tensor = step(["a.png"], ["a"])
processes: clipkit.Processes = step.processes
encoder: Any = clipkit.mteb_model(loaded, name="me/my-clip")
ranks = clipkit.metrics.retrieval_ranks(features, features, torch.arange(1))
clipkit.export(model, "onnx", "out")
merged: clipkit.DualEncoder = clipkit.merge([model, loaded], [0.5, 0.5])
suggestion: clipkit.Suggestion = clipkit.suggest("photos.csv", "my-clip", validation="dev.csv")
rate: Any = suggestion.choices["optim.lr"].value
clipkit.train(suggestion.recipe)
index: clipkit.Index = clipkit.Index(clipkit.embed("photos", "my-clip", "photos.index").folder)
best = index.search("a dog", minus="a cat", where="year > 2020")[0].image
url: str = model.push_to_hub("me/my-clip", private=True)
shown: clipkit.Explanation = clipkit.explain(model, "dog.jpg", ["a dog"], method="patches", score=False)
shown.save("dog.png")
