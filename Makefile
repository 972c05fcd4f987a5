# make demo: set up and run everything on synthetic X-rays.  make test: set up and test.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Without bytecode every Ray worker compiles its imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-black test test-recipes test-faults lint format docs install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,dicom,docs]"
	touch $@

demo: install
	$(RUN)/clipcovid demo

# The same methods where the lungs are blacked out: what they still score, they did not learn from the lungs.
demo-black: install
	$(RUN)/clipcovid demo --black

test: install
	$(RUN)/python -m pytest

test-recipes: install
	$(RUN)/python -m pytest -m recipes

test-faults: install
	$(RUN)/python -m pytest -m faults

lint: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: install
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

# The book, in site/: any warning is an error, and the notebook must run.
docs: install
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet
	$(RUN)/python -m pytest -m docs

clean:
	rm -rf data/phantom data/phantom-black outputs site
