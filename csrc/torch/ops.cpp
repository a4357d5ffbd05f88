// The ops' schemas. scan is one layer in one direction over a whole sequence.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastrnn, m) {
  // cell_tensors names the tensors and the results. `present` has the index there of each tensor. `saved` are the
  // results that are sequences, `grads` the gradients of the differentiable results; `needs` says which gradients are
  // wanted.
  m.def(
      "scan(str cell, Tensor[] tensors, int[] present, Tensor? lengths, Tensor? batch_sizes, Tensor? offsets, Tensor? "
      "reset, "
      "bool reverse, bool save, bool recompute=False, bool all_states=False, int groups=0, str rounds_to=\"\", "
      "float[] numbers=[]) "
      "-> Tensor[]");
  m.def(
      "scan_backward(str cell, Tensor?[] grads, Tensor[] tensors, int[] present, Tensor? lengths, Tensor? "
      "batch_sizes, "
      "Tensor? offsets, Tensor? reset, bool reverse, Tensor[] saved, bool[] needs, int groups=0, str rounds_to=\"\", "
      "float[] numbers=[]) "
      "-> Tensor[]");
  // The same for both directions of a layer, of the same sizes, which run side by side where a thread each suits them.
  // Each list has the entries of one direction and then those of the other, which walks against it.
  m.def(
      "bidirectional_scan(str cell, Tensor[] tensors, int[] present, Tensor? lengths, Tensor? batch_sizes, "
      "Tensor? offsets, Tensor? reset, bool reverse, bool save, bool recompute=False, bool all_states=False, "
      "int groups=0, str rounds_to=\"\", float[] numbers=[]) -> Tensor[]");
  m.def(
      "bidirectional_scan_backward(str cell, Tensor?[] grads, Tensor[] tensors, int[] present, Tensor? lengths, "
      "Tensor? batch_sizes, Tensor? offsets, Tensor? reset, bool reverse, Tensor[] saved, bool[] needs, int groups=0, "
      "str rounds_to=\"\", float[] numbers=[]) -> Tensor[]");
  m.def(
      "scan_choice(str cell, Tensor[] tensors, int[] present, Tensor? lengths, Tensor? batch_sizes, Tensor? offsets, "
      "Tensor? reset, "
      "bool reverse, bool save, bool recompute=False, bool all_states=False, int groups=0, str rounds_to=\"\", "
      "float[] numbers=[]) -> str");
  // Layers over each other and directions side by side, without gradients. `states` are h_0 [layers * directions, N, R]
  // and, of cells that have it, c_0; an empty list is zeros, and N = 1 is a state that all samples share. `weights` has
  // for each layer and direction weight_ih, weight_hh, then both biases if there are any, then weight_hr if there is
  // one, then the vectors if its cell has any; `numbers` are the cell's. Returns the last layer's output and the final
  // states.
  m.def(
      "stack(str cell, Tensor input, Tensor[] states, Tensor[] reset_states, Tensor[] weights, int layers, "
      "int directions, Tensor? lengths, Tensor? batch_sizes, Tensor? offsets, Tensor? reset, bool reverse, "
      "Tensor? packed=None, float[] numbers=[]) -> Tensor[]");
  // A cell's step, without gradients: input [N, I] or [I], states as in `stack` but [N, R] or [R]. Returns the next
  // ones.
  m.def(
      "step(str cell, Tensor input, Tensor[] states, Tensor[] weights, Tensor? packed=None, float[] numbers=[]) "
      "-> Tensor[]");
  // What `stack` and `step` do for plain tensors and packed weights, which know the cell: a call of few arguments takes
  // half the time. States that are absent are zeros; c_n has no elements if the cell has none.
  m.def(
      "packed_stack(Tensor input, Tensor? h_0, Tensor? c_0, Tensor packed, Tensor? reset, bool reverse) -> (Tensor y, "
      "Tensor h_n, "
      "Tensor c_n)");
  m.def("packed_step(Tensor input, Tensor? h, Tensor? c, Tensor packed) -> (Tensor h, Tensor c)");
  // Packs the weights of `stack` once, for its argument `packed` and the instruction set that runs now; `weights` are
  // then not read. The type is bfloat16, int8, or empty: that of the weights.
  m.def("prepack(str cell, Tensor[] weights, int layers, int directions, str type) -> Tensor");
  m.def("dropout_mask(Tensor seed, int stream, SymInt[] shape, float p, ScalarType dtype) -> Tensor");
  m.def("cpu_instruction_sets() -> str");
  m.def("cpu_instruction_set() -> str");
  m.def("use_cpu_instruction_set(str name) -> ()");
  m.def("cpu_near_bytes() -> int");
  m.def("cpu_rounds(str cell, int hidden_size) -> bool");
  m.def("cells() -> str");
  m.def("cell_facts(str cell) -> int[]");
  m.def("cell_tensors(str cell) -> (str tensors, str results)");
  // Cells that are compiled later: `facts` are the numbers that cell_facts gives, `has_output` says whether weight_hr
  // belongs to it. A library has kernels of cells for dtypes and an instruction set; the last two ops say for which
  // headers and which set it has to be compiled.
  m.def("register_cell(str cell, int[] facts, bool has_output=False) -> ()");
  m.def("load_cell(str path) -> ()");
  m.def("has_cell(str cell, ScalarType dtype) -> bool");
  m.def("cell_layout() -> str");
  m.def("cell_instruction_set() -> str");
}
