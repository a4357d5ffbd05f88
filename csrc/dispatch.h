// The only place where a run-time choice becomes a compile-time type.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "cells/elman.h"
#include "cells/gru.h"
#include "cells/lstm.h"

namespace fastrnn {

template <class... Cells>
struct CellList {
  // Returns every name: "rnn_tanh,rnn_relu,..."
  static std::string names() {
    std::string all;
    (all.append(all.empty() ? "" : ",").append(Cells::kName), ...);
    return all;
  }

  // Calls f.template operator()<Cell>() for the cell of that name. Returns false if there is none.
  template <class F>
  static constexpr bool dispatch(std::string_view name, F&& f) {
    return ((name == Cells::kName && (f.template operator()<Cells>(), true)) || ...);
  }
};

// A new cell is one file in cells/, which is included above, and its name in this list.
using Cells = CellList<Elman<Tanh>, Elman<Relu>, Gru, Lstm>;

}  // namespace fastrnn
