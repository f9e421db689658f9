# Every target makes .venv from constraints.txt first, so each works on a fresh machine with Python >= 3.11.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ENV    ?= reacher-goal
SEED   ?= 0

# The first target, and so what `make` alone says.
help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: help demo test check format soak docs reproduce clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: $(VENV)/ready  ## a bundled agent finds 10 goals it has never seen
	$(BIN)/icrl-agents demo $(ENV)

test: check  ## lint, types, tests
	$(BIN)/pytest -n 2

check: $(VENV)/ready  ## lint and types alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(VENV)/built build/lib build/bdist.*  # mypy cannot follow an editable install's folders, so it reads a built one
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/built .
	cd $(VENV)/built && ../bin/mypy --config-file ../../pyproject.toml --cache-dir ../mypy -p icrl_agents

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: $(VENV)/ready  ## long runs: fuzz, kill, endurance, a cluster
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	$(BIN)/pytest -m soak

docs: $(VENV)/ready  ## the documentation's site, into build/site; a broken link is an error
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	rm -rf $(VENV)/built build/lib build/bdist.*
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/built .
	ICRL_DOCS_PACKAGE=$(VENV)/built $(BIN)/mkdocs build --strict

reproduce: $(VENV)/ready  ## from nothing: collect, train, fine-tune, evaluate an agent of ENV, by SEED
	$(BIN)/icrl-agents reproduce $(ENV) --seed $(SEED)

clean:
	rm -rf $(VENV) build dist *.egg-info
