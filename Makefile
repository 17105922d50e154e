# make demo: the tool, and with it the main job end to end.  make build: tool and library, with kernels for GPUs where
# triton is found.  make test: everything, and all tests.  Each installs what is missing first, and says so.
SHELL := /bin/bash
JOBS ?= $(shell nproc)

.PHONY: setup configure build test demo format clean
setup:
	@scripts/setup.sh
# A folder that was made for the demo is configured anew once more than that is wanted.
configure: setup
	@if [ ! -f build/build.ninja ]; then cmake --preset release; \
	elif [ -f build/demo-only ]; then cmake --preset release -U MOH_TRITON -U MOH_TESTS && rm build/demo-only; fi
build: configure
	@cmake --build build --parallel $(JOBS) --target moh_cli moh operator_bench
test:
	@scripts/setup.sh tests  # before the build, which looks for clang to register the fuzz test
	@$(MAKE) --no-print-directory configure
	@cmake --build build --parallel $(JOBS)
	@cd build && ctest --output-on-failure --timeout 1200
demo: setup
	@[ -f build/build.ninja ] || { cmake --preset release -DMOH_TRITON=OFF -DMOH_TESTS=OFF >/dev/null && touch build/demo-only; }
	@echo "demo: building build/moh, some minutes of $(JOBS) cores the first time"
	@cmake --build build --parallel $(JOBS) --target moh_cli
	@scripts/demo.sh
format:
	@git ls-files '*.h' '*.cpp' | xargs clang-format-16 -i
clean:
	rm -rf build build-debug build-asan build-gpu
