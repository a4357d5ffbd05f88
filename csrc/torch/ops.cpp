// The ops' schemas, and what Python asks about the cells. scan is one layer in one direction over a whole sequence.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/checks.h"

namespace fastrnn {
namespace {

std::string cells() { return Cells::names(); }

std::tuple<int64_t, int64_t, bool> cell_facts_of(std::string cell) {
  const CellFacts facts = cell_facts(cell);
  return {facts.gates, facts.saved, facts.has_cell_state};
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY(fastrnn, m) {
  m.def(
      "scan(str cell, Tensor input, Tensor h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, Tensor? weight_hr, Tensor? reset_h, Tensor? reset_c, Tensor? lengths, Tensor? batch_sizes, "
      "Tensor? offsets, Tensor? reset, bool reverse, bool save, bool recompute=False, bool all_states=False, "
      "int groups=0, bool tf32=False) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)");
  m.def(
      "scan_backward(str cell, Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cells, Tensor input, "
      "Tensor h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
      "Tensor? weight_hr, Tensor? reset_h, Tensor? reset_c, Tensor? lengths, Tensor? batch_sizes, Tensor? offsets, "
      "Tensor? reset, bool reverse, Tensor y, Tensor gates, Tensor cells, int needs, int groups=0, bool tf32=False) "
      "-> (Tensor d_input, Tensor d_h_0, Tensor d_c_0, Tensor d_weight_ih, Tensor d_weight_hh, Tensor d_bias_ih, "
      "Tensor d_bias_hh, Tensor d_weight_hr, Tensor d_reset_h, Tensor d_reset_c)");
  m.def(
      "scan_choice(str cell, Tensor input, Tensor h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr, Tensor? reset_h, Tensor? reset_c, Tensor? lengths, "
      "Tensor? batch_sizes, Tensor? offsets, Tensor? reset, bool reverse, bool save, bool recompute=False, "
      "bool all_states=False, int groups=0, bool tf32=False) -> str");
  m.def("dropout_mask(Tensor seed, int stream, SymInt[] shape, float p, ScalarType dtype) -> Tensor");
  m.def("cpu_instruction_sets() -> str");
  m.def("cells() -> str");
  m.def("cell_facts(str cell) -> (int gates, int saved, bool has_cell_state)");
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cells", TORCH_BOX(&fastrnn::cells));
  m.impl("cell_facts", TORCH_BOX(&fastrnn::cell_facts_of));
}
