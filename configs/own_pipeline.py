"""What a file of `augment.albumentations` holds, and a hash of it, by which a run is known wherever the file lies.

file -> read_pipeline -> {"transform": {...}, ...} -> hash_pipeline -> augment.albumentations_hash
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from jsonargparse import get_loader

HOW_TO_SAVE = 'albumentations.save(pipeline, PATH, data_format="yaml") (or "json") writes one that can'


def read_pipeline(path: str, *, expected_hash: str | None = None) -> dict[str, Any]:
    """What the file holds, as plain values; nothing of it is checked but that it has a transform.

    Args:
        path: The file, .yaml, .yml or .json.
        expected_hash: What `hash_pipeline` must give for it, if anything.

    Raises:
        ValueError: It cannot be read, has no transform, or is another pipeline than was expected.
    """
    name, kind = f"augment.albumentations={path}", "JSON" if Path(path).suffix == ".json" else "YAML"
    try:
        text = Path(path).read_text(encoding="utf-8")
        saved = json.loads(text) if kind == "JSON" else get_loader("yaml")(text)
        json.dumps(saved)
    except Exception as error:  # whatever reading YAML raises, which is not imported here
        raise ValueError(f"{name} cannot be read as {kind} ({error}); {HOW_TO_SAVE}.") from error
    if not isinstance(saved, dict) or not isinstance(saved.get("transform"), dict):
        raise ValueError(
            f"{name} does not hold what albumentations saves, {{transform: ...}}, and cannot be loaded; {HOW_TO_SAVE}."
        )
    if expected_hash not in (None, hash_pipeline(saved)):
        raise ValueError(
            f"{name} holds another pipeline ({hash_pipeline(saved)}) than augment.albumentations_hash={expected_hash}: "
            "give the file of that one (a run folder has it as albumentations.json), or, for the pipeline as it is "
            "now, --augment.albumentations_hash null."
        )
    return saved


def hash_pipeline(saved: dict[str, Any]) -> str:
    """16 letters for the transforms in the file and their arguments: not for its name, kind, order or version."""
    plain = json.loads(json.dumps(saved["transform"]))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
