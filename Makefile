# What this project can do from a fresh checkout. `make help` lists it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: paper-arithmetic paper-infilling paper-random-number paper-continuation paper-subjectivity
.PHONY: help install arithmetic smoke smollm2 test test-real gpu-check test-gpu test-slurm check check-pages format tiny-lm results task-results paper-tiny benchmark wheel clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

install: $(VENV)/.installed ## set up .venv with the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[dev]'
	touch $@

arithmetic: install ## the main job: train, evaluate and report integer arithmetic (ARGS='seed=1 …')
	$(RUN) -m gfn_runner task=arithmetic $(ARGS)

smoke: install ## the same in half a minute, with a few questions
	$(RUN) -m gfn_runner experiment=tiny/smoke $(ARGS)

test: install ## all tests; no download, no GPU
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 -m "not real" $(ARGS)

smollm2: install ## a real pretrained model: get SmolLM2-135M-Instruct and convert it (a minute, 93 MB; once)
	$(RUN) scripts/get_smollm2.py $(ARGS)

test-real: install ## the tests on SmolLM2, after make smollm2 (6 minutes on two cores at most)
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE $(RUN) -m pytest -q -m real tests/real $(ARGS)

gpu-check: ## on a machine with CUDA: its tests, benchmark and a short training, 8 minutes at most (PYTHON=… with torch)
	$(PYTHON) scripts/gpu_check.py $(ARGS)

test-gpu: ## its tests alone
	$(PYTHON) scripts/gpu_check.py --parts tests $(ARGS)

check-pages: install ## reports in a headless Chromium, with screenshots (ARGS='outputs/…/report.html …')
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[browser]'
	$(RUN) -m pytest -q -m browser
	$(if $(ARGS),$(RUN) scripts/check_pages.py --out screenshots $(ARGS))

test-slurm: install ## the tests that need a SLURM: sets one up on this machine (Debian, root) and takes it down
	scripts/slurm_local.sh install
	GFN_SLURM_TESTS=1 OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m slurm tests/slurm $(ARGS); code=$$?; \
	scripts/slurm_local.sh stop; exit $$code

check: install ## format, lint and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: install ## put the code into shape
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

tiny-lm: install ## make the embedded base model again (about 70 minutes on two cores)
	$(RUN) scripts/pretrain_tiny.py $(ARGS)

results: install ## measure arithmetic again for docs/results.md and README: three seeds (25 minutes)
	$(RUN) scripts/results.py --readme $(ARGS)

task-results: install ## measure all other tasks again for docs/results.md: three seeds (2 to 3 hours)
	$(RUN) scripts/task_results.py $(ARGS)

paper-tiny: install ## the paper's tables with all baselines on the embedded model, into docs/results/ (three hours on two cores)
	$(RUN) scripts/paper.py $(ARGS)

paper-arithmetic paper-infilling paper-random-number paper-continuation: install
	$(RUN) scripts/paper.py --tables $(subst -,_,$(patsubst paper-%,%,$@)) $(ARGS)

paper-subjectivity: install
	$(RUN) scripts/paper.py --tables subjectivity_10 subjectivity_20 subjectivity_50 $(ARGS)

benchmark: install ## measure a training step against its floor and the plain way, for docs/benchmarks.md
	$(RUN) scripts/benchmark.py $(ARGS)

wheel: install ## build a wheel into dist/
	$(RUN) -m pip wheel --quiet --no-deps -w dist .

clean: ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
