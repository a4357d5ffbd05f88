// What Python asks about cells, and how cells that are compiled later come in.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "cell_layout.h"  // setup.py writes it
#include "cpu/cell_registry.h"
#include "torch/checks.h"
#include "torch/instruction_sets.h"
#include "torch/lists.h"

namespace fastrnn {
namespace {

std::string cells() { return Cells::names(); }

// The counts, in the order of CellFacts.
std::vector<int64_t> cell_facts_of(std::string cell) {
  const auto [input_gates, recurrent_gates, cell_states, vectors, extra_inputs, numbers, saved, has_output] =
      cell_facts(cell);
  return {input_gates, recurrent_gates, cell_states, vectors, extra_inputs, numbers, saved};
}

// "name role, ..." of the tensors that belong to a cell; a result's differentiable is said, too.
std::string table_of(const CellFacts& cell, auto&& for_each) {
  constexpr const char* kRoles[] = {"sequence", "state", "matrix", "vector"};
  std::string text;
  for_each([&](const TensorInfo& info) {
    if (!info.belongs_to(cell)) return;
    text.append(text.empty() ? "" : ",").append(info.name).append(" ").append(kRoles[static_cast<int>(info.role)]);
    if (!info.differentiable()) text.append(" constant");
  });
  return text;
}

std::tuple<std::string, std::string> cell_tensors(std::string cell) {
  const CellFacts facts = cell_facts(cell);
  return {table_of(facts, [](auto&& f) { for_each_tensor(f); }), table_of(facts, [](auto&& f) { for_each_result(f); })};
}

void check_new_name(const std::string& cell) {
  STD_TORCH_CHECK(!cell.empty() && cell.find(',') == std::string::npos, "fastrnn: '", cell, "' is no name of a cell");
  STD_TORCH_CHECK(!is_built_in(cell), "fastrnn: '", cell, "' is a cell of the library");
}

void register_cell(std::string cell, std::vector<int64_t> facts, bool has_output) {
  check_new_name(cell);
  STD_TORCH_CHECK(facts.size() == 7, "fastrnn: expected 7 facts of a cell, got ", facts.size());
  const CellFacts given{facts[0], facts[1], facts[2], facts[3], facts[4], facts[5], facts[6], has_output};
  const auto fits = [](int64_t count, int64_t least, int64_t most) { return least <= count && count <= most; };
  STD_TORCH_CHECK(fits(given.input_gates, 1, kMostGates) && fits(given.recurrent_gates, 0, kMostGates) &&
                      fits(given.extra_inputs, 0, kMostExtraInputs) && fits(given.cell_states, 0, kMostOfAUnit) &&
                      fits(given.vectors, 0, kMostOfAUnit) && fits(given.numbers, 0, kMostOfAUnit) &&
                      fits(given.saved, 0, kMostOfAUnit),
                  "fastrnn: the facts of cell '", cell, "' are out of range");
  STD_TORCH_CHECK(cpu::register_cell(cell, given), "fastrnn: cell '", cell, "' was registered with other facts");
}

// Loads a library of compiled cells. It is never unloaded.
void load_cell(std::string path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  STD_TORCH_CHECK(library, "fastrnn: ", dlerror());
  auto* const function = reinterpret_cast<cpu::CompiledCellFunction*>(dlsym(library, cpu::kCompiledCellFunction));
  STD_TORCH_CHECK(function, "fastrnn: ", path, " is not a compiled cell");
  for (std::size_t index = 0; const cpu::CompiledCell* const cell = function(index); ++index) {
    STD_TORCH_CHECK(std::string_view(cell->layout) == FASTRNN_CELL_LAYOUT, "fastrnn: ", path,
                    " was compiled with the headers of another build of fastrnn");
    check_new_name(cell->name);
    STD_TORCH_CHECK(cpu::register_kernels(*cell), "fastrnn: cell '", cell->name, "' was registered with other facts");
  }
}

bool has_cell(std::string cell, ScalarType dtype) {
  if (is_built_in(cell)) return true;
  return dispatch_dtype(dtype, [&]<class S>() { return cpu::cell_kernels<S>(cell) != nullptr; });
}

std::string cell_layout() { return FASTRNN_CELL_LAYOUT; }

std::string cell_instruction_set() { return std::string(cpu::cell_instruction_set()); }

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cells", TORCH_BOX(&fastrnn::cells));
  m.impl("cell_facts", TORCH_BOX(&fastrnn::cell_facts_of));
  m.impl("cell_tensors", TORCH_BOX(&fastrnn::cell_tensors));
  m.impl("register_cell", TORCH_BOX(&fastrnn::register_cell));
  m.impl("load_cell", TORCH_BOX(&fastrnn::load_cell));
  m.impl("has_cell", TORCH_BOX(&fastrnn::has_cell));
  m.impl("cell_layout", TORCH_BOX(&fastrnn::cell_layout));
  m.impl("cell_instruction_set", TORCH_BOX(&fastrnn::cell_instruction_set));
}
