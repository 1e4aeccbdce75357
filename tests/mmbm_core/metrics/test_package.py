"""The package is light to import."""

import subprocess
import sys


def test_the_import_loads_no_metrics_library() -> None:
    code = "import sys, mmbm_core.metrics, mmbm_core.calibration; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "torch" in loaded
    assert not {"torchmetrics", "sacrebleu", "scipy", "sklearn", "transformers"} & loaded
