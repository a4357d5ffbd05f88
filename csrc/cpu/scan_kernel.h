// The fused sequence kernels on CPU, forward and backward.
//
// Time goes in chunks small enough to stay in cache. Forward, per chunk: all input products at once, then the steps.
// Backward, per chunk from the end: the steps give the gate gradients, from which dx and the weight gradients come
// while they are hot. Threads share a chunk's rows for what has no order in time, and split the batch for the
// steps; weight gradients are owned by tiles of the weight. So no sum depends on the number of threads.
#pragma once

namespace fastrnn::FASTRNN_ISA {

// Chunks depend on sizes alone: sums over a chunk must not change with the machine.
constexpr int64_t kChunkBytes = 1 << 20;
constexpr int64_t kMaxChunkRows = 8192;

// Weight gradients sum this many rows from zero, then add the sum: long sequences do not lose small terms.
constexpr int64_t kSumRows = 512;

template <class S>
inline Vec<Accumulate<S>> load_as_vec(const S* p, int64_t n) {
  using A = Accumulate<S>;
  if constexpr (std::is_same_v<S, A>) {
    return load_first(p, n);
  } else {
    A lanes[Vec<A>::kWidth] = {};
    n = std::min<int64_t>(n, Vec<A>::kWidth);
    for (int64_t j = 0; j < n; ++j) lanes[j] = Storage<S>::to(p[j]);
    return Vec<A>::load(lanes);
  }
}

template <class S>
inline void store_as(Vec<Accumulate<S>> v, S* p, int64_t n) {
  using A = Accumulate<S>;
  if constexpr (std::is_same_v<S, A>) {
    store_first(v, p, n);
  } else {
    A lanes[Vec<A>::kWidth];
    v.store(lanes);
    n = std::min<int64_t>(n, Vec<A>::kWidth);
    for (int64_t j = 0; j < n; ++j) p[j] = Storage<S>::from(lanes[j]);
  }
}

// A row of any stride to and from a contiguous one.
template <class S>
inline void gather(const S* row, int64_t stride, Accumulate<S>* out, int64_t n) {
  if (std::is_same_v<S, Accumulate<S>> && stride == 1) {
    std::memcpy(out, row, n * sizeof(S));
  } else {
    for (int64_t j = 0; j < n; ++j) out[j] = Storage<S>::to(row[j * stride]);
  }
}

template <class S>
inline void scatter(const Accumulate<S>* row, S* out, int64_t stride, int64_t n) {
  if (std::is_same_v<S, Accumulate<S>> && stride == 1) {
    std::memcpy(out, row, n * sizeof(S));
  } else {
    for (int64_t j = 0; j < n; ++j) out[j * stride] = Storage<S>::from(row[j]);
  }
}

// The range of `total` items that part `part` of `parts` owns.
struct Range {
  int64_t begin, end;
};

inline Range share(int64_t total, int64_t part, int64_t parts) {
  return {total * part / parts, total * (part + 1) / parts};
}

// Rows slot, slot + slots, ... of the batch: as rows are sorted by length, every slot ends up with the same work.
struct Slot {
  int64_t index, count;

  int64_t rows(int64_t active) const { return (active - index + count - 1) / count; }
  int64_t row(int64_t i) const { return index + i * count; }
};

// Steps [begin, end) of the walk and where each step's rows lie in the chunk's buffers.
struct Chunk {
  int64_t begin, end;
  std::vector<int64_t> first_row;  // [end - begin + 1]

  Chunk(const Schedule& schedule, int64_t begin, int64_t end) : begin(begin), end(end), first_row{0} {
    for (int64_t s = begin; s < end; ++s) first_row.push_back(first_row.back() + schedule.rows(schedule.step(s)));
  }
  int64_t rows() const { return first_row.back(); }
  int64_t base(int64_t s) const { return first_row[s - begin]; }

