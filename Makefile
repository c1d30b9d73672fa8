# Two commands do everything: `make train` and `make test`. Each installs what it needs into .venv.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: train test lint bench soak clean

train: .venv/.examples
	.venv/bin/python examples/digits.py $(ARGS)

test: lint
	.venv/bin/python -m pytest -n 2 --dist worksteal -m "not soak" $(ARGS)

lint: .venv/.dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

soak: .venv/.dev
	.venv/bin/python -m pytest -s -m soak $(ARGS)

bench: .venv/.dev
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; .venv/bin/python $$file || exit 1; done

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.examples: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[examples]"
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	touch $@ .venv/.examples
