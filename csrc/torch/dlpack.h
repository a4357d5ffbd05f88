// What the library reads of DLPack's table of C functions (https://github.com/dmlc/dlpack, version 1.3), by which
// Python's tensors tell what they are. torch's copy of that header refuses to be included beside the stable ABI.
#pragma once

#include <cstdint>

namespace fastrnn::dlpack {

constexpr uint32_t kMajorVersion = 1;  // another one has another layout

enum DeviceType : int32_t { kCpu = 1 };
enum TypeCode : uint8_t { kUInt = 1, kFloat = 2, kBFloat = 4 };

struct TensorView {
  void* data;
  DeviceType device;
  int32_t device_index;
  int32_t rank;
  TypeCode code;
  uint8_t bits;
  uint16_t lanes;
  int64_t* sizes;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeTable {
  uint32_t major_version, minor_version;
  ExchangeTable* older;
  void (*not_called_here[3])();
  int (*view)(void* python_object, TensorView* out);  // 0, or -1 with an exception set in Python
};

}  // namespace fastrnn::dlpack
