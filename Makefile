# Two commands do everything on a fresh clone: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# PyTorch's CPU builds are not on PyPI; any index that has torch==2.13.0+cpu will do.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-deps --no-compile
GPU_VENV ?= .venv-gpu
CHECK_PYTHON := $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "OPID needs Python 3.11 or 3.12, this is %d.%d: make PYTHON=python3.11 ..." % v)'
# Where this is set each process would compile thousands of modules for itself.
export PYTHONDONTWRITEBYTECODE :=
# On all cores, where pip would take one.
COMPILE := $(BIN)/python -m compileall -j 0
# What few commands or none import.
RARE := /tests/|/ray/(data|llm|rllib|serve|train|tune)/|/transformers/models/[^aq]|/torch/testing/|/vllm/models/
RARE := $(RARE)|/(anthropic|apprise|databricks|fontTools|hypothesis|nltk|numba|openai|pip|playwright|sentry_sdk)/
RARE := $(RARE)|/(setuptools|spacy|textarena)/
OURS := flows tasks opid_core envs infra tests benchmarks
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-slow lint install install-gpu docs docs-site clean

quickstart: $(INSTALLED)
	$(BIN)/opid compare configs/quickstart.yaml --seeds 1 --name quickstart_study

test: $(INSTALLED)
	$(COMPILE) -q $(OURS)
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

# What takes too long for every change.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(INSTALLED)
	$(BIN)/python -m flows.reference > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md
	$(BIN)/python -m flows.cli.commands > docs/commands.md.new
	mv docs/commands.md.new docs/commands.md
	$(BIN)/python -m flows.tables > docs/tables.md.new
	mv docs/tables.md.new docs/tables.md
	$(BIN)/python -m flows.schema > configs/opid.schema.json.new
	mv configs/opid.schema.json.new configs/opid.schema.json

# The site in build/site, with every link checked.
docs-site: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(INSTALLED)

# Unlocked: which CUDA builds of vLLM and PyTorch fit together can be tried only beside a card.
install-gpu:
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet pip==26.3
	$(GPU_VENV)/bin/python -m pip install -e '.[gpu]'

$(INSTALLED): requirements/cpu.lock pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip==26.3  # that of Python 3.11 takes minutes to choose among the files of an index
	$(PIP) --retries 1 --timeout 60 --extra-index-url $(TORCH_INDEX) "$$(grep -E '^torch==' requirements/cpu.lock | cut -d' ' -f1)"
	grep -vE '^(#|torch==)' requirements/cpu.lock | cut -d' ' -f1 | xargs -P 2 -n 80 $(PIP)  # one takes one core
	$(PIP) --no-build-isolation -e .
	$(COMPILE) -qq -x '$(RARE)' $(VENV)/lib || true  # some packages hold modules for another Python
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis *.egg-info