  // f(m, s, r) for the chunk's rows m in the range: row r of the batch at step s of the walk
  template <class F>
  void for_rows(Range range, F&& f) const {
    for (int64_t s = begin; s < end; ++s)
      for (int64_t m = std::max(range.begin, base(s)); m < std::min(range.end, base(s + 1)); ++m) f(m, s, m - base(s));
  }

  static int64_t steps(const Schedule& schedule, int64_t row_bytes) {
    const int64_t rows = std::clamp<int64_t>(kChunkBytes / row_bytes, 1, kMaxChunkRows);
    return std::clamp<int64_t>(rows / std::max<int64_t>(1, schedule.N), 1, std::max<int64_t>(1, schedule.T));
  }
};

// What both directions know: sizes, padded row widths, and where the state before a step comes from.
template <class Cell, class S>
struct Scan {
  using A = Accumulate<S>;
  using V = Vec<A>;
  static_assert(CellOver<Cell, V>);
  static constexpr int kGates = Cell::kGates;

  const ScanParams<S>& p;
  const Team& team;
  const Schedule& schedule = p.schedule;
  const int64_t I = p.input_size;
  const int64_t H = p.hidden_size;
  const int64_t R = p.output_size;
  const int64_t N = schedule.N;
  const bool projected{p.weights.hr};
  // Row lengths of buffers, so that no two threads write to one cache line.
  const int64_t i_row = padded(I);
  const int64_t h_row = padded(H);
  const int64_t r_row = padded(R);

  static int64_t padded(int64_t n) { return (n * sizeof(A) + 63) / 64 * (64 / sizeof(A)); }

  int64_t slots() const { return std::max<int64_t>(1, std::min(team.threads(), N)); }

  template <int kPanelGates>
  PackedWeights<A, kPanelGates> pack(Matrix<const S> weight, int64_t units, int64_t depth) const {
    PackedWeights<A, kPanelGates> packed(units, depth);
    const int64_t parts = std::clamp<int64_t>(packed.panels(), 1, team.threads());
    team.run(parts, [&](int64_t part) {
      const auto [begin, end] = share(packed.panels(), part, parts);
      for (int64_t panel = begin; panel < end; ++panel) packed.pack(panel, weight);
    });
    return packed;
  }

  // All rows of a state tensor, in the order of the walk. A null tensor is zero.
  Buffer<A> load_state(Matrix<const S> state, int64_t columns, int64_t row) const {
    Buffer<A> out(N * row);
    std::fill_n(out.get(), N * row, A(0));
    if (state)
      for (int64_t r = 0; r < N; ++r)
        gather(state.row(schedule.sample(r)), state.col_stride, out.get() + r * row, columns);
    return out;
  }

  void store_state(const A* row, Matrix<S> state, int64_t columns, int64_t r) const {
    if (state) scatter(row, state.row(schedule.sample(r)), state.col_stride, columns);
  }

  // Columns [first, first + n) of h before step t of row r; likewise c.
  V previous_h(int64_t t, int64_t r, int64_t first, int64_t n) const { return previous(p.y, p.h_0, t, r, first, n); }
  V previous_c(int64_t t, int64_t r, int64_t first, int64_t n) const {
    return previous(p.cells, p.c_0, t, r, first, n);
  }

 private:
  template <class E>
  V previous(const Sequence<E>& sequence, const Matrix<const S>& initial, int64_t t, int64_t r, int64_t first,
             int64_t n) const {
    if (schedule.resets(t, r)) return V(A(0));
    const int64_t before = schedule.previous(t);
    const int64_t sample = schedule.sample(r);
    if (schedule.runs(before, r)) return load_as_vec<E>(sequence.row(before, sample) + first, n);
    A lanes[V::kWidth] = {};
    gather(initial.row(sample) + first * initial.col_stride, initial.col_stride, lanes,
           std::min<int64_t>(n, V::kWidth));
    return V::load(lanes);
  }
};

template <class Cell, class S>
class ForwardScan : Scan<Cell, S> {
  using Base = Scan<Cell, S>;
  using typename Base::A;
  using typename Base::V;
  using Base::H, Base::I, Base::kGates, Base::N, Base::p, Base::projected, Base::R, Base::schedule, Base::team;
  using Base::h_row, Base::i_row, Base::r_row;

