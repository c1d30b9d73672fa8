# Two commands do everything: `make train` and `make test`. Each installs what it needs into .venv.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

# Python compiles a module when it is first imported, and keeps it for later processes: pip would compile
# all of them, and most are never imported.
unexport PYTHONDONTWRITEBYTECODE

# JAX for CUDA, as `jax[...]` names it: cuda13 or cuda12.
CUDA ?= cuda13

.PHONY: train test lint docs tour pictures bench gpu soak clean

train: .venv/.examples
	.venv/bin/python examples/digits.py $(ARGS)

test: lint
	.venv/bin/python -m pytest -n 2 --dist worksteal -m "not soak" $(ARGS)

lint: .venv/.dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

docs: .venv/.dev
	PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/zensical build --clean --strict
	@echo "Open site/index.html in a browser."

pictures: .venv/.dev
	.venv/bin/python .ci/pictures/draw.py $(ARGS)

tour: .venv/.dev
	.venv/bin/python .ci/tour.py

soak: .venv/.dev
	.venv/bin/python -m pytest -s -m soak $(ARGS)

bench: .venv/.dev
	@for file in $(filter-out benchmarks/gpu.py benchmarks/peers.py benchmarks/guarantees.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$file"; .venv/bin/python $$file || exit 1; done

gpu: .venv/.gpu
	PYTHON=.venv/bin/python bash benchmarks/gpu.sh runs/gpu $(ARGS)

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

.venv/.gpu: .venv/.examples
	$(PIP) "jax[$(CUDA)]" pytest hypothesis
	touch $@
