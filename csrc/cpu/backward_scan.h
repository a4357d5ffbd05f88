// The fused backward pass on CPU takes the chunks from the last to the first: a chunk's steps give the gate gradients,
// and dx and the weight gradients are computed from these while they are in cache.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "cpu/cell_kernels.h"
#include "cpu/chunks.h"

namespace fastrnn::FASTRNN_ISA {

template <class S>
class BackwardScan : Scan<S> {
  using Base = Scan<S>;
  using typename Base::A;
  using typename Base::E;
  using typename Base::V;
  using Base::H, Base::I, Base::cell, Base::N, Base::p, Base::projected, Base::R, Base::schedule, Base::team;
  using Base::c_columns, Base::c_dense_row, Base::c_row;
  using Base::h_row, Base::h_sums, Base::i_row, Base::i_sums, Base::r_row, Base::r_sums;
  template <class, class>
  friend struct CellUpdate;

  const CellKernels<S>& kernels_;
  const bool split_ = cell.split_gate_gradients;

  const ScanGradients<S>& d;
  const bool recomputes = cell.saved > 0 && !p.gates;
  const bool keeps_x = recomputes || d.weights.ih;
  const bool keeps_h = recomputes || cell.backward_reads_previous_h || d.weights.hh;
  // Gradients of a group sum over rows N apart: a chunk then holds all N rows of every step, zeros where none runs.
  const bool grouped = d.groups > 1;

  // d h = d gh W_hh, d x = d gx W_ih, d (h before projection) = d h W_hr
  const bool packs_ = this->packs();
  const int64_t input_gates_ = cell.input_gates * H;
  const int64_t recurrent_gates_ = cell.recurrent_gates * H;
  PackedWeights<S> w_hh_ = this->packed_hh_transposed(packs_, this->backward_unit_vecs());
  PackedWeights<S> w_ih_{1, d.x ? I : 0, input_gates_, p.weights.ih.transposed(), packs_};
  PackedWeights<S> w_hr_{1, projected ? H : 0, R, p.weights.hr.transposed(), packs_};

  Buffer<A> dh_ = Buffer<A>(N * r_sums);
  Buffer<A> dc_ = Buffer<A>(N * c_row);
  Buffer<A> d_unprojected_ = Buffer<A>(projected ? N * h_sums : 0);
  Buffer<E> h_0_ = Buffer<E>(keeps_h ? N * r_row : 0);
  Buffer<A> c_0_ = Buffer<A>(c_columns ? N * c_dense_row : 0);
  // A reset replaced the states by these, and they get the gradients.
  const int64_t resetting_ = schedule.reset ? N : 0;
  Buffer<E> reset_h_ = Buffer<E>(keeps_h ? resetting_ * r_row : 0);
  Buffer<A> reset_c_ = Buffer<A>(c_columns ? resetting_ * c_dense_row : 0);
  Buffer<A> d_reset_h_ = Buffer<A>(d.reset_h ? N * r_sums : 0);
  Buffer<A> d_reset_c_ = Buffer<A>(d.reset_c ? N * c_row : 0);

  const int64_t input_gate_row_ = this->input_gate_row();
  const int64_t recurrent_gate_row_ = this->recurrent_gate_row();
  const int64_t vector_row_ = d.weights.vectors ? row_length<A>(cell.vectors * H) : 0;
  const int64_t sum_steps_ = this->backward_sum(grouped);
  const int64_t chunk_steps_ = this->backward_chunk(grouped);
  // The chunk's rows, which the weight gradients are summed over.
  Buffer<E> d_gx_ = chunk_buffer<E>(input_gate_row_);
  Buffer<E> d_gh_split_ = chunk_buffer<E>(split_ ? recurrent_gate_row_ : 0);
  E* const d_gh_ = split_ ? d_gh_split_.get() : d_gx_.get();
  Buffer<A> d_vectors_ = chunk_buffer<A>(vector_row_);
  Buffer<E> x_ = chunk_buffer<E>(keeps_x ? i_row : 0);
  Buffer<E> h_ = chunk_buffer<E>(keeps_h ? r_row : 0);                 // h before every step
  Buffer<E> unprojected_ = chunk_buffer<E>(d.weights.hr ? h_row : 0);  // h before W_hr
  Buffer<E> d_projected_ = chunk_buffer<E>(projected ? r_row : 0);     // d h after W_hr
  Buffer<A> dx_ = chunk_buffer<A>(d.x ? i_sums : 0);

