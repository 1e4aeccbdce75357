# Everything runs in a local .venv that the first target makes; later runs start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-all lint bench-embed bench-train bench-word2vec bench-serve clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@

quickstart: $(STAMP)  ## see text, images and sound embedded
	$(BIN)/mmbm quickstart

test: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -q

test-all: $(STAMP)  ## the slow ones too
	$(BIN)/python -m pytest -q -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-train: $(STAMP)  ## mmbm train beside a plain PyTorch loop
	$(BIN)/python tests/benchmarks/train.py

bench-word2vec: $(STAMP)  ## mmbm word2vec beside plain gensim
	$(BIN)/python tests/benchmarks/word2vec.py

bench-serve: $(STAMP)  ## mmbm serve beside a bare server, and infinity (INFINITY=VENV/bin/infinity_emb)
	$(BIN)/python tests/benchmarks/serve.py $(if $(INFINITY),--infinity $(INFINITY))

bench-embed: $(STAMP)  ## one table: this, the limit of the machine, and its peers
	$(BIN)/python -m pip install -q -e ".[bench]"
	$(BIN)/python -m pip install -q --no-deps "daft>=0.7,<0.8"  # it asks for an older pyarrow, and runs with this one
	$(BIN)/python tests/benchmarks/embed.py

clean:
	rm -rf $(VENV) quickstart
