// Weights of a whole stack of layers, packed once for many calls: a tensor of bytes that a header describes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "cpu/kernels.h"
#include "torch/instruction_sets.h"
#include "torch/op.h"

namespace fastrnn::cpu {

// The first bytes of the tensor. The packed layers follow it, in the order of their weights.
struct alignas(kCacheLine) PackedHeader {
  static constexpr std::array<char, 8> kMagic{'f', 'a', 's', 't', 'r', 'n', 'n'};
  static constexpr int32_t kLayout = 1;  // rises when the order of packed weights changes

  std::array<char, 8> magic = kMagic;
  int32_t layout = kLayout;
  int32_t dtype = 0;  // torch's number
  WeightType type = WeightType::kOperand;
  int32_t directions = 0;
  int64_t layers = 0, I = 0, H = 0, R = 0;
  int64_t first_bytes = 0, other_bytes = 0;  // of an entry of the first layer, and of the others
  std::array<char, 16> set{}, cell{};        // names, zeros after them

  int64_t entries() const { return layers * directions; }
  int64_t begin(int64_t entry) const {
    const int64_t first = std::min<int64_t>(entry, directions);
    return sizeof(PackedHeader) + first * first_bytes + (entry - first) * other_bytes;
  }
};

inline bool is_name(const std::array<char, 16>& text, std::string_view name) {
  return std::string_view(text.data(), std::min(name.size(), text.size())) == name && text[name.size()] == 0;
}

// Looks at a tensor as packed weights; throws where it is none.
inline const PackedHeader& packed_header(const Tensor& packed) {
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.numel() >= static_cast<int64_t>(sizeof(PackedHeader)),
                  "fastrnn: packed must be what prepack returned");
  const auto& header = *static_cast<const PackedHeader*>(packed.const_data_ptr());
  STD_TORCH_CHECK(header.magic == PackedHeader::kMagic && header.layout == PackedHeader::kLayout &&
                      header.begin(header.entries()) == packed.numel() && header.set.back() == 0 &&
                      header.cell.back() == 0,
                  "fastrnn: packed must be what this version's prepack returned");
  return header;
}

// The same for a call: throws where the weights are for another cell, type or instruction set.
inline const PackedHeader& check_packed(const Tensor& packed, std::string_view cell, const Tensor& input) {
  const PackedHeader& header = packed_header(packed);
  STD_TORCH_CHECK(is_name(header.cell, cell), "fastrnn: the weights were packed for another cell than ",
                  std::string(cell));
  STD_TORCH_CHECK(is_name(header.set, instruction_set().name), "fastrnn: the weights were packed for ",
                  header.set.data(), ", and the kernels of ", std::string(instruction_set().name), " run now");
  STD_TORCH_CHECK(header.dtype == static_cast<int32_t>(input.scalar_type()), "fastrnn: input has dtype ",
                  static_cast<int>(input.scalar_type()), ", expected that of the packed weights, ", header.dtype);
  STD_TORCH_CHECK(header.I == input.size(-1), "fastrnn: input has ", input.size(-1), " features, expected ", header.I);
  return header;
}

}  // namespace fastrnn::cpu
