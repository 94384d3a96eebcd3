.DEFAULT_GOAL := help
.PHONY: help setup demo up test verify mutants faults rabbitmq4 bench lint lint-types lint-others format generate docs lock release clean
ORDERS ?= 1000
ROUNDS ?= 10
# The virtual environment; scripts/setup makes it with PYTHON, if that is set.
VENV ?= .venv
# The tests' workers, each with servers of its own and some 1.5 GB: one more than there are cores, as
# half of a worker's time is waiting, and no more than four. A file's tests stay with one worker, in
# their order: some modules tell of one system step by step, and no module's fixtures are made twice.
# Files are taken in the alphabet's order: the systems' first, and the unit tests' small ones last.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN) && echo $$((cores < 3 ? cores + 1 : 4)))
PARALLEL = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# What starts Python hundreds of times is not to compile each module each time.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Create .venv from the lock file, install RabbitMQ, PostgreSQL, Prometheus, Chromium
	@scripts/setup

demo: ## Run 1000 orders through the saga and check the books (ORDERS=n, ARGS='--seed 7')
	@scripts/setup --embedded
	@$(VENV)/bin/saga demo --orders $(ORDERS) $(ARGS)

up: ## Start everything on this machine until Ctrl-C (ARGS passes options)
	@scripts/setup --embedded
	@$(VENV)/bin/saga up $(ARGS)

test: ## Run the tests against private RabbitMQ and PostgreSQL servers (ARGS='-k name' selects)
	@scripts/setup --own-broker
	@$(VENV)/bin/pytest $(PARALLEL) $(ARGS)

verify: ## Run every test, the long ones included; the unit tests on every Python there is
	@scripts/setup --own-broker
	@$(VENV)/bin/pytest -m "long or not long" --timeout 0 $(ARGS)
	@$(if $(ARGS),,scripts/every-python)

mutants: ## Change domains, rules and kernel, one thing at a time: does a test notice?
	@scripts/setup --no-broker
	@scripts/mutants

faults: ## Strike a system under load with every kind of fault (ROUNDS=n SEED=n DATABASE=postgresql)
	@scripts/setup --own-broker
	@ROUNDS=$(ROUNDS) $(VENV)/bin/pytest -m "long or not long" --timeout 0 tests/faults $(ARGS)

rabbitmq4: ## Unpack RabbitMQ 4 into .rabbitmq4, for tests on that as well (root, Debian)
	@scripts/rabbitmq4

bench: ## Compare with the same flow without a database (ARGS='--rounds 3 --orders 2000 --json')
	@scripts/setup --own-broker
	@$(VENV)/bin/python -m bench compare $(ARGS)

lint: ## Check style, types, the layers between packages and the English
	@scripts/setup --no-broker
	@$(MAKE) --no-print-directory --jobs 2 lint-types lint-others

lint-types:
	$(VENV)/bin/mypy

# The examples share what mypy has read of the engine and its packages.
lint-others:
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m tests.english
	@for example in examples/*/; do (cd $$example && \
		$(abspath $(VENV))/bin/mypy --cache-dir $(abspath .mypy_cache/examples)) || exit 1; done

format: ## Format the code and fix what can be fixed safely
	@scripts/setup --no-broker
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

generate: ## Write the files that follow from code: definitions, contracts, map, pages, dashboards
	@scripts/setup --no-broker
	@$(VENV)/bin/python -m monitoring.dashboards
	@$(VENV)/bin/saga generate

docs: ## Build the documentation's site, which works from disk, and check its links
	@scripts/setup --no-broker
	@$(VENV)/bin/python -m handbook $(ARGS)

lock: ## Pin the dependencies again (needs uv; ARGS='--upgrade' takes newer versions)
	@scripts/lock $(ARGS)

release: ## Build the wheel and its bill of materials into dist/, the same each time (ARGS=--image)
	@scripts/setup --no-broker
	@scripts/release $(ARGS)

clean: ## Remove the environment, caches and what runs left behind
	rm -rf .venv* build dist *.egg-info data .runtime .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
