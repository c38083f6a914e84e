# One command each: `make demo` runs a swarm on this machine, `make test` runs the tests.
# Both make their own virtual environment from the pinned versions in constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Images of containers often forbid it, and then each process compiles all that it imports: ten
# seconds of CPU for every daemon that the tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check protos full-shape bench kills chaos soak simulate mutations clean

demo: $(STAMP)
	$(BIN)/swarmd demo

# What computes in the tests' own processes runs in two of them, a file in one; what starts daemons
# runs one after the other: in two they take as long, as daemons use both cores.
DAEMONS := tests/e2e tests/cli

test: $(STAMP) check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(DAEMONS:%=--ignore=%)
	$(BIN)/python -m pytest $(DAEMONS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

protos: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. protos/swarmd/v1/*.proto

# A chat model of the README's size, a gigabyte of random weights, by its name from a hub on
# loopback: downloaded by two nodes, each its part, and compared with the whole model.
full-shape: $(STAMP)
	TEST_FULL_SHAPE=1 $(BIN)/python -m pytest tests/e2e/test_hub_model.py -k 'own_span or whole_model'

# Each on its own machine-quiet minutes; results and charts go to bench/results.
SCENARIOS ?= decode concurrency prefill prefix replicas wan routing overhead

bench: $(STAMP)
	for scenario in $(SCENARIOS); do $(BIN)/swarmd bench $$scenario || exit; done
	$(BIN)/python bench/wire.py

# kill -9, eighty times: every hop and the coordinator, in decode and in prefill.
kills: $(STAMP)
	$(BIN)/python bench/kills.py --dtype float32
	$(BIN)/python bench/kills.py --dtype bfloat16

# Real daemons, one fault at a time, a JSON verdict each. CHAOS='kill stop --runs 100' picks.
CHAOS ?= --save

chaos: $(STAMP)
	$(BIN)/python -m bench.chaos $(CHAOS)

# A kill and a join every 20 s.
HOURS ?= 2

soak: $(STAMP)
	$(BIN)/python -m bench.chaos.soak $(HOURS)

# torch first and alone: where the machine's index offers a CPU build, a looser
# range would draw in several gigabytes of CUDA packages. What is imported is
# compiled then: a tenth of what there is.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "swarmd needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.13" >&2; exit 1; }
	@echo "installing into $(VENV), which takes some minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --no-compile -c constraints.txt torch
	@$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[node,dev,bench]'
	@touch $@

# Seeded storms over simulated hop tables and drivers, then over whole simulated nodes; a failing
# seed is printed, with how to run it again.
SIMULATED ?= 20000

simulate: $(STAMP)
	SWARMD_STORMS=5000 $(BIN)/python -m pytest tests/pipeline/test_simulation.py --timeout 3000
	$(BIN)/python -m swarmd.sim --seeds $(SIMULATED)

# Faults planted into the production code, each of which the simulation must find.
mutations: $(STAMP)
	SWARMD_MUTATIONS=all $(BIN)/python -m pytest tests/sim/test_mutations.py --timeout 3000

clean:
	rm -rf $(VENV) build dist *.egg-info