  PackedWeights<A, kGates> w_ih_ = this->template pack<kGates>(p.weights.ih, H, I);
  PackedWeights<A, kGates> w_hh_ = this->template pack<kGates>(p.weights.hh, H, R);
  PackedWeights<A, 1> w_hr_ = this->template pack<1>(p.weights.hr, projected ? R : 0, H);
  Buffer<A> b_ih_ = w_ih_.pack_bias(p.weights.bias_ih);
  Buffer<A> b_hh_ = w_hh_.pack_bias(p.weights.bias_hh);

  // h is read by all panels of a step while the next one is written. Both start as h_0: a row of the reverse walk
  // may join at any step.
  Buffer<A> h_[2] = {this->load_state(p.h_0, R, r_row), this->load_state(p.h_0, R, r_row)};
  Buffer<A> c_ = this->load_state(p.c_0, Cell::kHasCellState ? H : 0, h_row);  // [N, h_row]
  Buffer<A> unprojected_ = Buffer<A>(projected ? N * h_row : 0);               // [N, h_row], h before W_hr

  const int64_t gx_row_ = w_ih_.width();
  const int64_t chunk_steps_ = Chunk::steps(schedule, (i_row + gx_row_) * sizeof(A));
  Buffer<A> x_ = Buffer<A>(chunk_steps_ * N * i_row);     // [rows of the chunk, i_row]
  Buffer<A> gx_ = Buffer<A>(chunk_steps_ * N * gx_row_);  // [rows of the chunk, gx_row], in panel order

 public:
  ForwardScan(const ScanParams<S>& params, const Team& team) : Base{params, team} {}

  void run() {
    finish_rows(schedule.T > 0 ? schedule.rows(0) : 0, N, h_[0].get(), {0, 1});  // samples of length 0
    if (N == 0) return;
    for (int64_t begin = 0; begin < schedule.T; begin += chunk_steps_) {
      const Chunk chunk(schedule, begin, std::min(begin + chunk_steps_, schedule.T));
      if (chunk.rows() == 0) continue;
      team.run(team.threads(), [&](int64_t part) { input_products(chunk, share(chunk.rows(), part, team.threads())); });
      team.run(this->slots(), [&](int64_t part) {
        const Slot slot{part, this->slots()};
        for (int64_t s = chunk.begin; s < chunk.end; ++s) step(chunk, s, slot);
      });
    }
  }

 private:
  void input_products(const Chunk& chunk, Range range) {
    if (range.begin == range.end) return;
    chunk.for_rows(p.x ? range : Range{}, [&](int64_t m, int64_t s, int64_t r) {  // a cell may have no input
      gather(p.x.row(schedule.step(s), schedule.sample(r)), p.x.col_stride, x_.get() + m * i_row, I);
    });
    multiply(range.end - range.begin, x_.get() + range.begin * i_row, i_row, w_ih_, b_ih_.get(),
             gx_.get() + range.begin * gx_row_, gx_row_);
  }

  void step(const Chunk& chunk, int64_t s, const Slot& slot) {
    const int64_t t = schedule.step(s);
    const int64_t rows = slot.rows(schedule.rows(t));
    if (rows <= 0) return;
    A* h = h_[s % 2].get();
    A* h_next = h_[(s + 1) % 2].get();
    clear_reset_rows(t, slot, rows, h);
    const int64_t stride = slot.count;
    multiply_fused(rows, h + slot.index * r_row, stride * r_row, w_hh_, b_hh_.get(),
                   [&](int64_t first, int64_t count, int64_t panel, const A* gh) {
                     for (int64_t i = 0; i < count; ++i)
                       for (int64_t v = 0; v < w_hh_.unit_vecs(panel); ++v) {
                         const int64_t r = slot.row(first + i);
                         update(t, r, panel, v, gx_.get() + (chunk.base(s) + r) * gx_row_ + w_ih_.offset(panel),
                                gh + i * kGates * w_hh_.unit_vecs(panel) * V::kWidth, h, h_next);
                       }
                   });
    if (projected) project(t, slot, rows, h_next);
    const bool last = s + 1 == schedule.T;
    finish_rows(last ? 0 : schedule.rows(schedule.step(s + 1)), schedule.rows(t), h_next, slot);
  }

