// Weights of a whole stack of layers, packed once for many calls: a tensor of bytes that a header describes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "cpu/kernels.h"
#include "torch/checks.h"
#include "torch/instruction_sets.h"
#include "torch/op.h"

namespace fastrnn::cpu {

// The first bytes of the tensor. The packed layers follow it, in the order of their weights.
struct alignas(kCacheLine) PackedHeader {
  static constexpr std::array<char, 8> kMagic{'f', 'a', 's', 't', 'r', 'n', 'n'};
  static constexpr int32_t kLayout = 1;  // rises when the order of packed weights changes
  static constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max() / (4 * kMaxSize);

  std::array<char, 8> magic = kMagic;
  int32_t layout = kLayout;
  int32_t dtype = 0;  // torch's number
  WeightType type = WeightType::kOperand;
  int32_t directions = 0;
  int64_t layers = 0, I = 0, H = 0, R = 0;
  int64_t first_bytes = 0, other_bytes = 0;  // of an entry of the first layer, and of the others
  std::array<char, 16> set{}, cell{};        // names, zeros after them

  bool is_sane() const {
    const auto fits = [](int64_t size) { return 0 <= size && size <= kMaxSize; };
    const auto is_text = [](const std::array<char, 16>& name) {  // that an error can show
      return name.back() == 0 && std::none_of(name.begin(), name.end(), [](char c) { return c & 0x80; });
    };
    return (directions == 1 || directions == 2) && 0 < layers && layers <= kMaxSize && fits(I) && fits(H) && fits(R) &&
           WeightType::kOperand <= type && type <= WeightType::kInt8 && 0 < first_bytes && first_bytes <= kMaxBytes &&
           0 < other_bytes && other_bytes <= kMaxBytes && is_text(set) && is_text(cell);
  }
  int64_t entries() const { return layers * directions; }
  int64_t bytes(int64_t entry) const { return entry < directions ? first_bytes : other_bytes; }
  int64_t begin(int64_t entry) const {
    const int64_t first = std::min<int64_t>(entry, directions);
    return sizeof(PackedHeader) + first * first_bytes + (entry - first) * other_bytes;
  }
};

inline bool is_name(const std::array<char, 16>& text, std::string_view name) {
  return name.size() < text.size() && std::equal(name.begin(), name.end(), text.begin()) &&
         std::all_of(text.begin() + name.size(), text.end(), [](char c) { return c == 0; });
}

// Looks at so many bytes as packed weights; throws where they are none. What the header says of each layer's bytes is
// compared with its sizes where the layer runs.
inline const PackedHeader& packed_header(const void* data, int64_t bytes) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(data) % alignof(PackedHeader) == 0,
                  "fastrnn: packed must begin at a multiple of ", alignof(PackedHeader), " bytes");
  const auto& header = *static_cast<const PackedHeader*>(data);
  STD_TORCH_CHECK(bytes >= static_cast<int64_t>(sizeof(PackedHeader)) && header.magic == PackedHeader::kMagic &&
                      header.layout == PackedHeader::kLayout && header.is_sane() &&
                      header.begin(header.entries()) == bytes,
                  "fastrnn: packed must be what this version's prepack returned");
  return header;
}

inline const PackedHeader& packed_header(const Tensor& packed) {
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous(),
                  "fastrnn: packed must be what prepack returned");
  return packed_header(packed.const_data_ptr(), packed.numel());
}

// Throws where a call is for another cell, type or instruction set than the packed weights. Those of a user's cell are
// none that prepack made.
inline void check_packed(const PackedHeader& header, std::string_view cell, ScalarType dtype, int64_t input_size) {
  STD_TORCH_CHECK(is_name(header.cell, cell) && is_built_in(cell),
                  "fastrnn: the weights were packed for another cell than ", std::string(cell));
  STD_TORCH_CHECK(is_name(header.set, instruction_set().name), "fastrnn: the weights were packed for ",
                  header.set.data(), ", and the kernels of ", std::string(instruction_set().name), " run now");
  STD_TORCH_CHECK(header.dtype == static_cast<int32_t>(dtype), "fastrnn: input has dtype ", static_cast<int>(dtype),
                  ", expected that of the packed weights, ", header.dtype);
  STD_TORCH_CHECK(header.I == input_size, "fastrnn: input has ", input_size, " features, expected ", header.I);
}

// Lets a kernel read a layer and direction's packed weights.
template <class S>
void set_packed(const PackedHeader& header, int64_t entry, std::string_view cell, ScanParams<S>& p) {
  p.packed_as = header.type;
  STD_TORCH_CHECK(kernels<S>().packed_bytes(cell, p) == header.bytes(entry), "fastrnn: the packed weights of layer ",
                  entry / header.directions, " have another size than its units need");
  p.packed = reinterpret_cast<const char*>(&header) + header.begin(entry);
}

}  // namespace fastrnn::cpu
