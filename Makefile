# make demo: set up and run everything on synthetic X-rays.  make test: set up and test.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Without bytecode every Ray worker compiles its imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-black methods test test-faults lint format docs install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,dicom,docs]"
	touch $@

DATA := data/phantom
AS :=
TINY := --data $(DATA) --clip.model tiny --clip.pretrained
TUNED := outputs/finetune$(AS)
HERE := --compute.workers 0
STILL := --augment.rotate 0 --augment.shift 0 --augment.scale 0 --augment.intensity 0 --augment.noise 0
CLIP := --optim.batch-size 32 --optim.lr 2e-4 $(STILL)
CNN := --weights none --optim.batch-size 32 --optim.lr 2e-3 --optim.keep last
UNET := --weights none --optim.batch-size 8 --optim.lr 2e-3 --optim.keep last

demo: install
	$(RUN)/python jobs/prepare.py --source phantom --out data/phantom --size 128
	$(RUN)/python jobs/segment.py --data data/phantom --target both --name segment $(UNET) --optim.epochs 8 $(HERE)
	$(MAKE) --no-print-directory methods

# The same methods where the lungs are blacked out: what they still score, they did not learn from the lungs.
demo-black: install
	$(RUN)/python jobs/apply_masks.py --data data/phantom --keep lungs-black --out data/phantom-black
	$(MAKE) --no-print-directory methods DATA=data/phantom-black AS=-black

methods:
	$(RUN)/python jobs/embed.py $(TINY) none
	$(RUN)/python jobs/zeroshot.py $(TINY) none --prompts ensemble --name zeroshot$(AS)
	$(RUN)/python jobs/finetune.py $(TINY) none --name finetune$(AS) $(CLIP) --optim.epochs 12 --compute.workers 2
	$(RUN)/python jobs/finetune.py $(TINY) $(TUNED) --method lora --name lora$(AS) $(CLIP) --optim.epochs 2 $(HERE)
	$(RUN)/python jobs/probe.py $(TINY) none --name probe$(AS) $(HERE)
	$(RUN)/python jobs/probe.py $(TINY) $(TUNED) --name probe-finetuned$(AS) $(HERE)
	$(RUN)/python jobs/coop.py $(TINY) $(TUNED) --name coop$(AS) $(HERE)
	$(RUN)/python jobs/tip_adapter.py $(TINY) $(TUNED) --name tip-adapter$(AS) $(HERE)
	$(RUN)/python tune/prompts.py $(TINY) $(TUNED) --name prompts$(AS) --candidates 1000 $(HERE)
	$(RUN)/python jobs/cnn.py --data $(DATA) --image-size 64 --name cnn$(AS) $(CNN) --optim.epochs 15 $(HERE)
	$(RUN)/python jobs/hybrid.py $(TINY) $(TUNED) --name hybrid$(AS) $(CNN) --optim.epochs 10 $(HERE)
	$(RUN)/python jobs/compare.py --name compare$(AS) $(addprefix outputs/,$(addsuffix $(AS),zeroshot finetune lora) \
		prompts$(AS)/winner $(addsuffix $(AS),coop tip-adapter probe probe-finetuned cnn hybrid))

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

# The book, in site/: any warning is an error.
docs: install
	$(RUN)/mkdocs build --strict --quiet

clean:
	rm -rf data/phantom data/phantom-black outputs site