  void clear_reset_rows(int64_t t, const Slot& slot, int64_t rows, A* h) {
    if (!schedule.reset) return;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = slot.row(i);
      if (!schedule.resets(t, r)) continue;
      std::fill_n(h + r * r_row, R, A(0));
      std::fill_n(c_.get() + r * h_row, h_row, A(0));
    }
  }

  // The cell of one vector of units: vector v of a panel, row r. gx, gh: the panel's products of this row.
  void update(int64_t t, int64_t r, int64_t panel, int64_t v, const A* gx, const A* gh, const A* h, A* h_next) {
    const int64_t unit = panel * w_hh_.kUnits + v * V::kWidth;
    const int64_t units = H - unit;
    const int64_t sample = schedule.sample(r);
    std::array<V, kGates> x_products, h_products;
    for (int g = 0; g < kGates; ++g) {
      const int64_t offset = (g * w_hh_.unit_vecs(panel) + v) * V::kWidth;
      x_products[g] = V::load(gx + offset);
      h_products[g] = V::load(gh + offset);
    }
    State<V> state{};
    if constexpr (Cell::kReadsPreviousH) state.h = load_first(h + r * r_row + unit, units);
    if constexpr (Cell::kHasCellState) state.c = V::load(c_.get() + r * h_row + unit);
    std::array<V, Cell::kSaved> saved;
    Cell::forward(x_products, h_products, state, saved);

    if constexpr (Cell::kHasCellState) {
      state.c.store(c_.get() + r * h_row + unit);
      if (p.cells) store_first(state.c, p.cells.row(t, sample) + unit, units);
    }
    if (p.gates)
      for (int k = 0; k < Cell::kSaved; ++k) store_as<S>(saved[k], p.gates.row(t, sample) + k * H + unit, units);
    if (projected) {
      state.h.store(unprojected_.get() + r * h_row + unit);
    } else {
      state.h.store(h_next + r * r_row + unit);
      store_as<S>(state.h, p.y.row(t, sample) + unit, units);
    }
  }

  void project(int64_t t, const Slot& slot, int64_t rows, A* h_next) {
    multiply(rows, unprojected_.get() + slot.index * h_row, slot.count * h_row, w_hr_, static_cast<const A*>(nullptr),
             h_next + slot.index * r_row, slot.count * r_row);
    for (int64_t i = 0; i < rows; ++i)
      scatter(h_next + slot.row(i) * r_row, p.y.row(t, schedule.sample(slot.row(i))), 1, R);
  }

  // Rows [begin, end) of the slot have run their last step.
  void finish_rows(int64_t begin, int64_t end, const A* h, const Slot& slot) {
    for (int64_t i = std::max<int64_t>(0, slot.rows(begin)); slot.row(i) < end; ++i) {
      const int64_t r = slot.row(i);
      this->store_state(h + r * r_row, p.h_n, R, r);
      this->store_state(c_.get() + r * h_row, p.c_n, H, r);
    }
  }
};

template <class Cell, class S>
class BackwardScan : Scan<Cell, S> {
  using Base = Scan<Cell, S>;
  using typename Base::A;
  using typename Base::V;
  using Base::H, Base::I, Base::kGates, Base::N, Base::p, Base::projected, Base::R, Base::schedule, Base::team;
  using Base::h_row, Base::i_row, Base::r_row;

  const ScanGradients<S>& d;

  // d h = d gh W_hh, d x = d gx W_ih, d (h before projection) = d h W_hr
  PackedWeights<A, 1> w_hh_ = this->template pack<1>(p.weights.hh.transposed(), R, kGates* H);
  PackedWeights<A, 1> w_ih_ = this->template pack<1>(p.weights.ih.transposed(), d.x ? I : 0, kGates* H);
  PackedWeights<A, 1> w_hr_ = this->template pack<1>(p.weights.hr.transposed(), projected ? H : 0, R);

