# Each target works from a fresh clone with only Python 3.11+ and make.
PYTHON ?= python3
PORT ?= 8501
BIN := .venv/bin

.PHONY: app bench lint setup test

app: setup ## serve the dashboard on http://localhost:8501
	$(BIN)/streamlit run app.py --server.port $(PORT)

setup: .venv/.users

test: .venv/.developers
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.developers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.developers
	PYTHONPATH=. $(BIN)/python benchmarks/training.py
	PYTHONPATH=.:tests $(BIN)/python benchmarks/page.py
	PYTHONPATH=.:tests $(BIN)/python benchmarks/audience.py

.venv/.users: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("regcompare needs Python 3.11 or newer, got %d.%d. Name one: make PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.developers: .venv/.users requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
