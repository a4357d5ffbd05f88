// How threads share a step, as a table: what each size should get, and what every grid must keep to.
#include "check.h"
#include "cpu/plan.h"

namespace {
using namespace fastrnn;

// What is read of a machine decides sizes and plans within bounds, and nothing where the machine does not tell.
void check_tuning() {
  const auto is = [](int64_t read, int64_t forward_chunk, double near) {
    const cpu::Tuning tuning = cpu::tuning_of(read);
    test::check(tuning.forward_chunk_bytes() == forward_chunk && tuning.near_bytes() == near,
                "a second-level cache of " + std::to_string(read) + " bytes");
  };
  is(1 << 20, 1 << 19, 1e6);
  is(0, 1 << 19, 1e6);
  is(-1, 1 << 19, 1e6);  // sysconf knows no such name
  is(2 << 20, 1 << 20, 2e6);
  is(512 << 10, 256 << 10, 5e5);
  is(16 << 20, 1 << 20, 2e6);
  is(1 << 10, 128 << 10, 2.5e5);
  const int64_t here = cpu::tuning().cache_bytes;
  test::check(here >= 256 << 10 && here <= 2 << 20, "this machine's cache is beyond its bounds");
}

// Units of a product in vectors of AVX-512 and float32; AVX2's are half as long. Backward multiplies with the
// transposed W_hh, of one gate and as deep as all gates.
cpu::StepUnits units_of(int64_t rows, int64_t gates, int64_t units, int64_t depth, double vector = 1) {
  return {rows, static_cast<int64_t>(units / (16 * vector)), std::max<int64_t>(1, 4 / gates),
          static_cast<double>(gates * units * depth * sizeof(float)), gates * vector};
}

// Panels are narrower than whole where a team has more threads than those, and it pays.
void check_panels() {
  using cpu::Grid;
  struct Row {
    int64_t threads;
    cpu::StepUnits units;
    int64_t want;
    Grid grid;
    const char* why;
  };
  const cpu::StepUnits rnn = units_of(1, 1, 256, 256), lstm = units_of(1, 1, 256, 4 * 256);
  const Row table[] = {
      {1, rnn, 4, {1, 1}, "RNN H 256, one thread"},
      {2, rnn, 4, {1, 2}, "RNN H 256, two panels a thread"},
      {3, rnn, 4, {1, 2}, "RNN H 256, fewer threads than panels"},
      {4, rnn, 4, {1, 4}, "RNN H 256, a panel a thread"},
      {8, rnn, 4, {1, 4}, "RNN H 256: 307 cycles saved, 720 more of the barrier"},
      {16, rnn, 4, {1, 4}, "RNN H 256: latency lets a quarter of a panel take as long as a half"},
      {64, rnn, 4, {1, 4}, "RNN H 256, most threads idle"},
      {64, units_of(1, 1, 1280, 1280), 2, {1, 40}, "RNN H 1280: 1536 cycles saved, 900 more of the barrier"},
      {4, lstm, 4, {1, 4}, "LSTM H 256 backward, a panel a thread"},
      {8, lstm, 2, {1, 8}, "LSTM H 256 backward: 1229 cycles saved, 720 more of the barrier"},
      {16, lstm, 2, {1, 8}, "LSTM H 256 backward: a quarter of a panel takes as long as a half"},
      {64, lstm, 2, {1, 8}, "LSTM H 256 backward, most threads idle"},
      {64, units_of(16, 1, 256, 4 * 256), 2, {4, 8}, "LSTM H 256 backward: four rows hide loads, not latency"},
      {64, units_of(1, 1, 256, 4 * 256, 0.5), 4, {1, 8}, "LSTM H 256 backward with AVX2: latency hides the loads"},
      {8, units_of(1, 1, 256, 3 * 256), 2, {1, 8}, "GRU H 256 backward"},
      {16, units_of(1, 1, 1024, 4 * 1024), 4, {1, 16}, "LSTM H 1024 backward, a panel a thread"},
      {32, units_of(1, 1, 1024, 4 * 1024), 2, {1, 32}, "LSTM H 1024 backward: a 32nd of the weights fits a cache"},
      {32,
       units_of(1, 1, 1280, 4 * 1280),
       1,
       {1, 27},
       "LSTM H 1280 backward: three of 80 panels fit, two of 40 do not"},
      {64, units_of(1, 4, 256, 256), 1, {1, 16}, "LSTM H 256: its panels are one vector of units"},
  };
  for (const Row& row : table) {
    const cpu::Tuning usual;
    const int64_t vecs = cpu::choose_panel_vecs(row.threads, row.units, usual);
    const Grid grid = cpu::choose_grid(row.threads, row.units.in_panels_of(vecs), usual);
    test::check(vecs == row.want && grid.row_groups == row.grid.row_groups && grid.unit_groups == row.grid.unit_groups,
                std::string(row.why) + ", " + std::to_string(row.threads) + " threads: " + std::to_string(vecs) +
                    " vectors, " + std::to_string(grid.row_groups) + " x " + std::to_string(grid.unit_groups));
  }

  const cpu::Tuning usual;
  for (const int64_t rows : {0, 1, 2, 3, 7, 33, 64})
    for (const int64_t gates : {1, 2, 3, 4})
      for (int64_t H = 16; H <= 2048; H += H < 512 ? 16 : 256)
        for (const bool backward : {false, true})
          for (const double vector : {1.0, 0.5, 0.25}) {
            const cpu::StepUnits units =
                backward ? units_of(rows, 1, H, gates * H, vector) : units_of(rows, gates, H, H, vector);
            const cpu::StepWork whole = units.in_panels_of(units.whole);
            for (const int64_t threads : {1, 2, 3, 5, 8, 16, 64}) {
              const int64_t vecs = cpu::choose_panel_vecs(threads, units, usual);
              if (vecs == units.whole) continue;
              test::check(threads > 2 && threads > whole.panels, "a small team has narrow panels");
              const cpu::StepWork work = units.in_panels_of(vecs);
              const Grid wide = cpu::choose_grid(threads, whole, usual), grid = cpu::choose_grid(threads, work, usual);
              test::check(cpu::step_cycles(work, grid, usual) < 0.97 * cpu::step_cycles(whole, wide, usual),
                          "narrow panels do not pay");
              test::check(cpu::step_cycles(work, wide, usual) >= cpu::step_cycles(whole, wide, usual) ||
                              whole.panels % wide.unit_groups > 0 || units.vecs % units.whole > 0,
                          "the same share of the units takes less time in narrow panels");
            }
          }
}
}  // namespace

