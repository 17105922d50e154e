# make build: set-up and build.  make test: that and all tests.  make demo: that and the main job, end to end.
SHELL := /bin/bash
JOBS ?= $(shell nproc)

.PHONY: setup build test demo format clean
setup:
	@scripts/setup.sh
build: setup
	@test -f build/build.ninja || cmake --preset release
	@cmake --build build --parallel $(JOBS)
test:
	@scripts/setup.sh tests  # before the build, which looks for clang to register the fuzz test
	@$(MAKE) --no-print-directory build
	@cd build && ctest --output-on-failure --timeout 1200
demo: build
	@scripts/demo.sh
format:
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format-16 -i
clean:
	rm -rf build build-debug build-asan build-cuda build-gpu
