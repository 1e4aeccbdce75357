"""The OpenAPI document holds: a fuzzer asks a real server for all that it promises, and for what it forbids."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.bundles import FUSIONS, make_model, make_talker, save_bundle
from tests.server import Server

pytestmark = pytest.mark.slow
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance"
)


def test_the_api_is_what_its_document_says(text_model: str, tmp_path: Path) -> None:
    fused = save_bundle(
        tmp_path / "fused", make_model(text_model, fusion=FUSIONS["attention"], tokens={"text": 3, "image": 2})
    )
    talker = save_bundle(tmp_path / "talker", make_talker(text_model))
    server = Server(f"fused={fused}", f"text={text_model}", f"talker={talker}", "--allow-anonymous")
    try:
        document = requests.get(f"{server.url}/openapi.json", timeout=60).json()
        for name, schema in document["components"]["schemas"].items():
            if name.endswith("Request"):  # else nearly all would name models that there are not
                schema["properties"]["model"] = {"enum": ["fused", "text", "talker"]}
                if "task" in schema["properties"]:
                    schema["properties"]["task"] = {"enum": ["seen", "answer", "german", None]}
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", "openapi.json", "--url", server.url]
        command += ["--checks", CHECKS, "--seed", "1", "--max-examples", "60", "--warnings", "off"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-6000:] + server.log
        assert f"Tested: {len(document['paths'])}" in done.stdout and len(document["paths"]) >= 10
        assert server.get("/ready").status_code == 200
        assert "Traceback" not in server.log
    finally:
        server.close()
