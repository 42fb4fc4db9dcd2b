# Every target sets up what it needs; nothing is done twice.
#   make run ARGS="--model conv"      make test      make setup STACK=tfx-1.16

# tfx-1.21 or tfx-1.16; when empty, the newest that this machine can run.
STACK ?=
ARGS ?=
BIN := .venv/bin

# Tests use every core, up to four, and the full MNIST that lies beside the checkout, where it does.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 \
	--dist loadgroup --no-loadscope-reorder
TEST_ENV := MNIST_DATA_DIR="$${MNIST_DATA_DIR:-$(abspath $(wildcard ../shared/data/mnist))}"

.PHONY: run test test-all test-cluster test-fresh lint format setup clean lock docs bench bench-models bench-serving bench-uses

run: setup
	@$(BIN)/mnist-ae run $(ARGS)

test: setup
	@$(TEST_ENV) $(PYTEST) -m "not e2e and not slow" $(ARGS)

test-all: setup
	@$(TEST_ENV) $(PYTEST) $(ARGS)

# The guide docs/kubeflow.md on the cluster of KUBECONFIG, which has Kubeflow Pipelines 2 and nothing
# of ours; an hour. tests/cluster/cluster.sh makes such a one here.
test-cluster: setup
	@$(BIN)/python -m pytest -m cluster tests/cluster $(ARGS)

# The two commands on machines that have nothing else; as root, an hour. ARGS="debian-13" is one.
test-fresh:
	@tests/fresh/run.sh $(ARGS)

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

setup:
	@requirements/setup.sh $(STACK)

# Resolves the locks anew.
lock:
	@requirements/lock.sh

clean:
	@rm -rf .venv .venv-* .venv.log build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
