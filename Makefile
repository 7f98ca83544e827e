# Targets for a fresh checkout. `make help` lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=
# Two processes, as many as the smallest machines have cores. A file is one process's: its tests share runs. What
# needs more than a machine has a target below.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile
HERE := not real and not slurm and not browser and not gpu

.DEFAULT_GOAL := help
.PHONY: paper-arithmetic paper-infilling paper-random-number paper-continuation paper-subjectivity
.PHONY: help install architecture arithmetic smoke smollm2 fuzz faults test test-all test-real gpu-check test-gpu test-slurm test-lowest test-newest test-debian mutation audit check check-pages format tiny-lm results task-results paper-tiny paper-real recipes benchmark wheel clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

install: $(VENV)/.installed ## set up .venv with the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[dev]'
	touch $@

arithmetic: install ## train, evaluate and report integer arithmetic (3 minutes on two cores; ARGS='seed=1 …')
	$(RUN) -m gfn_runner task=arithmetic $(ARGS)

smoke: install ## the same with a few questions (half a minute)
	$(RUN) -m gfn_runner experiment=tiny/smoke $(ARGS)

test: install ## the tests, without further cases of what they cover; no download, no GPU (5 minutes on two quiet cores)
	$(PYTEST) -m "$(HERE) and not slow" $(ARGS)

test-all: install ## the same with all cases, as CI runs it
	$(PYTEST) -m "$(HERE)" $(ARGS)

fuzz: install ## properties and fuzz tests with many times their cases, others each time (ARGS='--budget=100 -k calculator')
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q tests/properties tests/fuzz --budget=20 $(ARGS)

faults: install ## kills, full disks, dead ranks, … over all tasks (hours; ARGS='--budget=1.01 -k kills')
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -s tests/faults --budget=10 $(ARGS)

mutation: install ## mutation testing of losses, scores, rules and metrics with mutmut, resumable (hours; ARGS='objectives/phi')
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[mutation]'
	$(RUN) scripts/mutation.py $(ARGS)

test-lowest: install ## the tests on the lowest versions that pyproject.toml admits, in an environment of their own (ARGS='tests/unit')
	$(RUN) scripts/try_versions.py lowest $(ARGS)

test-newest: install ## the same on the newest versions that can be installed
	$(RUN) scripts/try_versions.py newest $(ARGS)

test-debian: ## make arithmetic and make test in a minimal Debian, for a user without rights (root, debootstrap)
	scripts/minimal_debian.sh arithmetic test $(ARGS)

audit: install ## known vulnerabilities of the tested versions, by pip-audit (ARGS=--offline-ok: pass if the index answers for none)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[audit]'
	$(RUN) scripts/audit.py $(ARGS)

smollm2: install ## download and convert SmolLM2-135M-Instruct (a minute, 93 MB; once)
	$(RUN) scripts/get_smollm2.py $(ARGS)

test-real: install ## tests on SmolLM2, after make smollm2 (at most 6 minutes on two cores)
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE $(RUN) -m pytest -q -m real tests/real $(ARGS)

gpu-check: ## on a machine with CUDA: GPU tests, benchmark, a short training (at most 8 minutes; PYTHON=… with torch)
	$(PYTHON) scripts/gpu_check.py $(ARGS)

test-gpu: ## GPU tests only
	$(PYTHON) scripts/gpu_check.py --parts tests $(ARGS)

check-pages: install ## test report pages in a headless Chromium, with screenshots (ARGS='outputs/…/report.html …')
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[browser]'
	$(RUN) -m pytest -q -m browser
	$(if $(ARGS),$(RUN) scripts/check_pages.py --out screenshots $(ARGS))

test-slurm: install ## SLURM tests: sets up a SLURM on this machine (Debian, root) and removes it afterwards
	scripts/slurm_local.sh install
	GFN_SLURM_TESTS=1 OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m slurm tests/slurm $(ARGS); code=$$?; \
	scripts/slurm_local.sh stop; exit $$code

check: install ## format, lint, types and import contracts
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-cache

format: install ## format the code and fix lint
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

tiny-lm: install ## pretrain the embedded base model again (about 70 minutes on two cores)
	$(RUN) scripts/pretrain_tiny.py $(ARGS)

results: install ## measure arithmetic for docs/results.md and README, three seeds (25 minutes)
	$(RUN) scripts/results.py --readme $(ARGS)

task-results: install ## measure all other tasks for docs/results.md, three seeds (2 to 3 hours)
	$(RUN) scripts/task_results.py $(ARGS)

paper-tiny: install ## the paper's tables with all baselines on the embedded model, for docs/results/ (3 hours on two cores)
	$(RUN) scripts/paper.py $(ARGS)

paper-arithmetic paper-infilling paper-random-number paper-continuation: install
	$(RUN) scripts/paper.py --tables $(subst -,_,$(patsubst paper-%,%,$@)) $(ARGS)

paper-subjectivity: install
	$(RUN) scripts/paper.py --tables subjectivity_10 subjectivity_20 subjectivity_50 $(ARGS)

recipes: install ## compare changes to training at equal computing time, for docs/recipes.md (resumable; ARGS='--list', '--tasks infilling --minutes 5')
	$(RUN) scripts/recipes.py $(ARGS)

paper-real: install ## the paper's tables on SmolLM2, resumable (20 hours on two cores; ARGS='--list', '--data FOLDER --table …')
	$(RUN) scripts/paper_real.py $(ARGS)

benchmark: install ## measure a training step against its floor and the plain way, for docs/benchmarks.md
	$(RUN) scripts/benchmark.py $(ARGS)

architecture: install ## draw the pictures of docs/architecture.md
	$(RUN) scripts/draw_architecture.py

wheel: install ## build a wheel into dist/
	$(RUN) -m pip wheel --quiet --no-deps -w dist .

clean: ## remove .venv and caches; keeps outputs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