  Buffer<A> dh_ = this->load_state(d.h_n, R, r_row);                            // [N, r_row]
  Buffer<A> dc_ = this->load_state(d.c_n, Cell::kHasCellState ? H : 0, h_row);  // [N, h_row]
  Buffer<A> d_unprojected_ = Buffer<A>(projected ? N * h_row : 0);              // [N, h_row]

  const int64_t gate_row_ = kGates * H;
  const int64_t chunk_steps_ = Chunk::steps(
      schedule,
      (i_row + r_row + (1 + Cell::kSplitGateGradients) * gate_row_ + projected * (h_row + r_row)) * sizeof(A));
  // The chunk's rows: what the weight gradients are made of.
  Buffer<A> d_gx_ = chunk_buffer(gate_row_);
  Buffer<A> d_gh_split_ = chunk_buffer(Cell::kSplitGateGradients ? gate_row_ : 0);
  A* const d_gh_ = Cell::kSplitGateGradients ? d_gh_split_.get() : d_gx_.get();
  Buffer<A> x_ = chunk_buffer(d.weights.ih ? i_row : 0);
  Buffer<A> h_ = chunk_buffer(d.weights.hh ? r_row : 0);            // h before each step
  Buffer<A> unprojected_ = chunk_buffer(d.weights.hr ? h_row : 0);  // h before W_hr
  Buffer<A> d_projected_ = chunk_buffer(d.weights.hr ? r_row : 0);  // d h after W_hr
  Buffer<A> dx_ = chunk_buffer(d.x ? i_row : 0);

  Buffer<A> dw_ih_ = zeros(d.weights.ih ? gate_row_ * i_row : 0);
  Buffer<A> dw_hh_ = zeros(d.weights.hh ? gate_row_ * r_row : 0);
  Buffer<A> dw_hr_ = zeros(d.weights.hr ? R * h_row : 0);
  Buffer<A> db_ih_ = zeros(d.weights.bias_ih ? gate_row_ : 0);
  Buffer<A> db_hh_ = zeros(d.weights.bias_hh ? gate_row_ : 0);

 public:
  BackwardScan(const ScanParams<S>& params, const ScanGradients<S>& gradients, const Team& team)
      : Base{params, team}, d(gradients) {}

  void run() {
    const int64_t last_begin = (schedule.T - 1) / chunk_steps_ * chunk_steps_;
    for (int64_t begin = last_begin; begin >= 0 && schedule.T > 0 && N > 0; begin -= chunk_steps_) {
      const Chunk chunk(schedule, begin, std::min(begin + chunk_steps_, schedule.T));
      if (chunk.rows() == 0) continue;
      team.run(this->slots(), [&](int64_t part) {
        const Slot slot{part, this->slots()};
        for (int64_t s = chunk.end - 1; s >= chunk.begin; --s) step(chunk, s, slot);
      });
      if (d.x || d.any_weight())
        team.run(team.threads(), [&](int64_t part) {
          if (d.x) input_gradient(chunk, share(chunk.rows(), part, team.threads()));
          weight_gradients(chunk.rows(), part, team.threads());
        });
    }
    store_results();
  }

 private:
  Buffer<A> chunk_buffer(int64_t row) const { return Buffer<A>(chunk_steps_ * N * row); }

  static Buffer<A> zeros(int64_t size) {
    Buffer<A> out(size);
    std::fill_n(out.get(), size, A(0));
    return out;
  }

