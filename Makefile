# make quickstart   train a small model on this machine, score it, sample from it, export it
# make test         run the tests (ARGS="-k packing" passes arguments on to pytest)
# make lint         ruff and mypy
# make notebooks    run the notebooks (ARGS=--keep writes what they show into them)
# make clean        remove the environment and every cache
#
# PYTHON=python3.12 chooses the interpreter the environment is made from; VENV=.venv-other chooses its folder.

VENV ?= .venv
PYTHON ?= python3.12 python3.11 python3.13 python3
ARGS ?=
ENV_PYTHON := $(VENV)/bin/python

# Training frees and takes hundreds of megabytes every step: huge pages save the kernel a quarter of its time (glibc).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart test lint notebooks clean

quickstart: $(VENV)/.installed-core
	$(ENV_PYTHON) scripts/quickstart.py $(ARGS)

test: $(VENV)/.installed-test
	$(ENV_PYTHON) -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	$(ENV_PYTHON) -m ruff check
	$(ENV_PYTHON) -m ruff format --check
	$(ENV_PYTHON) -m mypy

notebooks: $(VENV)/.installed-notebook
	$(ENV_PYTHON) scripts/run_notebooks.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is newer than pyproject.toml once what it names is installed.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.created
	@echo "Installing hybrid-jax ($*) into $(VENV): some minutes the first time"
	$(ENV_PYTHON) -m pip install --quiet --editable '.$(patsubst [core],,[$*])'
	@touch $@

# Says nothing of an interpreter that will do, and otherwise what is wrong with it.
export CHECK_PYTHON := import sys; from importlib.util import find_spec; \
    old = sys.version_info < (3, 11); bare = not old and not find_spec("ensurepip"); \
    print("is only " + sys.version.split()[0] if old else "has no venv module" if bare else ""); \
    sys.exit(old or bare)

$(VENV)/.created:
	@for python in $(PYTHON); do \
	    if reason=$$($$python -c "$$CHECK_PYTHON" 2>/dev/null); then \
	        echo "Creating $(VENV) with $$python"; \
	        $$python -m venv $(VENV) && touch $@; \
	        exit; \
	    fi; \
	    reasons="$$reasons  $$python $${reason:-was not found}\n"; \
	done; \
	printf "error: this needs Python 3.11 or newer with its venv module:\n$$reasons" >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1
