// The file of a stream: a header and the float32 weights in torch's layout, little-endian. fastrnn/stream.py writes it.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "dispatch.h"
#include "scan.h"

namespace fastrnn::stream {

static_assert(std::endian::native == std::endian::little, "files of streams are little-endian");

// CRC-32 with the polynomial 0xedb88320, as zlib computes it.
inline uint32_t crc32(const unsigned char* data, std::size_t size, uint32_t crc = 0) {
  static const auto table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int bit = 0; bit < 8; ++bit) t[i] = t[i] & 1 ? t[i] >> 1 ^ 0xedb88320 : t[i] >> 1;
    }
    return t;
  }();
  crc = ~crc;
  for (std::size_t i = 0; i < size; ++i) crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
  return ~crc;
}

struct FileHeader {
  static constexpr std::array<char, 8> kMagic{'f', 'a', 's', 't', 'r', 's', 't', 'r'};
  static constexpr uint32_t kVersion = 1;

  std::array<char, 8> magic;
  uint32_t version;
  uint32_t checksum;          // of all that follows
  std::array<char, 16> cell;  // a name, zeros after it
  int32_t layers;
  int32_t weight_type;  // of cpu::WeightType: what products read
  int32_t has_bias, has_projection;
  int64_t input_size, hidden_size, output_size;

  // Empty where the bytes are no name with zeros after it.
  std::string_view cell_name() const {
    const auto end = std::find(cell.begin(), cell.end(), 0);
    const bool zeros = end != cell.end() && std::all_of(end, cell.end(), [](char c) { return c == 0; });
    return zeros ? std::string_view(cell.data()) : std::string_view();
  }
};
static_assert(sizeof(FileHeader) == 72);

// The weights of a file that was found whole.
class ModelFile {
 public:
  // Throws std::runtime_error, which says what is wrong.
  ModelFile(const void* data, std::size_t size) {
    if (size < sizeof header_) fail("the file is too short for a stream's");
    std::memcpy(&header_, data, sizeof header_);
    if (header_.magic != FileHeader::kMagic) fail("the file is not a stream's: fastrnn.Stream.save writes them");
    if (header_.version != FileHeader::kVersion)
      fail("the file has version " + std::to_string(header_.version) + ", and this library reads version 1");
    const auto [H, R, I] = std::array{header_.hidden_size, header_.output_size, header_.input_size};
    const auto fits = [](int64_t size) { return 0 < size && size <= kMaxSize; };
    const auto flag = [](int32_t value) { return value == 0 || value == 1; };
    bool known = false;
    Cells::dispatch(header_.cell_name(), [&]<class Cell>() {
      known = Cell::kCellStates > 0 || !header_.has_projection;
      gates_ = Cell::kGates;
      has_cell_state_ = Cell::kCellStates > 0;
    });
    const bool sane = known && flag(header_.has_bias) && flag(header_.has_projection) && fits(H) && fits(R) &&
                      fits(I) && (header_.has_projection != 0) == (R != H) && 0 < header_.layers &&
                      header_.layers <= kMostLayers && 0 <= header_.weight_type && header_.weight_type <= 2;
    if (!sane) fail("the file's header is damaged, or of a cell that this library lacks");
    const int64_t floats = at(header_.layers);
    if (size != sizeof header_ + floats * sizeof(float))
      fail("the file has " + std::to_string(size) + " bytes, expected " +
           std::to_string(sizeof header_ + floats * sizeof(float)));
    const auto* bytes = static_cast<const unsigned char*>(data);
    const std::size_t checked = offsetof(FileHeader, checksum) + sizeof header_.checksum;
    if (crc32(bytes + checked, size - checked) != header_.checksum) fail("the file is damaged: its checksum differs");
    weights_.resize(floats);
    std::memcpy(weights_.data(), bytes + sizeof header_, floats * sizeof(float));
  }

  const FileHeader& header() const { return header_; }
  bool has_cell_state() const { return has_cell_state_; }
  int64_t input_size(int64_t layer) const { return layer == 0 ? header_.input_size : header_.output_size; }

  Weights<const float> weights(int64_t layer) const {
    const int64_t rows = gates_ * header_.hidden_size, I = input_size(layer), R = header_.output_size;
    const float* next = weights_.data() + at(layer);
    const auto take = [&](int64_t count) {
      const float* taken = next;
      next += count;
      return taken;
    };
    Weights<const float> weights;
    weights.ih = {take(rows * I), I, 1};
    weights.hh = {take(rows * R), R, 1};
    if (header_.has_bias) {
      weights.bias_ih = {take(rows), 1};
      weights.bias_hh = {take(rows), 1};
    }
    if (header_.has_projection) weights.hr = {take(R * header_.hidden_size), header_.hidden_size, 1};
    return weights;
  }

 private:
  static constexpr int64_t kMaxSize = int64_t{1} << 20;
  static constexpr int32_t kMostLayers = 1 << 10;

  [[noreturn]] static void fail(const std::string& what) { throw std::runtime_error(what); }

  // Where the weights of a layer begin, in floats.
  int64_t at(int64_t layer) const {
    const int64_t rows = gates_ * header_.hidden_size, R = header_.output_size;
    const int64_t rest =
        rows * R + 2 * rows * (header_.has_bias != 0) + R * header_.hidden_size * (header_.has_projection != 0);
    return layer == 0 ? 0 : rows * header_.input_size + (layer - 1) * rows * R + layer * rest;
  }

  FileHeader header_;
  int64_t gates_ = 0;
  bool has_cell_state_ = false;
  std::vector<float> weights_;  // copied, since bytes lie anywhere
};

}  // namespace fastrnn::stream
