# Aliases of the two set-up commands; without make, type what stands behind them.
.PHONY: run test
run:
	python3 bootstrap.py run $(ARGS)
test:
	python3 bootstrap.py test $(ARGS)
