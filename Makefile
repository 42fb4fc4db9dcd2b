# Every target sets up what it needs; nothing is done twice.
#   make run ARGS="--model conv"      make test      make setup STACK=tfx-1.21

STACK ?= tfx-1.16
ARGS ?=
UV_VERSION := 0.13.8

PYTHON_tfx-1.16 := 3.10
PYTHON_tfx-1.21 := 3.12
VENV_tfx-1.16 := .venv
VENV_tfx-1.21 := .venv-tfx-1.21
PYTHON_VERSION := $(PYTHON_$(STACK))
VENV := $(VENV_$(STACK))
BIN := $(VENV)/bin
LOCK := requirements/$(STACK).txt

# A uv on the PATH, or one of our own from the package index.
UV := $(or $(shell command -v uv 2>/dev/null),.venv-uv/bin/uv)

# Tests use the full MNIST that lies beside the checkout, where it does.
TEST_ENV := MNIST_DATA_DIR="$${MNIST_DATA_DIR:-$(abspath $(wildcard ../shared/data/mnist))}"

COMPILE = $(UV) pip compile --quiet pyproject.toml --generate-hashes --no-emit-index-url \
  --no-header --no-annotate

.PHONY: run test test-all lint format setup clean lock docs bench bench-models bench-serving bench-uses

run: setup
	@$(BIN)/mnist-ae run $(ARGS)

test: setup
	@$(TEST_ENV) $(BIN)/python -m pytest -m "not e2e and not slow" $(ARGS)

test-all: setup
	@$(TEST_ENV) $(BIN)/python -m pytest $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup
	@$(TEST_ENV) $(BIN)/python -m benchmarks.pipeline $(ARGS)

bench-models: setup
	@$(TEST_ENV) $(BIN)/python -m benchmarks.models $(ARGS)

bench-serving: setup
	@$(TEST_ENV) $(BIN)/python -m benchmarks.serving $(ARGS)

bench-uses: setup
	@$(TEST_ENV) $(BIN)/python -m benchmarks.uses $(ARGS)

docs: setup
	@$(BIN)/python -m benchmarks.models --write-docs

setup: $(VENV)/.complete

$(VENV)/.complete: $(LOCK) pyproject.toml setup.py Makefile | $(UV)
	@test -n "$(VENV)" || { echo "unknown STACK '$(STACK)'; known: tfx-1.16, tfx-1.21" >&2; exit 2; }
	@case "$(STACK)" in tfx-1.21) \
	  v=$$(ldd --version 2>/dev/null | sed -n '1s/.* //p'); \
	  printf '2.39\n%s\n' "$$v" | sort -VC || { \
	    echo "STACK=tfx-1.21 needs glibc 2.39 or newer, this machine has $$v; use the default stack" >&2; exit 2; };; esac
	@$(UV) venv --quiet --allow-existing --no-python-downloads --python $(PYTHON_VERSION) $(VENV) 2>/dev/null || { \
	  echo "no Python $(PYTHON_VERSION) found; install one ('uv python install $(PYTHON_VERSION)', 'pyenv install $(PYTHON_VERSION)' or your system's package) and try again" >&2; exit 2; }
	@echo "setting up $(VENV) from $(LOCK) (once; about a minute)" >&2
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes $(LOCK)
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.venv-uv/bin/uv:
	@python3 -m venv .venv-uv
	@.venv-uv/bin/pip install --quiet uv==$(UV_VERSION)

# Resolves both locks anew; they carry versions and hashes, no addresses.
lock: | $(UV)
	@for spec in "tfx-1.16 3.10 x86_64-manylinux_2_28" "tfx-1.21 3.12 x86_64-manylinux_2_39"; do \
	  set -- $$spec; \
	  $(COMPILE) --extra dev --extra kubeflow --python-version $$2 --python-platform $$3 \
	    --constraint requirements/$$1.in --output-file requirements/$$1.txt || exit 1; \
	done
	@for variant in cpu gpu; do \
	  $(COMPILE) --extra kubeflow $$(test $$variant = gpu && echo --extra gpu) \
	    --python-version 3.10 --python-platform x86_64-manylinux_2_28 \
	    --constraint requirements/tfx-1.16.in --constraint requirements/tfx-1.16.txt \
	    --output-file requirements/image-$$variant.txt || exit 1; \
	done

clean:
	@rm -rf .venv .venv-tfx-1.21 .venv-uv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
