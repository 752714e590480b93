"""Teacher models for distillation, whose features of the training data are computed only once."""

import torch

from clipkit.data import Pairs
from clipkit.evaluation import Features
from clipkit.models import load
from clipkit.models.fingerprint import tower_fingerprint
from clipkit.processes import Processes
from clipkit.training.objectives.objective import Gathered


class Teacher:
    """Features of all training images and captions, computed by a teacher model.

    The teacher uses its original preprocessing, without augmentation. Data without images has only text features. The
    features are kept in the user's cache folder for later runs.

    Args:
        name: name of the teacher model, in any form that model.name accepts.
        pairs: training data.
        processes: processes of the run, each of which encodes a share of the data.
    """

    def __init__(self, name: str, pairs: Pairs, processes: Processes) -> None:
        model = load(name)
        features = Features(model, processes=processes, progress=True)
        self.image_features = features.images(pairs.images) if pairs.has_images else None
        self.text_features = features.texts(pairs.captions)
        self.first_rows = torch.from_numpy(pairs.caption_ids)
        self.scale = model.logit_scale.detach().exp().cpu()
        self.fingerprint = f"{tower_fingerprint(model.image)} {tower_fingerprint(model.text)} {self.scale.item()}"

    def __call__(self, gathered: Gathered) -> Gathered:
        """Return the teacher's features and logit scale (after exp) for the pairs of a global batch."""
        device = gathered["image_ids"].device
        captions = self.first_rows[gathered["caption_rows"].cpu()]
        found = {
            "teacher_text_features": self.text_features[captions].to(device),
            "teacher_scale": self.scale.to(device),
        }
        if self.image_features is not None:
            found["teacher_image_features"] = self.image_features[gathered["image_ids"].cpu()].to(device)
        return found


def teachers_of(names: list[str], pairs: Pairs, processes: Processes) -> dict[str, Teacher]:
    """Load each named teacher once, and return the teachers by name."""
    with torch.no_grad():
        return {name: Teacher(name, pairs, processes) for name in dict.fromkeys(names)}
