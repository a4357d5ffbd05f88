// How threads share a step, as a table: what each size should get, and what every grid must keep to.
#include "check.h"
#include "cpu/plan.h"

int main() {
  using namespace fastrnn;
  using cpu::Grid;
  struct Row {
    int64_t threads, rows, panels;
    double weight_bytes;
    Grid want;
    const char* why;
  };
  const Row table[] = {
      {1, 64, 16, 1e6, {1, 1}, "one thread"},
      {2, 64, 16, 1e6, {2, 1}, "rows first: no barrier"},
      {8, 64, 16, 5e5, {8, 1}, "rows for everybody"},
      {8, 64, 64, 4e6, {1, 8}, "a thread's units fit its cache, all of them do not"},
      {2, 1, 4, 65536, {1, 1}, "one sample, few units: a barrier costs more than half the product"},
      {2, 1, 64, 4e6, {1, 2}, "one sample, weights beyond the second-level cache"},
      {8, 2, 64, 16e6, {1, 8}, "two samples: what streams by is split, not what it multiplies"},
      {4, 16, 1, 65536, {4, 1}, "units that cannot be split"},
      {4, 2, 1, 65536, {1, 1}, "a second row costs nothing while the weights arrive"},
      {4, 0, 8, 65536, {1, 1}, "no rows"},
  };
  for (const Row& row : table) {
    const Grid grid = cpu::choose_grid(row.threads, row.rows, row.panels, row.weight_bytes);
    test::check(
        grid.row_groups == row.want.row_groups && grid.unit_groups == row.want.unit_groups,
        std::string(row.why) + ": " + std::to_string(grid.row_groups) + " x " + std::to_string(grid.unit_groups));
  }
  for (int64_t threads = 1; threads <= 17; ++threads)
    for (const int64_t rows : {0, 1, 2, 7, 64})
      for (const int64_t panels : {1, 3, 64})
        for (const double bytes : {1e3, 1e6, 1e8}) {
          const Grid grid = cpu::choose_grid(threads, rows, panels, bytes);
          test::check(grid.row_groups >= 1 && grid.unit_groups >= 1 && grid.threads() <= threads &&
                          grid.row_groups <= std::max<int64_t>(1, rows) && grid.unit_groups <= panels,
                      "a grid beyond its threads, rows or panels");
        }
  return test::finish();
}
