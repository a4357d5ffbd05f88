// The ops' schemas; no logic. scan is one layer in one direction over a whole sequence.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastrnn, m) {
  m.def(
      "scan(str cell, Tensor input, Tensor h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, Tensor? weight_hr, Tensor? lengths, Tensor? batch_sizes, Tensor? reset, bool reverse, "
      "bool save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)");
  m.def(
      "scan_backward(str cell, Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, Tensor h_0, "
      "Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr, "
      "Tensor? lengths, Tensor? batch_sizes, Tensor? reset, bool reverse, Tensor y, Tensor gates, Tensor cells, "
      "int needs) -> (Tensor d_input, Tensor d_h_0, Tensor d_c_0, Tensor d_weight_ih, Tensor d_weight_hh, "
      "Tensor d_bias_ih, Tensor d_bias_hh, Tensor d_weight_hr)");
  m.def("cpu_instruction_sets() -> str");
}
