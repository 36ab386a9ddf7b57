# make demo: set up, and compare the strategies on the embedded digits.   make test: set up, and run the tests.
# Both need nothing but Python 3.11 or newer; they make a virtual environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NUMERICAL := tests/golden tests/hetero/test_hetero_ring.py tests/peers/test_synchronous.py \
	tests/split/test_split_psl.py tests/split/test_split_splitfed.py tests/workers/test_workers_training.py

.PHONY: demo test test-all test-portable check format bench golden clean

demo: $(VENV)/ready
	$(BIN)/sparsync compare examples/demo.toml

test: $(VENV)/ready-dev
	$(BIN)/pytest -n 2 --dist worksteal

# What `make test` leaves out, too: slow tests, and more examples of properties.
test-all: $(VENV)/ready-dev
	$(BIN)/pytest -n 2 --dist worksteal -m '' --hypothesis-profile thorough

# The numerical tests as another processor would run them: without its vector instructions, and with sums that round
# otherwise. A tolerance that holds on one machine only fails here.
test-portable: $(VENV)/ready-dev
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1 PYTHONPATH=tests \
		$(BIN)/pytest -n 2 --dist worksteal -p other_processor $(NUMERICAL)

check: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Speed and memory, side by side with the physical limit: ratios, printed. Takes some minutes.
bench: $(VENV)/ready
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/simulator.py
	$(BIN)/python benchmarks/monitors.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/wire.py
	$(BIN)/python benchmarks/federation.py
	$(BIN)/python benchmarks/samplers.py
	$(BIN)/python benchmarks/hadfl.py
	$(BIN)/python benchmarks/devices.py

# Rewrite the golden fixtures; look at the difference before you commit it.
golden: $(VENV)/ready-dev
	SPARSYNC_WRITE_GOLDEN=1 $(BIN)/pytest -q tests/golden

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sparsync needs Python 3.11 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
