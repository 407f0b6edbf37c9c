# quickstart: the whole loop on a real 135M model   test: the fast tests   lint: ruff, pyright
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUN := runs/quickstart
quickstart test test-slow: export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test test-slow lint format bubblewrap clean

quickstart: .venv/.run bubblewrap
	$(BIN)/invcoder run --config=configs/quickstart.py --workdir=$(RUN) $(ARGS)
	$(BIN)/invcoder report --workdir=$(RUN)

test: .venv/.dev bubblewrap
	$(BIN)/pytest $(ARGS)

test-slow: .venv/.dev bubblewrap
	$(BIN)/pytest -m slow $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "invcoder_jax needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/pip setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.dev: .venv/bin/pip setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ .venv/.run

# The sandbox of model-written code.
bubblewrap:
	@command -v bwrap >/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq bubblewrap >/dev/null; \
	  else sudo -n sh -c 'apt-get update -qq && apt-get install -y -qq bubblewrap' >/dev/null; fi; } || \
	  echo "bubblewrap could not be installed here; ask for: apt-get install bubblewrap"

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