  // The same rows in pairs, where a chip multiplies pairs: the right factors as rows, the left ones as columns.
  const int64_t pair_row_ = row_length<E>(padded_depth<E>(chunk_steps_ * N));
  Buffer<E> x_pairs_ = pair_buffer(d.weights.ih, i_row);
  Buffer<E> h_pairs_ = pair_buffer(d.weights.hh, r_row);
  Buffer<E> unprojected_pairs_ = pair_buffer(d.weights.hr, h_row);
  Buffer<E> d_gx_pairs_ = Buffer<E>(kPaired<E> && d.weights.ih ? input_gates_ * pair_row_ : 0);
  Buffer<E> d_gh_pairs_ = Buffer<E>(kPaired<E> && d.weights.hh ? recurrent_gates_ * pair_row_ : 0);
  Buffer<E> d_projected_pairs_ = Buffer<E>(kPaired<E> && d.weights.hr ? R * pair_row_ : 0);

  // Gates that were not saved are computed again from these.
  PackedWeights<S> forward_ih_ = this->packed_ih(recomputes ? H : 0, packs_);
  PackedWeights<S> forward_hh_ = this->packed_hh(recomputes ? H : 0, packs_);
  Buffer<A> b_ih_ = Buffer<A>(forward_ih_.width());
  Buffer<A> b_hh_ = Buffer<A>(forward_hh_.width());
  const int64_t gx_row_ = this->gx_row();
  Buffer<A> gx_ = chunk_buffer<A>(recomputes ? gx_row_ : 0);
  Buffer<S> gates_ = Buffer<S>(recomputes ? chunk_steps_ * N * cell.saved * H : 0);
  Buffer<const A*> c_before_ = Buffer<const A*>(recomputes && c_columns ? chunk_steps_ * N : 0);
  Buffer<const S*> extra_ = Buffer<const S*>(recomputes ? chunk_steps_ * N * cell.extra_inputs : 0);
  Buffer<A> vectors_ = Buffer<A>(cell.vectors * h_sums);

  // The weight gradients have the rows of all groups, one group's after the other's. They are summed in these buffers,
  // or in the result itself.
  const int64_t dw_ih_rows_ = d.groups * input_gates_;
  const int64_t dw_hh_rows_ = d.groups * recurrent_gates_;
  const int64_t d_vectors_size_ = d.weights.vectors ? d.groups * cell.vectors * H : 0;
  Buffer<A> dw_ih_ = sums_buffer(d.weights.ih, dw_ih_rows_, I);
  Buffer<A> dw_hh_ = sums_buffer(d.weights.hh, dw_hh_rows_, R);
  Buffer<A> dw_hr_ = sums_buffer(d.weights.hr, d.groups* R, H);
  Buffer<A> db_ih_ = Buffer<A>(d.weights.bias_ih ? dw_ih_rows_ : 0);
  Buffer<A> db_hh_ = Buffer<A>(d.weights.bias_hh ? dw_hh_rows_ : 0);
  Buffer<A> d_vectors_sum_ = Buffer<A>(d_vectors_size_);

 public:
  BackwardScan(const ScanParams<S>& params, const ScanGradients<S>& gradients, const CellKernels<S>& kernels,
               const Team& threads)
      : Base{params, kernels.cell, threads}, kernels_(kernels), d(gradients) {}

