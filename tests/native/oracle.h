// The cells once more, as a loop over samples and units in double: slow, and independent of the kernels.
#pragma once

#include <cmath>
#include <string>
#include <vector>

namespace fastrnn::test {

using Values = std::vector<double>;

struct Problem {
  std::string cell;
  int64_t T, N, I, H, R;
  bool reverse = false;
  std::vector<int64_t> lengths;  // [N]
  std::vector<uint8_t> reset;    // [T, N], empty: none
  Values x, h_0, c_0;            // [T, N, I], [N, R], [N, H]
  Values w_ih, w_hh, b_ih, b_hh, w_hr;

  int64_t gates() const { return cell == "lstm" ? 4 : cell == "gru" ? 3 : 1; }
  bool projected() const { return R != H; }
};

struct Outputs {
  Values y, h_n, c_n;  // [T, N, R], [N, R], [N, H]
};

inline Outputs oracle(const Problem& p) {
  const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  Outputs out{Values(p.T * p.N * p.R), p.h_0, p.c_0};
  Values gx(p.gates() * p.H), gh(p.gates() * p.H), full(p.H);
  for (int64_t n = 0; n < p.N; ++n) {
    double* const h = &out.h_n[n * p.R];
    double* const c = &out.c_n[n * p.H];
    for (int64_t s = 0; s < p.lengths[n]; ++s) {
      const int64_t t = p.reverse ? p.lengths[n] - 1 - s : s;
      const int64_t mark = p.reverse ? t + 1 : t;  // the first step of the segment walked before this step
      if (!p.reset.empty() && mark < p.lengths[n] && p.reset[mark * p.N + n]) {
        std::fill_n(h, p.R, 0.0);
        std::fill_n(c, p.H, 0.0);
      }
      for (int64_t g = 0; g < p.gates() * p.H; ++g) {
        gx[g] = p.b_ih[g];
        gh[g] = p.b_hh[g];
        for (int64_t k = 0; k < p.I; ++k) gx[g] += p.w_ih[g * p.I + k] * p.x[(t * p.N + n) * p.I + k];
        for (int64_t k = 0; k < p.R; ++k) gh[g] += p.w_hh[g * p.R + k] * h[k];
      }
      const auto sum = [&](int64_t gate, int64_t j) { return gx[gate * p.H + j] + gh[gate * p.H + j]; };
      for (int64_t j = 0; j < p.H; ++j) {
        if (p.cell == "rnn_tanh") {
          full[j] = std::tanh(sum(0, j));
        } else if (p.cell == "rnn_relu") {
          full[j] = std::max(0.0, sum(0, j));
        } else if (p.cell == "gru") {
          const double r = sigmoid(sum(0, j)), z = sigmoid(sum(1, j));
          const double new_state = std::tanh(gx[2 * p.H + j] + r * gh[2 * p.H + j]);
          full[j] = (1 - z) * new_state + z * h[j];
        } else {
          c[j] = sigmoid(sum(1, j)) * c[j] + sigmoid(sum(0, j)) * std::tanh(sum(2, j));
          full[j] = sigmoid(sum(3, j)) * std::tanh(c[j]);
        }
      }
      for (int64_t j = 0; j < p.R; ++j) {
        h[j] = p.projected() ? 0 : full[j];
        for (int64_t k = 0; p.projected() && k < p.H; ++k) h[j] += p.w_hr[j * p.H + k] * full[k];
        out.y[(t * p.N + n) * p.R + j] = h[j];
      }
    }
  }
  return out;
}

}  // namespace fastrnn::test
