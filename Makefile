# make demo: set up and run everything on synthetic X-rays.  make test: set up and test.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Without bytecode every Ray worker compiles its imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-faults lint format install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,dicom]"
	touch $@

demo: install
	$(RUN)/python jobs/prepare.py --source phantom --out data/phantom
	$(RUN)/python jobs/embed.py --data data/phantom --clip.model tiny --clip.pretrained none
	$(RUN)/python jobs/zeroshot.py --data data/phantom --clip.model tiny --clip.pretrained none --prompts ensemble

test: install
	$(RUN)/python -m pytest

test-faults: install
	$(RUN)/python -m pytest -m faults

lint: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: install
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean:
	rm -rf data/phantom outputs
