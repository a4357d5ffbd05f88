#include "cpu/cell_registry.h"

#include <map>
#include <mutex>
#include <shared_mutex>
#include <tuple>

namespace fastrnn::cpu {
namespace {

struct Entry {
  CellFacts facts;
  std::map<std::tuple<std::string, std::string>, const void*, std::less<>> kernels;  // by instruction set and type
};

// Neither is destroyed: a thread may still run a kernel when the process ends.
std::shared_mutex& mutex() {
  static auto& mutex = *new std::shared_mutex;
  return mutex;
}
std::map<std::string, Entry, std::less<>>& entries() {
  static auto& entries = *new std::map<std::string, Entry, std::less<>>;
  return entries;
}

// The caller holds the mutex.
Entry& add(std::string_view name, const CellFacts& facts) {
  return entries().try_emplace(std::string(name), Entry{facts, {}}).first->second;
}

}  // namespace

bool register_cell(std::string_view name, const CellFacts& facts) {
  const std::unique_lock lock(mutex());
  return add(name, facts).facts == facts;
}

const CellFacts* find_cell(std::string_view name) {
  const std::shared_lock lock(mutex());
  const auto entry = entries().find(name);
  return entry == entries().end() ? nullptr : &entry->second.facts;
}

bool register_kernels(const CompiledCell& cell) {
  const std::unique_lock lock(mutex());
  Entry& entry = add(cell.name, cell.facts);
  CellFacts needed = entry.facts;
  needed.has_output |= cell.facts.has_output;
  if (needed != cell.facts) return false;
  entry.kernels.try_emplace({cell.instruction_set, cell.type}, cell.kernels);
  return true;
}

const void* find_kernels(std::string_view cell, std::string_view instruction_set, std::string_view type) {
  const std::shared_lock lock(mutex());
  const auto entry = entries().find(cell);
  if (entry == entries().end()) return nullptr;
  const auto& kernels = entry->second.kernels;
  const auto found = kernels.find(std::tuple(instruction_set, type));
  return found == kernels.end() ? nullptr : found->second;
}

}  // namespace fastrnn::cpu
