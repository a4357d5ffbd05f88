// A file includes this before it names an instruction set: everything here is compiled for the baseline, so that no
// symbol shared between instruction sets holds instructions that only one of them knows.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/cell_registry.h"
#include "cpu/compilers.h"
#include "cpu/kernels.h"
#include "scan.h"