int main() {
  using cpu::Grid;
  using cpu::StepWork;
  struct Row {
    int64_t threads;
    StepWork work;
    Grid want;
    const char* why;
  };
  constexpr double kLstm1024 = 4 * 1024 * 1024 * sizeof(float), kLstm256 = kLstm1024 / 16;
  constexpr double kGru128 = 3 * 128 * 128 * sizeof(float);
  const Row table[] = {
      {1, {64, 16, 1e6}, {1, 1}, "one thread"},
      {2, {64, 16, 1e6}, {2, 1}, "rows first: no barrier"},
      {8, {64, 16, 5e5}, {8, 1}, "rows for everybody"},
      {8, {64, 64, 4e6}, {1, 8}, "a thread's units fit its cache, all of them do not"},
      {2, {1, 4, 65536}, {1, 1}, "one sample, few units: a barrier costs more than half the product"},
      {2, {1, 64, 4e6}, {1, 2}, "one sample, weights beyond the second-level cache"},
      {8, {2, 64, 16e6}, {1, 8}, "two samples: what streams by is split, not what it multiplies"},
      {4, {16, 1, 65536}, {4, 1}, "units that cannot be split"},
      {4, {2, 1, 65536}, {1, 1}, "a second row costs nothing while the weights arrive"},
      {4, {0, 8, 65536}, {1, 1}, "no rows"},
      {8, {8, 16, kLstm256}, {2, 4}, "two barriers of four cost less than one of eight"},
      {8, {1, 8, kGru128}, {1, 4}, "half of a quarter costs less than the barrier of eight does more"},
      {64, {1, 8, kGru128}, {1, 4}, "more threads than that change nothing"},
      {16, {1, 16, kLstm256}, {1, 16}, "one sample, 85,000 multiply-adds a thread"},
      {64, {64, 16, kLstm256}, {16, 4}, "four rows a thread: the loads still hide, and four meet rather than sixteen"},
      {16, {1, 64, kLstm1024}, {1, 16}, "a sixteenth of the weights is beyond the second-level cache"},
      {32, {1, 64, kLstm1024}, {1, 32}, "a 32nd fits it"},
      {64, {1, 64, kLstm1024}, {1, 64}, "5,300 cycles of loads saved, for 1,600 of the barrier"},
      {64, {16, 64, kLstm1024}, {2, 32}, "eight rows hide the loads, and 32 meet rather than 64"},
      {32, {256, 64, kLstm1024}, {1, 32}, "1 % of a long step is no reason to read the weights more often"},
  };
  const cpu::Tuning usual;
  for (const Row& row : table) {
    const Grid grid = cpu::choose_grid(row.threads, row.work, usual);
    test::check(
        grid.row_groups == row.want.row_groups && grid.unit_groups == row.want.unit_groups,
        std::string(row.why) + ": " + std::to_string(grid.row_groups) + " x " + std::to_string(grid.unit_groups));
  }

  struct Split {
    int64_t threads, rows, columns, want;
    const char* why;
  };
  const Split splits[] = {
      {1, 4096, 1024, 1, "one thread has all columns"},
      {2, 1024, 256, 1, "rows of four gates are split before columns"},
      {2, 256, 256, 1, "what is read is the same either way"},
      {2, 128, 512, 2, "four times as many columns as rows"},
      {64, 4096, 1024, 4, "blocks of 256 x 256"},
      {64, 256, 256, 4, "blocks of 16 x 64, a tile wide"},
      {3, 64, 1024, 3, "an odd number of threads"},
      {64, 4096, 40, 1, "fewer columns than a tile has"},
  };
  for (const Split& split : splits) {
    const int64_t parts = cpu::column_parts(split.threads, split.rows, split.columns, 64);
    test::check(parts == split.want, std::string(split.why) + ": " + std::to_string(parts));
  }

  // A plan with a barrier is not taken for less than 3 % of the time, and may be missed by as much.
  constexpr double kClose = 1 / 0.97;
  cpu::Tuning dear;
  dear.line_move *= 2;
  dear.line_read *= 2;
  for (const int64_t rows : {0, 1, 2, 7, 64, 300})
    for (const int64_t panels : {1, 3, 16, 64, 100})
      for (const double bytes : {1e3, 65536.0, 1e6, 1.1e6, 1e8}) {
        const StepWork work{rows, panels, bytes};
        double before = step_cycles(work, {1, 1}, usual);
        for (int64_t threads = 1; threads <= 64; ++threads) {
          const Grid grid = cpu::choose_grid(threads, work, usual);
          test::check(grid.row_groups >= 1 && grid.unit_groups >= 1 && grid.threads() <= threads &&
                          grid.row_groups <= std::max<int64_t>(1, rows) && grid.unit_groups <= panels,
                      "a grid beyond its threads, rows or panels");
          const double cycles = step_cycles(work, grid, usual);
          test::check(cycles <= kClose * before, "one more thread makes a step slower");
          before = std::min(before, cycles);
          const Grid fewer = cpu::choose_grid(threads, work, dear);
          test::check(step_cycles(work, fewer, usual) >= cycles / kClose &&
                          step_cycles(work, grid, dear) >= step_cycles(work, fewer, dear) / kClose,
                      "another grid is better at its own cost");
          if (rows <= 1)
            test::check(fewer.unit_groups <= grid.unit_groups, "a dearer barrier makes more threads meet at it");
        }
      }

  const auto barrier = [&](int64_t threads) { return cpu::barrier_cycles(threads, usual); };
  test::check(barrier(1) == 0 && barrier(2) == 1200, "the barrier of two threads is not 1200 cycles");
  for (int64_t threads = 2; threads < 256; ++threads)
    test::check(barrier(threads) < barrier(threads + 1), "one more thread makes a barrier cheaper");
  // In a flat barrier 64 arrivals would move one line, one after another.
  test::check(barrier(64) < 64 * usual.line_move / 2, "a tree of 64 is no better than half a flat barrier");

  check_panels();
  check_tuning();
  return test::finish();
}