  void run() {
    team.run([&](const Team::Member& member) {
      [[maybe_unused]] const MatrixRegisters registers;
      prepare(member);
      member.barrier();
      const Grid grid = this->grid(member.count, w_hh_);
      const Part part(member, grid, w_hh_.panels());
      const int64_t last_begin = (schedule.T - 1) / chunk_steps_ * chunk_steps_;
      bool fresh = !grouped && !d.adds_to_weights;  // the sums of matrices hold nothing yet; those of groups are zeros
      if (!fresh) begin_matrices(member);
      for (int64_t begin = last_begin; begin >= 0 && schedule.T > 0 && N > 0; begin -= chunk_steps_) {
        const Range steps{begin, std::min(begin + chunk_steps_, schedule.T)};
        int64_t rows = 0;
        for (int64_t s = steps.begin; s < steps.end; ++s) rows += chunk_rows(schedule.step(s));
        keep_operands(steps, member.share(rows));
        if (recomputes) recompute_gates(member.share(rows));
        member.barrier();
        pair_operands(rows, member);
        if (member.index < grid.threads()) {
          int64_t first = rows;
          for (int64_t s = steps.end - 1; s >= steps.begin; --s) {
            first -= chunk_rows(schedule.step(s));
            step(member, part, s, first);
          }
          member.barrier();
        } else {
          member.sit_out();
        }
        pair_unprojected(rows, member);
        if (d.x) input_gradient(steps, member.share(rows));
        weight_gradients(steps, rows, member, fresh);
        fresh = fresh && rows == 0;
        member.barrier();
      }
      if (fresh) begin_matrices(member);
      store_results(member);
    });
  }

 private:
  template <class O>
  Buffer<O> chunk_buffer(int64_t row) const {
    return Buffer<O>(chunk_steps_ * N * row);
  }
  template <class O>
  Buffer<E> pair_buffer(const O& wanted, int64_t row) const {
    return Buffer<E>(kPaired<E> && wanted ? padded_depth<E>(chunk_steps_ * N) * row : 0);
  }

  // Tells whether a gradient is summed in its result: that has the type of sums, and its rows are whole vectors.
  static bool in_place(Matrix<S> result, int64_t columns) {
    return std::is_same_v<S, A> && result && result.col_stride == 1 && columns % V::kWidth == 0;
  }
  static Buffer<A> sums_buffer(Matrix<S> result, int64_t rows, int64_t columns) {
    return Buffer<A>(result && !in_place(result, columns) ? rows * row_length<A>(columns) : 0);
  }

  struct Sums {
    A* data;  // [rows][row]
    int64_t row;
  };
  static Sums sums_of(const Buffer<A>& buffer, Matrix<S> result, int64_t columns) {
    if constexpr (std::is_same_v<S, A>)
      if (in_place(result, columns)) return {result.data, result.row_stride};
    return {buffer.get(), row_length<A>(columns)};
  }

  // Sets this member's share of the weight gradients to what sums over rows are added to: zeros, or what they hold.
  void begin_matrices(const Team::Member& member) {
    const auto begin = [this](const Buffer<A>& buffer, Matrix<S> result, Range range, int64_t columns) {
      const Sums sums = sums_of(buffer, result, columns);
      if (!sums.data || (d.adds_to_weights && in_place(result, columns))) return;
      std::fill(sums.data + range.begin * sums.row, sums.data + range.end * sums.row, A(0));
      for (int64_t i = range.begin; d.adds_to_weights && i < range.end; ++i)
        gather(result.row(i), result.col_stride, sums.data + i * sums.row, columns);
    };
    begin(dw_ih_, d.weights.ih, member.share(dw_ih_rows_), I);
    begin(dw_hh_, d.weights.hh, member.share(dw_hh_rows_), R);
    begin(dw_hr_, d.weights.hr, member.share(d.groups * R), H);
  }

  void begin_vectors(const Team::Member& member) {
    const auto begin = [this](const Buffer<A>& sums, Vector<S> result, Range range) {
      if (!sums.get()) return;
      if (d.adds_to_weights)
        gather(&result[range.begin], result.stride, sums.get() + range.begin, range.size());
      else
        std::fill_n(sums.get() + range.begin, range.size(), A(0));
    };
    begin(db_ih_, d.weights.bias_ih, member.share(dw_ih_rows_));
    begin(db_hh_, d.weights.bias_hh, member.share(dw_hh_rows_));
    begin(d_vectors_sum_, d.weights.vectors, member.share(d_vectors_size_));
  }

