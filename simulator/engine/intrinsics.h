// Functions that compiled kernels call and the driver provides: printf and assert. Parameters come as the bytes of the
// call's .param space. vprintf's arguments lie in local memory, each aligned to its size, as C's varargs promote them.
#pragma once

#include <cstdio>
#include <string>

#include "instructions.h"

namespace sim::op {

template <class V>
V parameter(const std::byte* bytes) {
  V value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

template <class V>
V read(Thread& t, const Site& site, uint64_t address) {
  V value;
  load(t, site, Space::generic, address, &value, sizeof value, 1, Order::weak, Scope::none);
  return value;
}

inline std::string read_string(Thread& t, const Site& site, uint64_t address) {
  std::string text;
  if (address == 0) return "(null)";
  while (const char c = read<char>(t, site, address++)) text += c;
  return text;
}

inline void vprintf(Thread& t, const Site& site, std::byte* result, const std::byte* format_bytes,
                    const std::byte* arguments_bytes) {
  const std::string format = read_string(t, site, parameter<uint64_t>(format_bytes));
  uint64_t next = parameter<uint64_t>(arguments_bytes);
  int32_t converted = 0;
  const auto take = [&]<class V>(V) {
    next = (next + sizeof(V) - 1) / sizeof(V) * sizeof(V);
    const V value = read<V>(t, site, next);
    next += sizeof(V);
    ++converted;
    return value;
  };
  std::string text;
  const auto append = [&](const std::string& specifier, auto value) {
    char buffer[512];
    std::snprintf(buffer, sizeof buffer, specifier.c_str(), value);
    text += buffer;
  };
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      text += format[i];
      continue;
    }
    if (i + 1 < format.size() && format[i + 1] == '%') {
      text += '%';
      ++i;
      continue;
    }
    std::string specifier = "%";
    int longs = 0;
    for (++i; i < format.size(); ++i) {
      const char c = format[i];
      if (c == '*') {
        specifier += std::to_string(take(int32_t{}));
      } else if (c == 'l' || c == 'z' || c == 'j' || c == 't') {
        longs += 1;
      } else if (c != 'h') {
        specifier += c;
        if (std::isalpha(static_cast<unsigned char>(c))) break;
      }
    }
    switch (specifier.back()) {
      case 's': append(specifier, read_string(t, site, take(uint64_t{})).c_str()); break;
      case 'p': append(specifier, reinterpret_cast<void*>(take(uint64_t{}))); break;
      case 'c': append(specifier, take(int32_t{})); break;
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o':
        if (longs > 0)
          append(specifier.insert(specifier.size() - 1, "ll"), take(uint64_t{}));
        else
          append(specifier, take(uint32_t{}));
        break;
      default: append(specifier, take(double{}));
    }
  }
  print(t, text.c_str());
  if (result != nullptr) std::memcpy(result, &converted, sizeof converted);
}

inline void assertfail(Thread& t, const Site& site, const std::byte* message, const std::byte* file,
                       const std::byte* line, const std::byte* function, const std::byte*) {
  const auto string = [&](const std::byte* bytes) { return read_string(t, site, parameter<uint64_t>(bytes)); };
  const std::string text = string(file) + ":" + std::to_string(parameter<uint32_t>(line)) + ": " + string(function) +
                           ": Assertion `" + string(message) + "` failed.";
  fail(t, site, text.c_str());
}

}  // namespace sim::op
