# Everything on a fresh Debian or Ubuntu with Python >= 3.10 and a C++ compiler: `make demo`, `make test`.
# Both set up a virtual environment and build the library first; called again, they redo only what changed.

TORCH_DEFAULT := 2.13.0
TORCH_OLDEST := 2.10.0
TORCH_NEWEST := 2.15.0
TORCH := $(TORCH_DEFAULT)
TORCH_CUDA := 2.14.1
TRITON := triton==3.8.*
ARCHS := 7.5;8.0;8.6;9.0;10.0;12.0+PTX
PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
ARGS :=
ifeq ($(origin CXX),default)
CXX := c++
endif
CLANG ?= $(firstword $(notdir $(wildcard /usr/bin/clang++-19 /usr/bin/clang++-16)) clang++)

# Each torch has a virtual environment of its own, so that switching between two installs nothing.
VENV := .venv$(if $(filter-out $(TORCH_DEFAULT),$(TORCH)),-$(TORCH))
BIN := $(VENV)/bin
CUDA_BIN := .venv-$(TORCH_CUDA)/bin
CUDA_READY := .venv-$(TORCH_CUDA)/.cuda-ready
READY := $(VENV)/.ready-$(TORCH)
DEV := $(VENV)/.dev-$(TORCH)
BENCH := $(VENV)/.bench-$(TORCH)
INTEGRATIONS := .venv-integrations/.ready-$(TORCH)
PROGRAMS := .venv-programs/.ready-$(TORCH)
DOCS := .venv-docs/.ready-$(TORCH)
DISASSEMBLER := $(VENV)/disassembler
LIBRARY := fastrnn/_C.abi3.so
SANITIZED := build/sanitize/$(LIBRARY)
QUICK := build/quick/$(LIBRARY)
SOURCES := setup.py fastrnn/cells/toolchain.py $(shell find csrc)# folders too: they change when a file goes
FORMATTED = $(shell find csrc simulator tests benchmarks tools -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PYTEST := $(BIN)/python -m pytest
# An idle worker takes tests from another: tests of one file take from a millisecond to a minute.
WORKERS = -n $(JOBS) --dist worksteal
# Tests start Python a hundred times, which would compile the package anew where bytecode is not written.
export PYTHONDONTWRITEBYTECODE :=
# Continuous integration adds dev: a second call of pip would link the library again.
EXTRAS ?= test,ray

# Native tests: kernels without torch, for this machine, for the thread sanitizer and for 64-bit Arm.
NATIVE_TESTS := plan cuda_plan cuda_model team kernels activations functions dropout stream
# These try every float.
EXHAUSTIVE := %activations %functions
NATIVE_FLAGS := -std=c++20 -fno-math-errno -ffp-contract=off -Wall -Wextra -Wno-maybe-uninitialized -pthread -Icsrc
NATIVE_OBJECTS := $(patsubst csrc/%.cpp,%,$(wildcard csrc/cpu/*.cpp csrc/stream/*.cpp))
# The library's object files; "=" looks for them only when they are used, after they are built.
HOST_OBJECTS = $(wildcard build/torch-$(TORCH)*/csrc)
NATIVE_HEADERS := $(wildcard tests/native/*.h)
# The thread sanitizer needs fixed addresses, so its tests run without address space randomization.
TSAN_RUN = $(shell setarch -R true 2>/dev/null && echo setarch -R)

.PHONY: help install setup demo test quick stream test-sanitize test-simulator-full test-full test-native test-clang test-tsan test-neon test-abi test-integrations bench bench-programs reference wheel wheel-cuda resources test-gpu abi3audit lint format clean FORCE
.DELETE_ON_ERROR:

help: ## this list
	@echo 'make TARGET [TORCH=$(TORCH)] [PYTHON=$(PYTHON)] [CXX=$(CXX)] [MAX_JOBS=n] [USE_CUDA=0|1] [JOBS=n] [ARCHS=x.y;...] [ARGS="pytest or benchmark arguments"]'
	@sed -n 's/^\([a-z0-9-]*\):.* ## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 18

install: $(READY) # the virtual environment, and the library as its installation builds it

setup: $(LIBRARY) ## make the virtual environment and build the library

demo: setup ## train a small model, draw build/demo.png
	@mkdir -p build
	$(BIN)/python -m fastrnn demo --plot build/demo.png

# Most of the simulator's kernels run once or twice: optimizing them takes longer than it saves.
test: setup $(DISASSEMBLER) ## all tests, on JOBS workers
	SIMULATOR_OPTIMIZE=$${SIMULATOR_OPTIMIZE:-0} $(PYTEST) $(WORKERS) $(ARGS)

# One process: the tests take 4 s of the processor, and each worker more to import torch.
quick: $(QUICK) ## within a minute: float32 on this machine's best instruction set, against the oracle
	FASTRNN_LIBRARY=$(abspath $<) $(PYTEST) -q -r fE tests/ops/test_kernels.py \
	  -k 'float32 and (matches_oracle or projection)' $(ARGS)

test-sanitize: $(SANITIZED) ## the kernel tests, of this machine's best instruction set, under the address and undefined-behaviour sanitizers
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 FASTRNN_LIBRARY=$(abspath $<) \
	$(PYTEST) $(WORKERS) -m 'not slow' -k 'test_kernels or loop or packed or frozen or stream' --capture=sys \
	  tests/ops/test_kernels.py tests/transforms/test_transforms.py tests/modules/test_frozen.py tests/modules/test_stream.py $(ARGS)
	@mkdir -p build/native/sanitize
	$(CXX) -O1 -g1 -fsanitize=address,undefined $(NATIVE_FLAGS) tests/native/test_stream.cpp \
	  $(wildcard $(NATIVE_OBJECTS:%=build/sanitize-torch-$(TORCH)*/csrc/%.o)) \
	  -o build/native/sanitize/test_stream
	build/native/sanitize/test_stream

test-simulator-full: setup ## the CUDA kernels on the simulator, every case
	FASTRNN_SIMULATOR_FULL=1 $(PYTEST) $(WORKERS) simulator/tests tests/cuda $(ARGS)

test-full: setup ## 2,000 random cells: kernels beside the loop of torch operations and differences
	FASTRNN_FUZZ_CELLS=2000 $(PYTEST) $(WORKERS) tests/cells/test_fuzz.py $(ARGS)

test-native: $(NATIVE_TESTS:%=build/native/host/test_%) build/native/amx/test_kernels ## the kernels without torch; tanh, exp and the like of every float
	$(foreach test,$^,$(test) &&) true

stream: build/stream/libfastrnn_stream.a ## the library of fastrnn_stream.h, and its example: build/stream/
	$(CC) -O2 -Ibuild/stream examples/stream_filter.c $< -lstdc++ -lm -pthread -o build/stream/stream_filter

test-clang: $(NATIVE_TESTS:%=build/native/clang/test_%) build/native/clang-amx/test_kernels ## the same, compiled by CLANG (16 or newer)
	$(foreach test,$(filter-out $(EXHAUSTIVE),$^),$(test) &&) true
	$(foreach test,$(filter $(EXHAUSTIVE),$^),$(test) 997 &&) true

test-tsan: $(filter-out $(EXHAUSTIVE),$(NATIVE_TESTS:%=build/native/tsan/test_%)) ## barriers and threads under the thread sanitizer
	$(foreach test,$^,$(TSAN_RUN) $(test) &&) true

test-neon: $(NATIVE_TESTS:%=build/native/neon/test_%) ## the same for 64-bit Arm, emulated (g++-aarch64-linux-gnu, qemu-user)
	$(foreach test,$(filter-out $(EXHAUSTIVE),$^),qemu-aarch64 $(test) &&) true
	$(foreach test,$(filter $(EXHAUSTIVE),$^),qemu-aarch64 $(test) 997 &&) true
	qemu-aarch64 -cpu cortex-a53 $(filter %stream,$^) # a chip without SDOT

# The checkout is not on the path here, for its fastrnn would be tested in the place of the wheel's.
test-abi: wheel ## one library under the oldest and the newest torch, all tests of its calls (downloads several GB)
	for torch in $(TORCH_OLDEST) $(TORCH_NEWEST); do \
	  env=build/abi-$$torch; wheel=$$(echo dist/*.whl); \
	  $(PYTHON) -m venv $$env && \
	  $$env/bin/pip install torch==$$torch "$$wheel[test]" && \
	  $$env/bin/pip install --force-reinstall --no-deps "$$wheel" && \
	  $$env/bin/pytest -o pythonpath=tests -n $(JOBS) tests/ops tests/modules tests/transforms $(ARGS) || exit 1; \
	done

# The packages come in the versions that there are; -k also takes what runs docs/integrations.md.
test-integrations: $(LIBRARY) $(INTEGRATIONS) ## fastrnn.integrations with the real TorchRL, sb3-contrib, Opacus, Lightning (downloads them)
	.venv-integrations/bin/python -m pytest --foreign-versions -k integrations tests/integrations tests/project/test_readme.py $(ARGS)

bench: $(LIBRARY) $(BENCH) ## speed and errors beside other runtimes: tables, build/benchmarks/report.md and pictures
	$(BIN)/python -m benchmarks $(ARGS)

# torchaudio may have been compiled for another torch, one with CUDA, and does not import then. Two of the packages
# import it, and neither uses its compiled part here.
bench-programs: $(LIBRARY) $(PROGRAMS) ## models of darts, Stanza, TorchRL and others before and after accelerate (downloads them)
	.venv-programs/bin/python -c 'import torchaudio' 2>/dev/null || \
	  rm -f .venv-programs/lib/python*/site-packages/torchaudio/lib/*.so
	.venv-programs/bin/python -m benchmarks.programs $(ARGS)

# Sphinx warns of a page when it reads it: without -E a second call would pass.
reference: $(LIBRARY) $(DOCS) ## every public name, and the pages of docs/: build/docs/index.html; a warning fails (downloads Sphinx)
	.venv-docs/bin/python -m sphinx -W --keep-going -E -q -b html docs build/docs

wheel: $(DEV) ## dist/: the sources packed, and the wheel built from them
	rm -rf dist
	$(BIN)/pyproject-build --no-isolation

wheel-cuda: $(CUDA_READY) ## build/cuda/: the wheel with CUDA kernels, for ARCHS, imported without a GPU (downloads several GB)
	rm -rf build/cuda
	USE_CUDA=1 CUDA_HOME= TORCH_CUDA_ARCH_LIST='$(ARCHS)' \
	  $(CUDA_BIN)/pip wheel -q --no-build-isolation --no-deps -w build/cuda .
	$(CUDA_BIN)/pip install -q --no-deps --target build/cuda/site build/cuda/*.whl
	cd build/cuda/site && $(abspath $(CUDA_BIN))/python -c \
	  'import fastrnn, fastrnn.library as l; assert "cuda" in l.DEVICES, l.DEVICES; print(fastrnn.__file__, l.DEVICES)'
	@$(MAKE) -s resources

build/cuda/site/$(LIBRARY):
	$(MAKE) wheel-cuda

resources: build/cuda/site/$(LIBRARY) ## what every kernel of that wheel takes, and its matrix instructions: build/cuda/resources.md
	$(CUDA_BIN)/python -m tools.resources $< --output build/cuda/resources.md

test-gpu: setup ## the tests marked gpu on a GPU, beside cuDNN and float64: build/gpu/report.md
	$(PYTEST) --device cuda $(ARGS)
	if command -v compute-sanitizer >/dev/null; then \
	  compute-sanitizer --error-exitcode 1 $(PYTEST) --device cuda -k 'test_matches_oracle and float32' tests/ops/test_kernels.py; fi

abi3audit: wheel ## check that the wheel keeps to Python's stable ABI
	$(BIN)/abi3audit --strict --summary dist/*.whl

lint: $(DEV) ## what a change must pass besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/mypy

format: $(DEV) ## reformat Python and C++
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean: ## remove what was built; the virtual environments (.venv*) stay
	rm -rf build dist *.egg-info $(LIBRARY)

# This checks first, since torch takes long to download.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo 'fastrnn: $(PYTHON) is not a Python >= 3.10. Install one: apt-get install python3 python3-venv' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'fastrnn: $(PYTHON) cannot make virtual environments. Install: apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -Bc 'import setup; setup.find_compiler()'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install torch==$(TORCH) 'setuptools>=77.0.3' ninja
	$(BIN)/pip install -q --no-build-isolation -e '.[$(EXTRAS)]' torch==$(TORCH)
	@touch $@ $(if $(findstring dev,$(EXTRAS)),$(DEV))

$(DEV): $(READY)
	$(BIN)/pip install -q --no-build-isolation -e '.[dev]' torch==$(TORCH)
	@touch $@

# The disassembler of GPU machine code comes with the triton package, for Linux only. It is unpacked beside the other
# packages rather than installed, since torch.compile would use an installed triton.
$(DISASSEMBLER): | $(READY)
	-$(BIN)/pip install -q --no-deps --target $@ $(TRITON)
	@mkdir -p $@

$(BENCH): $(READY)
	$(BIN)/pip install -q --no-build-isolation -e '.[bench]' torch==$(TORCH)
	@touch $@

# An extra's packages alone: an installation of fastrnn would compile the library anew, for other paths.
$(INTEGRATIONS) $(PROGRAMS) $(DOCS): .venv-%/.ready-$(TORCH): pyproject.toml | $(READY)
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install -q torch==$(TORCH) pytest $$($(BIN)/python -c \
	  'import importlib.metadata as m; print(*(r.split(";")[0] for r in m.requires("fastrnn") if "$*" in r))')
	@touch $@

# A torch for CUDA, and nvcc of the same version: its parts find each other where they are installed. This file
# is no prerequisite: an edit of it would install gigabytes anew.
$(CUDA_READY): pyproject.toml
	test -x $(CUDA_BIN)/python || $(PYTHON) -m venv .venv-$(TORCH_CUDA)
	$(CUDA_BIN)/pip install -q torch==$(TORCH_CUDA) 'setuptools>=77.0.3' ninja numpy
	cuda=$$($(CUDA_BIN)/python -c 'import torch; print(torch.version.cuda)') && \
	  $(CUDA_BIN)/pip install -q nvidia-cuda-nvcc==$$cuda.* nvidia-cuda-crt==$$cuda.* \
	    nvidia-cuda-cccl==$$cuda.* nvidia-nvvm==$$cuda.*
	@touch $@

# One library serves every torch, but each torch is tested with the one it was built with.
build/built-with: FORCE
	@mkdir -p build
	@echo $(TORCH) | cmp -s - $@ || echo $(TORCH) > $@

$(LIBRARY): build/built-with $(SOURCES) | $(READY)
	$(BIN)/python setup.py build_ext --inplace
	@touch $@

$(QUICK): $(SOURCES) | $(READY)
	FASTRNN_ONLY=$${FASTRNN_ONLY:-best,float32} $(BIN)/python setup.py -q build_ext --build-lib build/quick
	@touch $@

# The sets differ in the width of a vector: the engine around it is one. FASTRNN_ONLY= builds all of them.
$(SANITIZED): $(SOURCES) | $(READY)
	FASTRNN_SANITIZE=address,undefined FASTRNN_ONLY=$${FASTRNN_ONLY-best} \
	  $(BIN)/python setup.py build_ext --build-lib build/sanitize
	@touch $@

# The native tests of this machine link what the library is made of.
build/native/host/test_%: tests/native/test_%.cpp $(NATIVE_HEADERS) $(LIBRARY)
	@mkdir -p $(@D)
	$(CXX) -O2 $(NATIVE_FLAGS) $(filter tests/native/%.cpp,$^) $(NATIVE_OBJECTS:%=$(HOST_OBJECTS)/%.o) -o $@

build/stream/libfastrnn_stream.a: $(LIBRARY)
	@mkdir -p $(@D)
	rm -f $@
	ar rcs $@ $(NATIVE_OBJECTS:%=$(HOST_OBJECTS)/%.o)
	cp csrc/stream/fastrnn_stream.h $(@D)

# The functions of every instruction set are a file each.
$(foreach build,host clang tsan neon,build/native/$(build)/test_functions): $(wildcard tests/native/functions_*.cpp)

# The kernels for matrix registers, on a machine that has none.
build/native/amx/test_kernels: tests/native/test_kernels.cpp tests/native/amx_emulated.cpp $(NATIVE_HEADERS) $(LIBRARY)
	@mkdir -p $(@D)
	$(CXX) -O2 $(NATIVE_FLAGS) $(filter tests/native/%.cpp,$^) \
	  $(patsubst %,$(HOST_OBJECTS)/%.o,$(filter-out %/isa_amx,$(NATIVE_OBJECTS))) -o $@

build/native/clang-amx/test_kernels: tests/native/test_kernels.cpp tests/native/amx_emulated.cpp $(NATIVE_HEADERS) $(patsubst %,build/native/clang/%.o,$(filter-out %_duals %/isa_amx,$(NATIVE_OBJECTS)))
	@mkdir -p $(@D)
	$(CLANG_RUN) $(NATIVE_FLAGS) $(filter-out %.h,$^) -o $@

# $(1): folder, $(2): compiler, $(3): objects
define NATIVE_RULES
build/native/$(1)/%.o: csrc/%.cpp $(SOURCES)
	@mkdir -p $$(@D)
	$(2) $(NATIVE_FLAGS) -c $$< -o $$@

build/native/$(1)/test_%: tests/native/test_%.cpp $(NATIVE_HEADERS) $(3:%=build/native/$(1)/%.o)
	$(2) $(NATIVE_FLAGS) $$(filter %.cpp %.o,$$^) -o $$@
endef
$(eval $(call NATIVE_RULES,tsan,$(CXX) -O1 -g1 -fsanitize=thread -DFASTRNN_WITHOUT_DUALS,$(filter-out %_duals,$(NATIVE_OBJECTS))))
CLANG_RUN = $(CLANG) -O1 -Wno-unknown-warning-option -DFASTRNN_WITHOUT_DUALS
$(eval $(call NATIVE_RULES,clang,$$(CLANG_RUN),$(filter-out %_duals,$(NATIVE_OBJECTS))))
$(eval $(call NATIVE_RULES,neon,aarch64-linux-gnu-g++ -O2 -static,$(NATIVE_OBJECTS)))
.SECONDARY:
