# Every target does its own set-up; nothing has to be installed or activated first.
PYTHON ?= python3
BIN := .venv/bin
INPUTS := setup.cfg pyproject.toml requirements/install.py
# One worker more than there are cores; `make test ARGS="-n0 -k login"` runs a few tests in this process. What shares
# servers runs in one of them (tests/plugins.py), in the order of tests/conftest.py: first what takes long.
WORKERS = -n auto --dist loadgroup --no-loadscope-reorder
ARGS ?= $(WORKERS)

# Commands that need the application and must not touch the developer's data: a directory that goes away.
SCRATCH = dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	export APP_ENV=testing DATA_DIR="$$dir" && unset DATABASE_URL REDIS_URL &&

# SERVER=granian, another server than the usual one, is installed when it is asked for.
SERVER_STAMP := .venv/$(if $(filter granian,$(SERVER)),granian,main).stamp

# Large blocks come in large pages then: a password takes two thirds of the time.
run stack chaos: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.PHONY: help run stack chaos test bench check format-check lint types imports lock-check migrations-check \
	openapi-check security coverage audit format lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(SERVER_STAMP) ## Start the server (PORT=8000 DATA_DIR=./instance SERVER=gunicorn|granian); the first time installs and fills it
	@exec $(BIN)/flask start

stack: .venv/dev.stamp ## Start the production topology: nginx, two servers, a worker, PostgreSQL, Valkey, S3 (PORT, DATA_DIR)
	@exec $(BIN)/python -m deploy.stack

chaos: .venv/dev.stamp ## Break each part of that topology under load, and print what came of it (CHAOS_SECONDS=10)
	@$(BIN)/python -m tests.chaos

test: .venv/dev.stamp ## Run the tests (ARGS="-k login" for some of them)
	@$(BIN)/pytest $(ARGS)

bench: .venv/dev.stamp .venv-bench/bench.stamp ## Measure it beside other frameworks (BENCH="--quick"; bench/README.md)
	@$(BIN)/python -m bench $(BENCH)

check: format-check lint types imports lock-check migrations-check openapi-check security coverage ## Run all that CI runs
	@echo "check: everything passed"

format-check: .venv/dev.stamp ## Is the code formatted?
	@$(BIN)/ruff format --check .

lint: .venv/dev.stamp ## Lint
	@$(BIN)/ruff check .

types: .venv/dev.stamp ## Check types
	@$(BIN)/mypy src tests requirements bench

imports: .venv/dev.stamp ## Check the import contracts
	@$(BIN)/lint-imports

lock-check: ## Do the lock files belong to setup.cfg? (offline)
	@$(PYTHON) requirements/lock.py check

migrations-check: .venv/dev.stamp ## Do the migrations make what the models say?
	@$(SCRATCH) $(BIN)/flask db upgrade && $(BIN)/flask db check

openapi-check: .venv/dev.stamp ## Is docs/openapi.json what the application says?
	@$(SCRATCH) $(BIN)/flask openapi write --check

# Of low severity are names with "password" in them; ruff reports those, and each exception has its reason.
security: .venv/dev.stamp ## Look for insecure code
	@$(BIN)/bandit --quiet --recursive --severity-level medium src deploy wsgi.py

# Business rules live in the services, so there every line and branch has a test.
coverage: .venv/dev.stamp ## Run the tests and demand their coverage
	@$(MAKE) --no-print-directory test ARGS="$(WORKERS) --cov --cov-report=term"
	@$(BIN)/coverage report --include='src/project/*/service.py' --fail-under=100

audit: .venv/dev.stamp ## Look for known vulnerabilities in what is locked (asks the network, so not in check)
	@$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements/main.txt

format: .venv/dev.stamp ## Format the code and fix what ruff can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

lock: .venv/dev.stamp ## Lock the dependencies after a change in setup.cfg (UPGRADE=1: the newest ones)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python requirements/lock.py write $(if $(UPGRADE),--upgrade)

clean: ## Remove what the targets made; data in instance/ stays
	@rm -rf .venv .venv.lock .venv-bench .venv-bench.lock .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache build src/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The script compares contents, so a newer date alone installs nothing, and it lets one `make` in at a time.
.venv/%.stamp: requirements/%.txt $(INPUTS)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; Python 3.11 or newer is needed." >&2; exit 1; }
	@$(PYTHON) requirements/install.py $*

.venv-bench/%.stamp: requirements/%.txt $(INPUTS)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; Python 3.11 or newer is needed." >&2; exit 1; }
	@$(PYTHON) requirements/install.py $*
