"""The core stays light: importing all of it, in a fresh process, loads neither Ray nor a web framework."""

import pkgutil
import subprocess
import sys

import mmbm_core

_IMPORT = "import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(*sys.modules)"


def _loaded(*names: str) -> set[str]:
    """Top-level modules in a process that imports `names`."""
    command = [sys.executable, "-c", _IMPORT.format(names=names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_core_loads_no_ray_and_no_web_framework() -> None:
    names = [module.name for module in pkgutil.walk_packages(mmbm_core.__path__, "mmbm_core.")]
    assert {"mmbm_core.bundle", "mmbm_core.encoders.clip", "mmbm_core.synth.world"} <= set(names)
    assert not {"ray", "fastapi", "starlette"} & _loaded(*names)


def test_the_table_of_encoders_loads_no_model_library() -> None:
    assert not {"transformers", "torchaudio", "huggingface_hub"} & _loaded("mmbm_core.encoders")


def test_the_command_line_starts_without_heavy_libraries() -> None:
    assert not {"transformers", "torchaudio"} & _loaded("deploy.cli.main")
