# make demo   set up, then reproduce a paper: trained, checkpointed, figures, claims, report.html
# make test   set up, then run every test that CI runs
# make check  lint, types and import rules
# Any of them with another interpreter: make test PYTHON=python3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check slow clean

demo: $(VENV)/demo
	$(BIN)/jattn run in_context_regression
	$(BIN)/jattn report latest

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

slow: $(VENV)/test
	$(BIN)/python -m pytest -m slow

check: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# One stamp a set of extras; a changed pyproject.toml installs anew.
$(VENV)/demo: EXTRAS :=
$(VENV)/test: EXTRAS := [test]
$(VENV)/dev: EXTRAS := [dev]
$(VENV)/demo $(VENV)/test $(VENV)/dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".$(EXTRAS)"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV)