  // Nobody asks for what the first step of the walk leaves of dh, unless it is the gradient of a state.
  bool leaves_dh(int64_t s) const { return s > 0 || d.h_0 || schedule.reset; }
  bool multiplies_dh(int64_t s) const { return recurrent_gates_ > 0 && leaves_dh(s); }

  void prepare(const Team::Member& member) {
    if (multiplies_dh(schedule.T - 1)) w_hh_.pack(member.share(w_hh_.panels()));
    w_ih_.pack(member.share(w_ih_.panels()));
    w_hr_.pack(member.share(w_hr_.panels()));
    if (recomputes) {
      forward_ih_.pack(member.share(forward_ih_.panels()));
      forward_hh_.pack(member.share(forward_hh_.panels()));
      if (member.index == 0) {
        forward_ih_.pack_bias(p.weights.bias_ih, b_ih_.get());
        forward_hh_.pack_bias(p.weights.bias_hh, b_hh_.get());
      }
    }
    const Range rows = member.share(N);
    this->load_state(d.h_n, rows, R, dh_.get(), r_sums);
    if (keeps_h) this->load_state(p.h_0, rows, R, h_0_.get(), r_row);
    if (keeps_h && schedule.reset) this->load_state(p.reset_h, rows, R, reset_h_.get(), r_row);
    if (member.index == 0) this->load_vectors(vectors_.get());
    if (c_columns > 0) {
      this->load_cell_states(d.c_n, rows, dc_.get());
      this->load_state(p.c_0, rows, c_columns, c_0_.get(), c_dense_row);
      if (schedule.reset) this->load_state(p.reset_c, rows, c_columns, reset_c_.get(), c_dense_row);
    }
    const Range chunk = member.share(chunk_steps_ * N);
    this->clear_padding(d_gx_.get(), chunk, input_gates_, input_gate_row_);
    if (split_) this->clear_padding(d_gh_, chunk, recurrent_gates_, recurrent_gate_row_);
    if (projected) this->clear_padding(d_projected_.get(), chunk, R, r_row);
    if (d.weights.hr) this->clear_padding(unprojected_.get(), chunk, H, h_row);
    const auto clear = [](A* sums, Range range, int64_t row) {
      if (sums) std::fill(sums + range.begin * row, sums + range.end * row, A(0));
    };
    begin_vectors(member);
    clear(d_reset_h_.get(), rows, r_sums);
    clear(d_reset_c_.get(), rows, c_row);
  }

  // Returns how many of the chunk's rows belong to time t.
  int64_t chunk_rows(int64_t t) const { return grouped ? N : schedule.rows(t); }

  // Calls f(m, t, r) for the chunk's rows m in the range; row m is row r of the batch at time t.
  template <class F>
  void for_rows(Range steps, Range range, F&& f) const {
    int64_t first = 0;
    for (int64_t s = steps.begin; s < steps.end && first < range.end; ++s) {
      const int64_t t = schedule.step(s);
      const int64_t end = first + chunk_rows(t);
      for (int64_t m = std::max(range.begin, first); m < std::min(range.end, end); ++m) f(m, t, m - first);
      first = end;
    }
  }

