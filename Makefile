# All of it is in make.py, for machines without make. A Python of your choice: make demo PYTHON=python3.12
ifeq ($(OS),Windows_NT)
PYTHON ?= python
else
PYTHON ?= $(shell command -v python3 || command -v python)
endif

.PHONY: demo test lint setup
demo test lint setup:
	@$(PYTHON) make.py $@
