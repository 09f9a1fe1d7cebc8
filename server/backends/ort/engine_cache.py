"""Where onnxruntime's TensorRT provider keeps the engines that it builds at load: minutes of work, and machine code when read again.

The provider finds an engine by the graph's structure, not by its weights, and says nothing of the machine: so each file, on each GPU, by
each version and setting has a folder of its own. All of it is this user's alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from server.backends.base import VariantSpec
from server.backends.nvidia.cuda import DeviceFacts
from server.backends.nvidia.folders import private_folder
from server.backends.ort.providers import cache_options

MADE_FOR = "made_for.json"


def engine_cache(spec: VariantSpec, facts: DeviceFacts, versions: tuple[str, ...]) -> dict[str, str]:
    """The provider's options for the cache; {} without a folder for it. Makes the folders. Raises ModelDefect for one that
    isn't safe.

    `versions` are those of what builds: TensorRT's and onnxruntime's.
    """
    if not spec.options.get("cache"):
        return {}
    root = Path(str(spec.options["cache"]))
    machine = [facts.name, facts.compute_capability, facts.driver, *versions]
    settings = {key: value for key, value in spec.options.items() if key != "cache"}
    made_for = json.dumps({"machine": machine, "level": spec.optimization_level, "settings": settings}, sort_keys=True, default=list)
    engines = root / hashlib.sha256(made_for.encode()).hexdigest()[:32]
    timings = root / f"timings-{hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:32]}"
    for folder in (root, engines, timings):
        private_folder(folder)
    (engines / MADE_FOR).write_text(made_for + "\n")
    return cache_options(str(engines), str(timings))