  // Copies what the steps were computed from and clears the padding.
  void keep_operands(Range steps, Range range) {
    const auto copy = [](const Buffer<E>& buffer, int64_t m, int64_t row, auto* from, int64_t stride, int64_t columns) {
      gather(from, stride, buffer.get() + m * row, columns);
      std::fill_n(buffer.get() + m * row + columns, row - columns, E{});
    };
    for_rows(steps, range, [&](int64_t m, int64_t t, int64_t r) {
      if (!schedule.runs(t, r)) return clear_row(m);
      const int64_t sample = schedule.sample(r);
      if (keeps_x && p.x) copy(x_, m, i_row, p.x.row(t, sample), p.x.col_stride, I);
      if (recomputes && c_columns > 0) c_before_[m] = c_before(t, r);
      for (int k = 0; recomputes && k < cell.extra_inputs; ++k)
        extra_[m * cell.extra_inputs + k] = p.extra[k].row(t, sample);
      if (!keeps_h) return;
      const int64_t before = schedule.previous(t);
      if (schedule.resets(t, r))
        std::copy_n(reset_h_.get() + r * r_row, r_row, h_.get() + m * r_row);
      else if (schedule.runs(before, r))
        copy(h_, m, r_row, p.y.row(before, sample), 1, R);
      else
        std::copy_n(h_0_.get() + r * r_row, r_row, h_.get() + m * r_row);
    });
  }

  // Clears row m of the chunk, at which no sample runs.
  void clear_row(int64_t m) {
    const auto clear = [m]<class T>(const Buffer<T>& buffer, int64_t row) {
      if (buffer.get()) std::fill_n(buffer.get() + m * row, row, T{});
    };
    clear(x_, i_row);
    clear(h_, r_row);
    clear(d_gx_, input_gate_row_);
    clear(d_gh_split_, recurrent_gate_row_);
    clear(d_vectors_, vector_row_);
    clear(unprojected_, h_row);
    clear(d_projected_, r_row);
    // Any state and any input will do, as these gates are not used.
    if (c_before_.get()) c_before_[m] = c_0_.get();
    for (int k = 0; recomputes && k < cell.extra_inputs; ++k) extra_[m * cell.extra_inputs + k] = p.extra[k].data;
  }

  // Returns row r's states beside h before time t, H apart.
  const A* c_before(int64_t t, int64_t r) const {
    const int64_t before = schedule.previous(t);
    if (schedule.resets(t, r)) return reset_c_.get() + r * c_dense_row;
    return schedule.runs(before, r) ? p.cells.row(before, schedule.sample(r)) : c_0_.get() + r * c_dense_row;
  }

  // Computes the gates of the chunk's rows in a range as forward did: the states before every step are known.
  void recompute_gates(Range range) {
    multiply(range.size(), x_.get() + range.begin * i_row, i_row, forward_ih_, {0, forward_ih_.panels()}, b_ih_.get(),
             gx_.get() + range.begin * gx_row_, gx_row_);
    multiply_fused(range.size(), h_.get() + range.begin * r_row, r_row, forward_hh_, {0, forward_hh_.panels()},
                   b_hh_.get(), [&](int64_t first, int64_t count, Range panels, const A* gh) {
                     kernels_.recompute(*this, {range.begin + first, count, panels, gh});
                   });
  }

  // The step's first row is chunk_row in the chunk's buffers.
  void step(const Team::Member& member, const Part& part, int64_t s, int64_t chunk_row) {
    const int64_t t = schedule.step(s);
    const int64_t rows = part.rows(schedule.rows(t));
    if (rows == 0) return;
    if (projected) unproject(part, t, rows, chunk_row);
    const Range columns{w_hh_.unit(part.panels.begin), w_hh_.unit(part.panels.end)};  // of h
    const Range units = projected ? Range{0, H} : columns;
    for (int64_t i = 0; i < rows; ++i) kernels_.backward(*this, {chunk_row + part.row(i), t, part.row(i), units});
    if (!leaves_dh(s)) return;
    if (multiplies_dh(s)) {
      member.barrier(part.group, part.unit_groups);
      multiply_fused(rows, d_gh_ + (chunk_row + part.group) * recurrent_gate_row_, part.groups * recurrent_gate_row_,
                     w_hh_, part.panels, static_cast<const A*>(nullptr),
                     [&](int64_t first, int64_t count, Range panels, const A* products) {
                       for (int64_t panel = panels.begin; panel < panels.end; ++panel)
                         products = add_to_state(part, first, count, panel, products);
                     });
    } else if (projected) {  // what y left went through W_hr, and nothing else flows into h
      for (int64_t i = 0; i < rows; ++i) std::fill_n(dh_.get() + part.row(i) * r_sums, r_sums, A(0));
    }
    if (!schedule.reset) return;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = part.row(i);
      if (!schedule.resets(t, r)) continue;
      move_gradient(dh_.get() + r * r_sums, d_reset_h_, r * r_sums, columns);
      for (int64_t at = r * c_row; at < (r + 1) * c_row; at += h_sums)
        move_gradient(dc_.get() + at, d_reset_c_, at, units);
    }
  }