  void step(const Chunk& chunk, int64_t s, const Slot& slot) {
    const int64_t t = schedule.step(s);
    const int64_t rows = slot.rows(schedule.rows(t));
    if (rows <= 0) return;
    const int64_t stride = slot.count;
    for (int64_t i = 0; i < rows; ++i) gather_row(chunk.base(s) + slot.row(i), t, slot.row(i));
    if (projected)
      multiply(rows, dh_.get() + slot.index * r_row, stride * r_row, w_hr_, static_cast<const A*>(nullptr),
               d_unprojected_.get() + slot.index * h_row, stride * h_row);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t unit = 0; unit < H; unit += V::kWidth) update(chunk.base(s) + slot.row(i), t, slot.row(i), unit);
    multiply_fused(rows, d_gh_ + (chunk.base(s) + slot.index) * gate_row_, stride * gate_row_, w_hh_,
                   static_cast<const A*>(nullptr), [&](int64_t first, int64_t count, int64_t panel, const A* products) {
                     const int64_t width = w_hh_.unit_vecs(panel) * V::kWidth;
                     for (int64_t i = 0; i < count; ++i)
                       for (int64_t j = 0; j < width; j += V::kWidth) {
                         A* dh = dh_.get() + slot.row(first + i) * r_row + w_hh_.offset(panel) + j;
                         V sum = V::load(products + i * width + j);
                         if (!projected) sum = sum + V::load(dh);  // what the cell left: the path beside gh
                         sum.store(dh);
                       }
                   });
    if (schedule.reset)
      for (int64_t i = 0; i < rows; ++i)
        if (schedule.resets(t, slot.row(i))) {
          std::fill_n(dh_.get() + slot.row(i) * r_row, r_row, A(0));
          std::fill_n(dc_.get() + slot.row(i) * h_row, h_row, A(0));
        }
  }

  // Adds dy to the gradient of row r's h, and keeps the row's share of the weight gradients' operands.
  void gather_row(int64_t m, int64_t t, int64_t r) {
    const int64_t sample = schedule.sample(r);
    A* dh = dh_.get() + r * r_row;
    if (d.y) {
      const S* dy = d.y.row(t, sample);
      for (int64_t j = 0; j < R; ++j) dh[j] += Storage<S>::to(dy[j * d.y.col_stride]);
    }
    if (d.weights.hr) std::copy_n(dh, r_row, d_projected_.get() + m * r_row);
    if (d.weights.ih) gather(p.x.row(t, sample), p.x.col_stride, padded_row(x_, m, i_row, I), I);
    if (d.weights.hh)
      for (int64_t j = 0; j < R; j += V::kWidth) this->previous_h(t, r, j, R - j).store(h_.get() + m * r_row + j);
  }

  // Row m of a chunk buffer with its padding cleared.
  static A* padded_row(const Buffer<A>& buffer, int64_t m, int64_t row, int64_t columns) {
    std::fill_n(buffer.get() + m * row + columns, row - columns, A(0));
    return buffer.get() + m * row;
  }

  // The cell's backward for one vector of units of row r.
  void update(int64_t m, int64_t t, int64_t r, int64_t unit) {
    const int64_t units = H - unit;
    const int64_t sample = schedule.sample(r);
    A* dh = projected ? d_unprojected_.get() + r * h_row + unit : dh_.get() + r * r_row + unit;
    std::array<V, Cell::kSaved> saved;
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = load_as_vec<S>(p.gates.row(t, sample) + k * H + unit, units);
    State<V> prev{}, next{}, d_state{};
    d_state.h = V::load(dh);
    if constexpr (Cell::kReadsPreviousH) prev.h = this->previous_h(t, r, unit, units);
    if constexpr (Cell::kReadsNextH) next.h = load_as_vec<S>(p.y.row(t, sample) + unit, units);
    if constexpr (Cell::kHasCellState) {
      prev.c = this->previous_c(t, r, unit, units);
      next.c = load_first(p.cells.row(t, sample) + unit, units);
      d_state.c = V::load(dc_.get() + r * h_row + unit);
      if (d.weights.hr) Cell::output(saved, next.c).store(unprojected_.get() + m * h_row + unit);
    }
    std::array<V, kGates> d_gx, d_gh;
    Cell::backward(saved, prev, next, d_state, d_gx, d_gh);
    for (int g = 0; g < kGates; ++g) {
      store_first(d_gx[g], d_gx_.get() + m * gate_row_ + g * H + unit, units);
      if constexpr (Cell::kSplitGateGradients) store_first(d_gh[g], d_gh_ + m * gate_row_ + g * H + unit, units);
    }
    d_state.h.store(dh);
    if constexpr (Cell::kHasCellState) d_state.c.store(dc_.get() + r * h_row + unit);
  }

  void input_gradient(const Chunk& chunk, Range range) {
    if (range.begin == range.end) return;
    multiply(range.end - range.begin, d_gx_.get() + range.begin * gate_row_, gate_row_, w_ih_,
             static_cast<const A*>(nullptr), dx_.get() + range.begin * i_row, i_row);
    chunk.for_rows(range, [&](int64_t m, int64_t s, int64_t r) {
      scatter(dx_.get() + m * i_row, d.x.row(schedule.step(s), schedule.sample(r)), d.x.col_stride, I);
    });
  }

  void weight_gradients(int64_t rows, int64_t part, int64_t parts) {
    const Range gates = share(gate_row_, part, parts);
    const Range outputs = share(R, part, parts);
    if (d.weights.bias_ih) accumulate_rows(gates.begin, gates.end, rows, d_gx_.get(), gate_row_, db_ih_.get());
    if (d.weights.bias_hh) accumulate_rows(gates.begin, gates.end, rows, d_gh_, gate_row_, db_hh_.get());
    for (int64_t first = 0; first < rows; first += kSumRows) {
      const int64_t count = std::min(kSumRows, rows - first);
      if (d.weights.ih)
        accumulate_outer(gates.begin, gates.end, count, d_gx_.get() + first * gate_row_, gate_row_,
                         x_.get() + first * i_row, i_row, I, dw_ih_.get(), i_row);
      if (d.weights.hh)
        accumulate_outer(gates.begin, gates.end, count, d_gh_ + first * gate_row_, gate_row_, h_.get() + first * r_row,
                         r_row, R, dw_hh_.get(), r_row);
      if (d.weights.hr)
        accumulate_outer(outputs.begin, outputs.end, count, d_projected_.get() + first * r_row, r_row,
                         unprojected_.get() + first * h_row, h_row, H, dw_hr_.get(), h_row);
    }
  }

  void store_results() {
    for (int64_t r = 0; r < N; ++r) {
      this->store_state(dh_.get() + r * r_row, d.h_0, R, r);
      this->store_state(dc_.get() + r * h_row, d.c_0, H, r);
    }
    store_weight(dw_ih_, d.weights.ih, gate_row_, I, i_row);
    store_weight(dw_hh_, d.weights.hh, gate_row_, R, r_row);
    store_weight(dw_hr_, d.weights.hr, R, H, h_row);
    if (d.weights.bias_ih) scatter(db_ih_.get(), d.weights.bias_ih.data, d.weights.bias_ih.stride, gate_row_);
    if (d.weights.bias_hh) scatter(db_hh_.get(), d.weights.bias_hh.data, d.weights.bias_hh.stride, gate_row_);
  }

  void store_weight(const Buffer<A>& from, Matrix<S> to, int64_t rows, int64_t columns, int64_t row) const {
    if (!to) return;
    for (int64_t i = 0; i < rows; ++i) scatter(from.get() + i * row, to.row(i), to.col_stride, columns);
  }
};

template <class S>
void forward(std::string_view cell, const ScanParams<S>& params, const Team& team) {
  Cells::dispatch(cell, [&]<class Cell>() { ForwardScan<Cell, S>(params, team).run(); });
}

template <class S>
void backward(std::string_view cell, const ScanParams<S>& params, const ScanGradients<S>& gradients, const Team& team) {
  Cells::dispatch(cell, [&]<class Cell>() { BackwardScan<Cell, S>(params, gradients, team).run(); });
}

template <class S>
constexpr Kernels<S> kKernels{forward<S>, backward<S>};

}  // namespace fastrnn::FASTRNN_ISA
