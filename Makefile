# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or newer.
# Settings: VENV=.venv  PYTHON=python3.12  TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu  JOBS=2

VENV ?= .venv
PYTHON ?=
TORCH_INDEX_URL ?=
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)

PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help setup demo test check docs pictures bench hooks clean

help:
	@echo "make demo      make one picture with the built-in model"
	@echo "make test      run all tests"
	@echo "make check     style, types and house rules, in under a minute"
	@echo "make docs      write the generated tables anew"
	@echo "make pictures  render the pictures of the docs anew"
	@echo "make bench     measure speed here; minutes, on a quiet machine"
	@echo "make hooks     let git run 'make check' before each commit"
	@echo "make setup     only the environment (the others do it when needed)"
	@echo "make clean     delete what was built; $(VENV) and out/ stay"

setup: $(READY)

$(READY): pyproject.toml constraints.txt .ci/setup
	@VENV="$(VENV)" PYTHON="$(PYTHON)" TORCH_INDEX_URL="$(TORCH_INDEX_URL)" .ci/setup
	@touch $@

demo: $(READY)
	@$(VENV)/bin/sfumato generate "a red sphere on top of a blue cube, in snow" --seed 8 -o out/demo.png
	@echo "The picture is $(CURDIR)/out/demo.png"

test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) $(ARGS)

check: $(READY)
	@status=0; \
	for command in "ruff check --output-format concise ." "ruff format --check --quiet ." mypy \
	    "pytest -q -m 'not slow' tests/house"; do \
	    echo "$(PY) -m $$command"; \
	    eval "$(PY) -m $$command" || status=1; \
	done; \
	exit $$status

docs: $(READY)
	$(PY) docs/build.py

pictures: $(READY)
	$(PY) docs/pictures.py

bench: $(READY)
	$(PY) benchmarks/network.py
	$(PY) benchmarks/generate.py
	$(PY) benchmarks/jobs.py
	$(PY) benchmarks/serving.py
	$(PY) benchmarks/batch.py
	$(PY) benchmarks/world.py
	$(PY) benchmarks/reuse.py
	$(PY) docs/build.py

hooks:
	git config core.hooksPath .githooks

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