  // Adds a panel's products with d gh to the gradient of the state. Returns where the next panel's products lie.
  FASTRNN_FN const A* add_to_state(const Part& part, int64_t first, int64_t count, int64_t panel, const A* products) {
    const int64_t vecs = w_hh_.unit_vecs(panel);
    for (int64_t i = 0; i < count; ++i) {
      A* dh = dh_.get() + part.row(first + i) * r_sums + w_hh_.unit(panel);
      for (int64_t v = 0; v < vecs; ++v) {
        V sum = V::load(products);
        if (!projected) sum = sum + V::load(dh);  // the cell left the gradient that does not flow through gh
        sum.store(dh);
        products += V::kWidth;
        dh += V::kWidth;
      }
    }
    return products;
  }

  // A reset takes the gradient of the state: it flows into what the state was replaced by.
  static void move_gradient(A* from, const Buffer<A>& to, int64_t at, Range columns) {
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      if (to.get()) to[at + j] += from[j];
      from[j] = A(0);
    }
  }

  // Computes the gradient of h before W_hr from that of the output.
  void unproject(const Part& part, int64_t t, int64_t rows, int64_t chunk_row) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = part.row(i);
      A* dh = dh_.get() + r * r_sums;
      if (d.y) {
        const S* dy = d.y.row(t, schedule.sample(r));
        for (int64_t j = 0; j < R; ++j) dh[j] += Storage<S>::to(dy[j * d.y.col_stride]);
      }
      gather(dh, 1, d_projected_.get() + (chunk_row + r) * r_row, R);
    }
    multiply(rows, d_projected_.get() + (chunk_row + part.group) * r_row, part.groups * r_row, w_hr_,
             {0, w_hr_.panels()}, static_cast<const A*>(nullptr), d_unprojected_.get() + part.group * h_sums,
             part.groups * h_sums);
  }

  void input_gradient(Range steps, Range range) {
    if (range.size() == 0) return;
    const auto multiply_into = [&](A* out, int64_t row) {
      multiply(range.size(), d_gx_.get() + range.begin * input_gate_row_, input_gate_row_, w_ih_, {0, w_ih_.panels()},
               static_cast<const A*>(nullptr), out + range.begin * row, row);
    };
    if constexpr (std::is_same_v<S, A>) {
      const auto lying = this->rows_in_place(d.x, steps, 0, 1);
      if (lying.data && I % V::kWidth == 0 && !(grouped && schedule.active))
        return multiply_into(lying.data, lying.distance);
    }
    multiply_into(dx_.get(), i_sums);
    for_rows(steps, range, [&](int64_t m, int64_t t, int64_t r) {
      if (schedule.runs(t, r)) scatter(dx_.get() + m * i_sums, d.x.row(t, schedule.sample(r)), d.x.col_stride, I);
    });
  }

  // Calls f(rows, group) for this member's share of the rows that a weight's gradient has in every group.
  template <class F>
  void for_groups(const Team::Member& member, int64_t group_rows, F&& f) const {
    for_groups(member.share(d.groups * group_rows), group_rows, f);
  }

  // Calls f(rows, columns, group) for this member's block of a matrix. Rows in pairs are laid out anew by whoever has
  // them, so that these have all columns.
  template <class F>
  void for_blocks(const Team::Member& member, int64_t group_rows, int64_t columns, F&& f) const {
    constexpr int64_t kTile = kMaxVecs * V::kWidth;
    const int64_t all_rows = d.groups * group_rows;
    const int64_t parts = kPaired<E> ? 1 : cpu::column_parts(member.count, all_rows, columns, kTile);
    const Range tiles = cpu::share((columns + kTile - 1) / kTile, member.index % parts, parts);
    const Range own{tiles.begin * kTile, std::min(tiles.end * kTile, columns)};
    for_groups(cpu::share(all_rows, member.index / parts, member.count / parts), group_rows,
               [&](Range rows, int64_t group) { f(rows, own, group); });
  }

  template <class F>
  static void for_groups(Range own, int64_t group_rows, F&& f) {
    for (int64_t g = own.begin / std::max<int64_t>(1, group_rows); g * group_rows < own.end; ++g) {
      const Range rows{std::max<int64_t>(0, own.begin - g * group_rows),
                       std::min(group_rows, own.end - g * group_rows)};
      if (rows.size() > 0) f(rows, g);
    }
  }

  // Adds the weight gradients of a chunk's rows, the last steps first.
  void weight_gradients(Range steps, int64_t rows, const Team::Member& member, bool fresh) {
    int64_t first_step = steps.begin + (steps.size() - 1) / sum_steps_ * sum_steps_;
    for (int64_t end_step = steps.end; rows > 0; end_step = first_step, first_step -= sum_steps_) {
      int64_t count = 0;
      for (int64_t s = first_step; s < end_step; ++s) count += chunk_rows(schedule.step(s));
      if (count == 0) continue;
      rows -= count;
      add_weight_gradients(rows, count, member, fresh);
      fresh = false;
    }
  }

  // Adds the weight gradients of so many rows, from a row of the chunk on.
  void add_weight_gradients(int64_t first_row, int64_t rows, const Team::Member& member, bool fresh) {
    const auto left = [&](Range range, const E* chunk, int64_t row, const Buffer<E>& pairs) -> OuterFactor<E> {
      const E* const from = chunk + first_row * row;
      if constexpr (kPaired<E>) {
        pair_across(range, rows, from, row, pairs.get(), pair_row_);
        return {pairs.get(), 1, pair_row_};
      }
      return {from, row};
    };
    const auto right = [&](const Buffer<E>& chunk, const Buffer<E>& pairs, int64_t row) -> OuterFactor<E> {
      return {(kPaired<E> ? pairs : chunk).get() + first_row * row, row};
    };
    // Sums run over the rows m of a group: over all of them, or over those of one sample after the other.
    const auto for_summands = [&](int64_t group, auto&& add) {
      if (!grouped) return add(0, 1, rows);
      for (int64_t r = 0; r < N; ++r)
        if (schedule.sample(r) % d.groups == group) add(r, N, rows / N);
    };
    const auto accumulate = [&](Range range, Range columns, int64_t group, OuterFactor<E> a, OuterFactor<E> b,
                                Sums sums, int64_t first_gate) {
      A* const out = sums.data + first_gate * sums.row + columns.begin;
      b.data += columns.begin;
      for_summands(group, [&](int64_t first, int64_t stride, int64_t count) {
        const auto from = [&](OuterFactor<E> factor, int64_t m) {
          return OuterFactor<E>{factor.from(first + m * stride).data, factor.depth * stride, factor.row};
        };
        for (int64_t m = 0; m < count; m += kSumRows)
          accumulate_outer(range, std::min(kSumRows, count - m), from(a, m), from(b, m), columns.size(), out, sums.row,
                           fresh && m == 0);
      });
    };
    const auto accumulate_columns = [&](Range range, int64_t group, auto* chunk, int64_t row, A* out) {
      for_summands(group, [&](int64_t first, int64_t stride, int64_t count) {
        accumulate_rows(range, count, chunk + (first_row + first) * row, stride * row, out);
      });
    };
    if (d.weights.bias_ih)
      for_groups(member, input_gates_, [&](Range gates, int64_t group) {
        accumulate_columns(gates, group, d_gx_.get(), input_gate_row_, db_ih_.get() + group * input_gates_);
      });
    if (d.weights.ih)
      for_blocks(member, input_gates_, I, [&](Range gates, Range columns, int64_t group) {
        accumulate(gates, columns, group, left(gates, d_gx_.get(), input_gate_row_, d_gx_pairs_),
                   right(x_, x_pairs_, i_row), sums_of(dw_ih_, d.weights.ih, I), group * input_gates_);
      });
    if (d.weights.bias_hh)
      for_groups(member, recurrent_gates_, [&](Range gates, int64_t group) {
        accumulate_columns(gates, group, d_gh_, recurrent_gate_row_, db_hh_.get() + group * recurrent_gates_);
      });
    if (d.weights.hh)
      for_blocks(member, recurrent_gates_, R, [&](Range gates, Range columns, int64_t group) {
        accumulate(gates, columns, group, left(gates, d_gh_, recurrent_gate_row_, d_gh_pairs_),
                   right(h_, h_pairs_, r_row), sums_of(dw_hh_, d.weights.hh, R), group * recurrent_gates_);
      });
    if (d.weights.vectors)
      for_groups(member, cell.vectors * H, [&](Range columns, int64_t group) {
        accumulate_columns(columns, group, d_vectors_.get(), vector_row_,
                           d_vectors_sum_.get() + group * cell.vectors * H);
      });
    if (d.weights.hr)
      for_blocks(member, R, H, [&](Range outputs, Range columns, int64_t group) {
        accumulate(outputs, columns, group, left(outputs, d_projected_.get(), r_row, d_projected_pairs_),
                   right(unprojected_, unprojected_pairs_, h_row), sums_of(dw_hr_, d.weights.hr, H), group * R);
      });
  }

  // Lays out the right factors of the weight gradients in pairs of rows.
  void pair_operands(int64_t rows, const Team::Member& member) {
    if constexpr (kPaired<E>) {
      const Range pairs = member.share(padded_depth<E>(rows) / 2);
      if (d.weights.ih) pair_up(pairs, rows, x_.get(), i_row, I, x_pairs_.get());
      if (d.weights.hh) pair_up(pairs, rows, h_.get(), r_row, R, h_pairs_.get());
    }
  }

  void pair_unprojected(int64_t rows, const Team::Member& member) {
    if constexpr (kPaired<E>) {
      if (!d.weights.hr) return;
      pair_up(member.share(padded_depth<E>(rows) / 2), rows, unprojected_.get(), h_row, H, unprojected_pairs_.get());
      member.barrier();
    }
  }

  // Stores what this member summed, and its share of the rows.
  void store_results(const Team::Member& member) {
    const Range rows = member.share(N);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      this->store_state(dh_.get() + r * r_sums, d.h_0, R, r);
      this->store_cell_states(dc_.get() + r * c_row, d.c_0, r);
      if (d.reset_h) this->store_state(d_reset_h_.get() + r * r_sums, d.reset_h, R, r);
      if (d.reset_c) this->store_cell_states(d_reset_c_.get() + r * c_row, d.reset_c, r);
    }
    const auto store = [](const Buffer<A>& from, Matrix<S> to, Range range, int64_t columns) {
      if (!to || in_place(to, columns)) return;
      for (int64_t i = range.begin; i < range.end; ++i)
        scatter(from.get() + i * row_length<A>(columns), to.row(i), to.col_stride, columns);
    };
    store(dw_ih_, d.weights.ih, member.share(dw_ih_rows_), I);
    store(dw_hh_, d.weights.hh, member.share(dw_hh_rows_), R);
    store(dw_hr_, d.weights.hr, member.share(d.groups * R), H);
    const auto store_vector = [](const Buffer<A>& from, Vector<S> to, Range range) {
      if (to) scatter(from.get() + range.begin, &to[range.begin], to.stride, range.size());
    };
    store_vector(db_ih_, d.weights.bias_ih, member.share(dw_ih_rows_));
    store_vector(db_hh_, d.weights.bias_hh, member.share(dw_hh_rows_));
    store_vector(d_vectors_sum_, d.weights.vectors, member.share(d_vectors_size_));
  }
};

}  // namespace fastrnn::FASTRNN_ISA
