# make pretrain   train ELVIS on phantom radiographs (about 3 minutes on 2 CPU cores)
# make test       the fast test suite (about 5 minutes on 2 CPU cores)
# Each makes .venv and installs the project first, if needed. Extra arguments: make pretrain ARGS="train.steps=50"

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: pretrain test slow lint

pretrain: .venv/ready
	$(BIN)/python -m elvis.pretrain $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

slow: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy --no-error-summary

# A bare Debian or Ubuntu has python3 without venv: installed when we may (root), else the one command to type is printed.
.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python >= 3.11 is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } \
		|| { echo "python3 lacks venv. Type: sudo apt-get install -y python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
