// Dropout's bits: Philox is compared with the known answers of Random123, the masks of every instruction set with
// Philox.
#include <algorithm>

#include "check.h"
#include "dropout.h"

namespace fastrnn::test {
namespace {

// They come from Random123's tests/kat_vectors (github.com/DEShawResearch/random123): philox4x32 has 10 rounds there.
void known_answers() {
  struct Row {
    PhiloxWords counter;
    uint32_t key[2];
    PhiloxWords expected;
  };
  const Row table[] = {
      {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
       {0xffffffff, 0xffffffff},
       {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       {0xa4093822, 0x299f31d0},
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const auto& [counter, key, expected] : table) {
    const PhiloxWords actual = philox(counter, uint64_t{key[1]} << 32 | key[0]);
    check(std::equal(actual.word, actual.word + 4, expected.word), "philox4x32 differs from a known answer");
  }
}

void rules() {
  struct Row {
    double p;
    uint32_t threshold;
    double scale;
  };
  const Row table[] = {
      {0, 0, 1},
      {0.5, 1u << 31, 2},
      {1, 0, 0},
      {0x1p-34, 0, 1 / (1 - 0x1p-34)},
      {1 - 0x1p-34, 0, 0},
      {0.25, 1u << 30, 1 / 0.75},
      {1 - 0x1p-32, 0xffffffff, 0x1p32},
  };
  for (const auto& [p, threshold, scale] : table) {
    const DropoutRule rule = DropoutRule::of(p);
    check(rule.threshold == threshold && rule.scale == scale, "the rule for p = " + std::to_string(p));
  }
}

// Masks have whole units and a tail; some need more than 32 bits of the counter.
template <class U>
void masks(const cpu::InstructionSet& set, cpu::MaskKernels::Kernel<U> kernel) {
  const uint64_t seed = 0x299f31d0a4093822;
  const MaskParams params{0x0370734413198a2e, 3u << 30, static_cast<uint64_t>(0x3ff5555555555555)};
  for (const int64_t begin : {int64_t{0}, int64_t{1} << 34, (int64_t{1} << 34) - 2 * cpu::kMaskUnit})
    for (const int64_t size : {0, 1, 63, 64, 65, 200}) {
      std::vector<U> mask(size + 1, U{7});
      kernel(params, seed, begin, begin + size, mask.data());
      bool same = mask[size] == 7;
      for (int64_t i = 0; i < size; ++i) {
        const int64_t element = begin + i;
        const uint32_t bits = dropout_bits(seed, params.stream, element / 4).word[element % 4];
        same &= mask[i] == (bits >= params.threshold ? static_cast<U>(params.kept) : U{0});
      }
      check(same, std::string(set.name) + ": a mask of " + std::to_string(8 * sizeof(U)) + " bits, elements " +
                      std::to_string(begin) + " and " + std::to_string(size) + " more");
    }
}

}  // namespace
}  // namespace fastrnn::test

int main() {
  using namespace fastrnn::test;
  known_answers();
  rules();
  for (const fastrnn::cpu::InstructionSet* set : instruction_sets()) {
    masks(*set, set->masks.of_16_bits);
    masks(*set, set->masks.of_32_bits);
    masks(*set, set->masks.of_64_bits);
  }
  return finish();
}
