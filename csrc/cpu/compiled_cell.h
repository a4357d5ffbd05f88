// What a file with a user's cell includes, after the header that names the instruction set. The library that it is
// compiled to holds the cell's side of the seam (cpu/cell_kernels.h) for one storage type, and no engine.
#pragma once

#include <string_view>

#include "cells/functions.h"
#include "cpu/cell_registry.h"
#include "cpu/cell_update.h"

// The function through which the library is read. FASTRNN_CELL_LAYOUT is a string for the headers' contents: a library
// of other headers would take other objects for the engine's.
#define FASTRNN_COMPILED_CELL(Cell, Type)                                                                       \
  extern "C" __attribute__((visibility("default"))) const fastrnn::cpu::CompiledCell* fastrnn_compiled_cell() { \
    using namespace fastrnn;                                                                                    \
    static constexpr cpu::CompiledCell cell{                                                                    \
        FASTRNN_CELL_LAYOUT,         Cell::kName.data(), FASTRNN_ISA::kInstructionSet.data(),                   \
        cpu::kTypeName<Type>.data(), kFacts<Cell>,       &FASTRNN_ISA::kCellKernels<Cell, Type>};               \
    return &cell;                                                                                               \
  }
