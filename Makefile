# All of it is in make.py, for machines without make. A Python of your choice: make demo PYTHON=python3.12
PYTHON ?= $(shell command -v python3 || command -v python)

.PHONY: demo test lint setup
demo test lint setup:
	@$(PYTHON) make.py $@
