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
  FASTRNN_FN explicit Vec(Raw r) : raw(r) {}
  // All lanes equal; implicit, so that formulas read as written.
  FASTRNN_FN Vec(A scalar) : raw(scalar - Raw{}) {}

  FASTRNN_FN static Vec load(const A* p) {
    Vec v;
    std::memcpy(&v.raw, p, sizeof v.raw);
    return v;
  }
  FASTRNN_FN void store(A* p) const { std::memcpy(p, &raw, sizeof raw); }

  FASTRNN_FN friend Vec operator+(Vec a, Vec b) { return Vec(a.raw + b.raw); }
  FASTRNN_FN friend Vec operator-(Vec a, Vec b) { return Vec(a.raw - b.raw); }
  FASTRNN_FN friend Vec operator*(Vec a, Vec b) { return Vec(a.raw * b.raw); }
  FASTRNN_FN friend Vec operator/(Vec a, Vec b) { return Vec(a.raw / b.raw); }
  FASTRNN_FN friend Vec operator-(Vec a) { return Vec(-a.raw); }
  FASTRNN_FN friend Mask operator<(Vec a, Vec b) { return {a.raw < b.raw}; }
  FASTRNN_FN friend Mask operator<=(Vec a, Vec b) { return {a.raw <= b.raw}; }

  FASTRNN_FN friend Vec select(Mask m, Vec a, Vec b) { return Vec(m.raw ? a.raw : b.raw); }
  FASTRNN_FN friend Vec max(Vec a, Vec b) { return Vec(a.raw > b.raw ? a.raw : b.raw); }  // b where one is NaN
  FASTRNN_FN friend Vec abs(Vec x) { return Vec((Raw)((RawBits)x.raw & ~sign_bit())); }
  FASTRNN_FN friend Vec copy_sign(Vec magnitude, Vec sign) {
    return Vec((Raw)(((RawBits)magnitude.raw & ~sign_bit()) | ((RawBits)sign.raw & sign_bit())));
  }
  // Adding 1.5 * 2^(mantissa bits) leaves the nearest integer in the low bits of the mantissa.
  FASTRNN_FN friend Vec round_to_int(Vec x) { return (x + Vec(kRound)) - Vec(kRound); }
  FASTRNN_FN friend Vec pow2(Vec n) {
    const RawBits shifted = (RawBits)(n + Vec(kRound + kExponentBias)).raw << kMantissaBits;
    return Vec((Raw)shifted);
  }

 private:
  static constexpr int kMantissaBits = sizeof(A) == 4 ? 23 : 52;
  static constexpr A kExponentBias = sizeof(A) == 4 ? 127 : 1023;
  static constexpr A kRound = sizeof(A) == 4 ? A(0x1.8p23) : A(0x1.8p52);
  FASTRNN_FN static RawBits sign_bit() { return (RawBits)(-Raw{}); }
};

#if defined(FASTRNN_ISA_AVX512)
FASTRNN_FN Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm512_fmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm512_fmadd_pd(a.raw, b.raw, c.raw));
}
#elif defined(FASTRNN_ISA_AVX2)
FASTRNN_FN Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm256_fmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm256_fmadd_pd(a.raw, b.raw, c.raw));
}
#elif defined(FASTRNN_ISA_NEON)
FASTRNN_FN Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(vfmaq_f32(c.raw, a.raw, b.raw));
}
FASTRNN_FN Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(vfmaq_f64(c.raw, a.raw, b.raw));
}
#else
template <class A>
FASTRNN_FN Vec<A> mul_add(Vec<A> a, Vec<A> b, Vec<A> c) {
  return a * b + c;
}
#endif

// With one rounding: on a chip without the instruction, lane by lane.
template <class A>
FASTRNN_FN Vec<A> exact_mul_add(Vec<A> a, Vec<A> b, Vec<A> c) {
#if defined(FASTRNN_ISA_AVX512) || defined(FASTRNN_ISA_AVX2) || defined(FASTRNN_ISA_NEON)
  return mul_add(a, b, c);
#else
  for (int j = 0; j < Vec<A>::kWidth; ++j) c.raw[j] = std::fma(a.raw[j], b.raw[j], c.raw[j]);
  return c;
#endif
}

// The first n lanes of a vector (n >= width: all of them), the rest 0.
#if defined(FASTRNN_ISA_AVX512)
FASTRNN_FN Vec<float> load_lanes(const float* p, int64_t n) {
  return Vec<float>(_mm512_maskz_loadu_ps((1u << n) - 1, p));
}
FASTRNN_FN Vec<double> load_lanes(const double* p, int64_t n) {
  return Vec<double>(_mm512_maskz_loadu_pd((1u << n) - 1, p));
}
FASTRNN_FN void store_lanes(Vec<float> v, float* p, int64_t n) { _mm512_mask_storeu_ps(p, (1u << n) - 1, v.raw); }
FASTRNN_FN void store_lanes(Vec<double> v, double* p, int64_t n) { _mm512_mask_storeu_pd(p, (1u << n) - 1, v.raw); }
#elif defined(FASTRNN_ISA_AVX2)
template <class A>
FASTRNN_FN __m256i lane_mask(int64_t n) {
  if constexpr (sizeof(A) == 4) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  } else {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
}
FASTRNN_FN Vec<float> load_lanes(const float* p, int64_t n) {
  return Vec<float>(_mm256_maskload_ps(p, lane_mask<float>(n)));
}
FASTRNN_FN Vec<double> load_lanes(const double* p, int64_t n) {
  return Vec<double>(_mm256_maskload_pd(p, lane_mask<double>(n)));
}
FASTRNN_FN void store_lanes(Vec<float> v, float* p, int64_t n) { _mm256_maskstore_ps(p, lane_mask<float>(n), v.raw); }
FASTRNN_FN void store_lanes(Vec<double> v, double* p, int64_t n) {
  _mm256_maskstore_pd(p, lane_mask<double>(n), v.raw);
}
#else
template <class A>
FASTRNN_FN Vec<A> load_lanes(const A* p, int64_t n) {
  Vec<A> v(A(0));
  std::memcpy(&v.raw, p, n * sizeof(A));
  return v;
}
template <class A>
FASTRNN_FN void store_lanes(Vec<A> v, A* p, int64_t n) {
  std::memcpy(p, &v.raw, n * sizeof(A));
}
#endif

template <class A>
FASTRNN_FN Vec<A> load_first(const A* p, int64_t n) {
  return n >= Vec<A>::kWidth ? Vec<A>::load(p) : load_lanes(p, n);
}

template <class A>
FASTRNN_FN void store_first(Vec<A> v, A* p, int64_t n) {
  if (n >= Vec<A>::kWidth)
    v.store(p);
  else
    store_lanes(v, p, n);
}

}  // namespace fastrnn::FASTRNN_ISA
