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

TINY := --data data/phantom --clip.model tiny --clip.pretrained
HERE := --compute.workers 0
STILL := --augment.rotate 0 --augment.shift 0 --augment.scale 0 --augment.intensity 0 --augment.noise 0
CLIP := --optim.batch-size 32 --optim.lr 2e-4 $(STILL)
CNN := --weights none --optim.batch-size 32 --optim.lr 2e-3 --optim.keep last
UNET := --weights none --optim.batch-size 8 --optim.lr 2e-3 --optim.keep last

demo: install
	$(RUN)/python jobs/prepare.py --source phantom --out data/phantom --size 128
	$(RUN)/python jobs/embed.py $(TINY) none
	$(RUN)/python jobs/zeroshot.py $(TINY) none --prompts ensemble --name zeroshot
	$(RUN)/python jobs/finetune.py $(TINY) none --name finetune $(CLIP) --optim.epochs 12 --compute.workers 2
	$(RUN)/python jobs/finetune.py $(TINY) outputs/finetune --method lora --name lora $(CLIP) --optim.epochs 2 $(HERE)
	$(RUN)/python jobs/probe.py $(TINY) none --name probe $(HERE)
	$(RUN)/python jobs/probe.py $(TINY) outputs/finetune --name probe-finetuned $(HERE)
	$(RUN)/python jobs/coop.py $(TINY) outputs/finetune --name coop $(HERE)
	$(RUN)/python jobs/tip_adapter.py $(TINY) outputs/finetune --name tip-adapter $(HERE)
	$(RUN)/python tune/prompts.py $(TINY) outputs/finetune --name prompts --candidates 1000 $(HERE)
	$(RUN)/python jobs/cnn.py --data data/phantom --image-size 64 --name cnn $(CNN) --optim.epochs 15 $(HERE)
	$(RUN)/python jobs/hybrid.py $(TINY) outputs/finetune --name hybrid $(CNN) --optim.epochs 3 $(HERE)
	$(RUN)/python jobs/segment.py --data data/phantom --target both --name segment $(UNET) --optim.epochs 8 $(HERE)
	$(RUN)/python jobs/compare.py $(addprefix outputs/,zeroshot finetune lora prompts/winner coop tip-adapter probe \
		probe-finetuned cnn hybrid)

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
