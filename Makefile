# Every target makes .venv if it is missing and installs what it lacks; it installs again, which
# takes a network, only after pyproject.toml changed. The stamps in .venv remember what is there.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NO_VENV := vesselseg: error: $(PYTHON) cannot make virtual environments; \
	install the Debian package python3-venv

.PHONY: demo test lint bench style gpu

demo: .venv/.core
	$(BIN)/vesselseg demo -o out --overwrite

# Two workers for two cores; a file's tests stay together, for they share what they set up.
test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --output-format concise .
	$(BIN)/mypy vesselseg

bench: .venv/.core
	$(BIN)/python studies/bench_path.py

gpu: .venv/.test
	studies/on_device.sh

style:
	@$(PYTHON) studies/style.py

.venv/bin/pip:
	@$(PYTHON) -c "import ensurepip" 2>/dev/null || { echo "$(NO_VENV)" >&2; exit 5; }
	$(PYTHON) -m venv .venv

.venv/.core: pyproject.toml | .venv/bin/pip
	$(INSTALL) -e .
	@touch $@

.venv/.test: pyproject.toml | .venv/bin/pip
	$(INSTALL) -e ".[test,dicom,vtk,tensorboard,onnx,study]"
	@touch .venv/.core $@

.venv/.dev: pyproject.toml | .venv/bin/pip
	$(INSTALL) -e ".[test,dicom,vtk,tensorboard,onnx,study,dev]"
	@touch .venv/.core .venv/.test $@
