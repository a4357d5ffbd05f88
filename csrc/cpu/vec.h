// Vec<A>: one SIMD register of floats or doubles, for the instruction set this file is compiled for.
//
// Arithmetic comes from the compiler's vector extension; only what it cannot say (fused multiply-add, masked access,
// half conversions) is written per instruction set. Included by cpu/isa_*.cpp alone, after they name the instruction
// set in FASTRNN_ISA; everything lives in a namespace of that name, so no two sets share a symbol.
#pragma once

namespace fastrnn::FASTRNN_ISA {

#if defined(FASTRNN_ISA_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(FASTRNN_ISA_AVX2)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else  // NEON, and the plain build: 16 bytes are native or cheap to emulate everywhere
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

// The compiler's vector types: values, and integers of the same width for masks and bit patterns.
template <class A>
struct Registers;

template <>
struct Registers<float> {
  typedef float Values __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Registers<double> {
  typedef double Values __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <class A>
struct Vec {
  using Scalar = A;
  using Raw = typename Registers<A>::Values;
  using RawBits = typename Registers<A>::Bits;
  static constexpr int kWidth = kVectorBytes / sizeof(A);

  struct Mask {
    RawBits raw;  // all ones where true
  };

  Raw raw;

  Vec() = default;
  explicit Vec(Raw r) : raw(r) {}
  Vec(A scalar) : raw(scalar - Raw{}) {}  // all lanes equal; implicit, so that formulas read as written

  static Vec load(const A* p) {
    Vec v;
    std::memcpy(&v.raw, p, sizeof v.raw);
    return v;
  }
  void store(A* p) const { std::memcpy(p, &raw, sizeof raw); }

  friend Vec operator+(Vec a, Vec b) { return Vec(a.raw + b.raw); }
  friend Vec operator-(Vec a, Vec b) { return Vec(a.raw - b.raw); }
  friend Vec operator*(Vec a, Vec b) { return Vec(a.raw * b.raw); }
  friend Vec operator/(Vec a, Vec b) { return Vec(a.raw / b.raw); }
  friend Vec operator-(Vec a) { return Vec(-a.raw); }
  friend Mask operator<(Vec a, Vec b) { return {a.raw < b.raw}; }
  friend Mask operator<=(Vec a, Vec b) { return {a.raw <= b.raw}; }

  friend Vec select(Mask m, Vec a, Vec b) { return Vec(m.raw ? a.raw : b.raw); }
  friend Vec max(Vec a, Vec b) { return Vec(a.raw > b.raw ? a.raw : b.raw); }  // b where one is NaN
  friend Vec abs(Vec x) { return Vec((Raw)((RawBits)x.raw & ~sign_bit())); }
  friend Vec copy_sign(Vec magnitude, Vec sign) {
    return Vec((Raw)(((RawBits)magnitude.raw & ~sign_bit()) | ((RawBits)sign.raw & sign_bit())));
  }
  // Adding 1.5 * 2^(mantissa bits) leaves the nearest integer in the low bits of the mantissa.
  friend Vec round_to_int(Vec x) { return (x + Vec(kRound)) - Vec(kRound); }
  friend Vec pow2(Vec n) {
    const RawBits shifted = (RawBits)(n + Vec(kRound + kExponentBias)).raw << kMantissaBits;
    return Vec((Raw)shifted);
  }

 private:
  static constexpr int kMantissaBits = sizeof(A) == 4 ? 23 : 52;
  static constexpr A kExponentBias = sizeof(A) == 4 ? 127 : 1023;
  static constexpr A kRound = sizeof(A) == 4 ? A(0x1.8p23) : A(0x1.8p52);
  static RawBits sign_bit() { return (RawBits)(-Raw{}); }
};

#if defined(FASTRNN_ISA_AVX512)
inline Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm512_fmadd_ps(a.raw, b.raw, c.raw));
}
inline Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm512_fmadd_pd(a.raw, b.raw, c.raw));
}
#elif defined(FASTRNN_ISA_AVX2)
inline Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm256_fmadd_ps(a.raw, b.raw, c.raw));
}
inline Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm256_fmadd_pd(a.raw, b.raw, c.raw));
}
#elif defined(FASTRNN_ISA_NEON)
inline Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(vfmaq_f32(c.raw, a.raw, b.raw));
}
inline Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(vfmaq_f64(c.raw, a.raw, b.raw));
}
#else
template <class A>
inline Vec<A> mul_add(Vec<A> a, Vec<A> b, Vec<A> c) {
  return a * b + c;
}
#endif

// The first n lanes of a vector (0 <= n, all lanes when n >= width), the rest 0.
template <class A>
inline Vec<A> load_first(const A* p, int64_t n) {
  using V = Vec<A>;
  if (n >= V::kWidth) return V::load(p);
  V v(A(0));
  std::memcpy(&v.raw, p, n * sizeof(A));
  return v;
}

template <class A>
inline void store_first(Vec<A> v, A* p, int64_t n) {
  if (n >= Vec<A>::kWidth) return v.store(p);
  std::memcpy(p, &v.raw, n * sizeof(A));
}

}  // namespace fastrnn::FASTRNN_ISA
