# make repro    the environment, the pipeline, the verdict       make repro EXPERIMENT=smoke    another experiment
# make test     the environment, the whole test suite            make PYTHON=python3.12 …       another Python
#                                                                make GPU=1 …                   with CUDA
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(if $(GPU),requirements-gpu.txt,requirements.txt)
FOUND := $(or $(shell command -v $(PYTHON)),$(PYTHON))
# The Python and the content of the lock: a file that is as it was, but newer, remakes nothing.
STAMP := $(VENV)/made-of-$(shell { $(PYTHON) -VV; cat $(LOCKED); } | sha256sum | cut -c -16)
# A process of this environment finds its commands: dvc the python of the stages, without activation.
ON_PATH := 'import os, sys; os.environ["PATH"] = f"{sys.prefix}/bin:" + os.environ.get("PATH", os.defpath)'
LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: env repro test lint check verify compare docs bench lock clean

env: $(STAMP)

$(STAMP):
	@$(FOUND) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	$(FOUND) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCKED)
	@echo $(ON_PATH) > $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/on_path.pth
	@touch $@

repro: env
ifdef EXPERIMENT
	cp experiments/$(EXPERIMENT).yaml params.yaml
endif
	@mkdir -p .dvc/tmp
	@python -m lottery check --params
	@touch .dvc/tmp/began
	dvc repro
	@test reports/report.md -nt .dvc/tmp/began || { sed -n '3s/\*\*//gp' reports/report.md; echo "Look at reports/report.html"; }

test: env
	python -m pytest

lint: env
	ruff check .
	ruff format --check .
	mypy

# Whether dvc.lock and reports/ belong to the committed parameters and code; needs no data.
check: env
	@python -m lottery check

# Whether the committed results come out again, bit for bit: everything is computed anew, elsewhere.
verify: env
	@python -m lottery verify

# The results at a revision beside the present ones: a Markdown summary, and reports/compare.html.
REV ?= main
compare: env
	@python -m lottery compare $(REV)

# The documentation as a site, in site/.
docs: env
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict  # --quiet would hide the warnings from --strict

# Prints tables; leave the machine alone meanwhile. TORCH=python-with-torch adds PyTorch.
bench: env
	python -m benchmarks.training $(if $(TORCH),--torch $(TORCH))
	python -m benchmarks.pipeline
	python -m benchmarks.scaling

# The locked requirements, with hashes, for Python 3.11 to 3.13 on every platform. Needs uv.
lock:
	uv pip compile $(LOCK) requirements.in requirements-dev.in -o requirements.txt
	cp requirements.txt requirements-gpu.txt
	uv pip compile $(LOCK) requirements-gpu.in -o requirements-gpu.txt

clean:
	rm -rf $(VENV)
