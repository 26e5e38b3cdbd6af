# Every target makes its own environment: `make demo` on a fresh clone needs python3 and nothing else.
PYTHON ?= python3
# torch comes first and alone, so that nothing pulls another build of it. On a machine without a GPU
# outside a pre-built environment: make setup TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_OPTIONS ?=
BIN := .venv/bin
STAMP := .venv/.installed

# GNU OpenMP spins while it waits; two busy processes on two cores would slow each other tenfold.
export OMP_WAIT_POLICY ?= passive
unexport HF_HUB_OFFLINE

.DEFAULT_GOAL := help
.PHONY: help postgres setup demo test learning learning-toys soak audit-accuracy soak-sandbox fuzz fuzz-parsers load bench bench-environments check format clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Make .venv with everything, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/pip install --quiet $(TORCH_OPTIONS) $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable . --group dev
	$(BIN)/pip install --quiet --no-deps --target .venv/openai-1.109.1 --upgrade openai==1.109.1 distro==1.9.0 tqdm==4.67.1
	touch $@

demo: $(STAMP) ## Improve the support desk agent: search, advice, training, one report
	$(BIN)/agentrft improve examples/support_desk

# A database server does not come from the package index; the tests run a private one of it.
postgres:
	@test -n "$$AGENTRFT_TESTS_WITHOUT_POSTGRES" || command -v initdb > /dev/null \
	    || ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 \
	    || apt-get install --yes --no-install-recommends postgresql \
	    || { echo "the tests need PostgreSQL: install it, or set AGENTRFT_TESTS_WITHOUT_POSTGRES=1"; exit 1; }

test: $(STAMP) postgres ## Run the tests (about 25 minutes on two cores)
	$(BIN)/python -m pytest -m "not slow" --durations 15

learning: $(STAMP) ## Three seeds of the support desk, one after the other (about an hour)
	for seed in 0 1 2; do \
	    $(BIN)/agentrft improve examples/support_desk --seed $$seed || exit 1; \
	done

learning-toys: $(STAMP) ## Every method on toys with a known optimum, five seeds (about 15 minutes); prints a table
	$(BIN)/python -m pytest -s tests/learning

soak: $(STAMP) ## Two workers, 200 jobs, SIGKILL at random moments (about 15 minutes)
	AGENTRFT_SOAK_JOBS=200 $(BIN)/python -m pytest -s tests/jobs/test_killed_workers.py

fuzz: $(STAMP) ## 5,000 and more generated requests against every route of the API
	AGENTRFT_SCHEMATHESIS_CASES=120 $(BIN)/python -m pytest -s tests/server/test_schema.py

soak-sandbox: $(STAMP) ## 10,000 gradings of every kind at every level; nothing may be left (about 15 minutes)
	AGENTRFT_SANDBOX_CALLS=10000 $(BIN)/python -m pytest -s tests/sandbox/test_leaks.py

fuzz-parsers: $(STAMP) ## Coverage-guided: each parser of strangers' text for SECONDS (60)
	$(BIN)/pip install --quiet --constraint constraints.txt --group fuzz
	for parser in formula template rows reply; do \
	    $(BIN)/python tests/fuzz/atheris_parsers.py $$parser -max_total_time=$(or $(SECONDS),60) || exit 1; \
	done

audit-accuracy: $(STAMP) ## Audit every grader of the corpus, planted and clean (about ten minutes)
	AGENTRFT_AUDIT_ACCURACY=1 $(BIN)/python -m pytest tests/audit/test_accuracy.py

load: $(STAMP) ## Load on a running server: AGENTRFT_TOKEN=art-... make load PID=1234 (see benchmarks/README.md)
	$(BIN)/pip install --quiet --constraint constraints.txt --group load
	$(BIN)/python benchmarks/load.py --pid $(PID)

# Competitors pin what we do not; each has an environment of its own, after the same torch as ours.
bench-environments: .bench/vllm/.installed .bench/trl/.installed ## Make .bench/vllm and .bench/trl for `make bench`

.bench/%/.installed: benchmarks/speed/%.txt constraints.txt
	$(PYTHON) -m venv .bench/$*
	.bench/$*/bin/pip install --quiet --disable-pip-version-check "pip>=25.1"
	.bench/$*/bin/pip install --quiet $(TORCH_OPTIONS) $$(grep '^torch==' constraints.txt)
	.bench/$*/bin/pip install --quiet --requirement $<
	.bench/$*/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec # builds for CUDA, which nothing here calls
	touch $@

bench: $(STAMP) bench-environments ## Ours against what else one could run, side by side (hours); writes docs/speed.md
	$(BIN)/python benchmarks/speed $(PARTS)
	$(BIN)/python benchmarks/speed/page.py

check: $(STAMP) ## Lint, format, types, arrows between rooms, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/typos

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove the environment and caches
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
