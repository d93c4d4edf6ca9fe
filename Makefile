# What a developer or a CI job does with a checkout. `make` alone prints the targets.

VENV := .venv
PYTHON_CODE := protocol replicator nbd_plugin

.DEFAULT_GOAL := help
.PHONY: help setup ready test lint format demo sim twin mutants torture fuzz bench interop clean

help: ## print the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: ready ## install what is missing on this machine, and replicator into .venv; compile its data path
	@-$(VENV)/bin/python scripts/compile_engine.py

# Without the compiled data path, which only makes things faster.
ready:
	@scripts/setup

test: setup ## run all tests (choose some: make test T=tests/unit)
	@$(VENV)/bin/pytest $(T)

lint: ready ## check style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict $(PYTHON_CODE)
	$(VENV)/bin/mypy --strict tests/simulation/explore.py

format: ready ## bring the code into the common format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

demo: ready ## two nodes on this machine: mirror, kill one, fail over, resynchronise
	@$(VENV)/bin/python scripts/demo.py

SECONDS := 60
JOBS := 1
KIND :=
STEPS :=
sim: ready ## invent histories of faults for SECONDS=60 with JOBS=1, or play one: make sim SEED=7
	@$(VENV)/bin/python -m tests.simulation.explore $(if $(KIND),--kind $(KIND)) \
		$(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED),--seconds $(SECONDS) --jobs $(JOBS))

twin: ready ## compile the simulator (2 minutes): make sim plays faster with it
	@$(VENV)/bin/python scripts/compile_engine.py simulator

HISTORIES := 2000
ONLY :=
mutants: ready ## remove one safeguard after the other: do HISTORIES=2000 notice? ONLY=name for one
	@$(VENV)/bin/python -m tests.simulation.mutants $(ONLY) --histories $(HISTORIES)

MINUTES := 5
torture: setup ## faults of all kinds on two real nodes: make torture MINUTES=60 SEED=7
	@$(VENV)/bin/python -m tests.integration.torture --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

fuzz: ready ## coverage-guided fuzzing of all parsers, or one: make fuzz TARGET=configuration SECONDS=600
	@$(VENV)/bin/python -c "import atheris" 2>/dev/null || $(VENV)/bin/pip install -q -e ".[fuzz]"
	@$(VENV)/bin/python -m tests.fuzz.fuzz $(TARGET) --seconds $(SECONDS)

bench: setup ## measure replicator beside qemu, writes docs/benchmarks.*; a taste: make bench QUICK=1
	@$(VENV)/bin/python -m benchmarks $(if $(QUICK),--quick) $(if $(DIR),--dir $(DIR)) $(BENCH)

interop: setup ## the kernel's DRBD 8.4 as the peer (all scenarios, or: make interop S="thin pause")
	@$(VENV)/bin/python scripts/interop.py $(S)

clean: ## remove .venv and everything that was generated
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
