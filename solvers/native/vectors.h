// Vectors of T, one rollout to a lane, and the elementary functions on them. T is defined above this text.
//
// float: sine, cosine, exponential and hyperbolic tangent are written out here, so that they need no call and work on
// every processor; tests/solvers/methods/test_vector_functions.py holds their errors over all floats. Everything else is the C library's:
// its vector functions (errors up to 4 units in the last place) where it has them, or its scalar ones lane by lane.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
constexpr int LANES = VECTOR_BYTES / sizeof(T);
typedef T V __attribute__((vector_size(VECTOR_BYTES)));
typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> I;
typedef I M __attribute__((vector_size(VECTOR_BYTES)));  // a mask: -1 where true

static inline V splat(T value) { return value - V{}; }  // x - 0 is x; 0 + x is not for x = -0
template <class Mask>
static inline bool any(Mask m) {
#if defined(__AVX512F__) && !defined(__clang__)
  // One instruction, without the half second that immintrin.h takes to compile.
  typedef int Parts __attribute__((vector_size(VECTOR_BYTES)));
  return __builtin_ia32_ptestmd512((Parts)m, (Parts)m, -1) != 0;
#else
  long long parts[VECTOR_BYTES / 8], total = 0;
  std::memcpy(parts, &m, VECTOR_BYTES);
  for (long long part : parts) total |= part;
  return total != 0;
#endif
}
static inline V v_abs(V a) { return a < 0 ? -a : a; }
static inline V v_min(V a, V b) { return a < b ? a : b; }
static inline V v_max(V a, V b) { return a > b ? a : b; }
// As torch's minimum and maximum: a NaN on either side stays one.
static inline V v_minimum(V a, V b) { return (a < b) | (a != a) ? a : b; }
static inline V v_maximum(V a, V b) { return (a > b) | (a != a) ? a : b; }
static inline V v_sign(V a) { return (a > 0 ? splat(1) : splat(0)) - (a < 0 ? splat(1) : splat(0)); }
static inline M finite(V a) { return v_abs(a) <= std::numeric_limits<T>::max(); }

// A vector of the other type and as many lanes is never needed; these names say which of the two is meant.
typedef float VF __attribute__((vector_size(VECTOR_BYTES)));
typedef double VD __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t MF __attribute__((vector_size(VECTOR_BYTES)));

#define LANES_OF_1(type, name, function)                                                         \
  static inline type name(type a) {                                                              \
    type r;                                                                                      \
    for (unsigned l = 0; l < sizeof(type) / sizeof(a[0]); l++) r[l] = function(a[l]);            \
    return r;                                                                                    \
  }
#define LANES_OF_2(type, name, function)                                                         \
  static inline type name(type a, type b) {                                                      \
    type r;                                                                                      \
    for (unsigned l = 0; l < sizeof(type) / sizeof(a[0]); l++) r[l] = function(a[l], b[l]);      \
    return r;                                                                                    \
  }

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 35)
#define LIBRARY_VECTORS 1
#endif
#endif
#if LIBRARY_VECTORS && (defined(__AVX512F__) || defined(__AVX2__))
#if defined(__AVX512F__)
#define SYMBOL_D(args, name) _ZGVeN8##args##_##name
#define SYMBOL_F(args, name) _ZGVeN16##args##_##name##f
#else
#define SYMBOL_D(args, name) _ZGVdN4##args##_##name
#define SYMBOL_F(args, name) _ZGVdN8##args##_##name##f
#endif
#define LIBRARY_D(name)                \
  extern "C" VD SYMBOL_D(v, name)(VD); \
  static inline VD v_##name(VD a) { return SYMBOL_D(v, name)(a); }
#define LIBRARY(name)                  \
  LIBRARY_D(name)                      \
  extern "C" VF SYMBOL_F(v, name)(VF); \
  static inline VF v_##name(VF a) { return SYMBOL_F(v, name)(a); }
LIBRARY_D(sin) LIBRARY_D(cos) LIBRARY_D(exp) LIBRARY_D(tanh)
LIBRARY(tan) LIBRARY(log) LIBRARY(atan) LIBRARY(asin) LIBRARY(acos)
#define LIBRARY_2(name)                      \
  extern "C" VD SYMBOL_D(vv, name)(VD, VD);  \
  extern "C" VF SYMBOL_F(vv, name)(VF, VF);  \
  static inline VD v_##name(VD a, VD b) { return SYMBOL_D(vv, name)(a, b); } \
  static inline VF v_##name(VF a, VF b) { return SYMBOL_F(vv, name)(a, b); }
LIBRARY_2(pow) LIBRARY_2(atan2)
#else
LANES_OF_1(VD, v_sin, std::sin) LANES_OF_1(VD, v_cos, std::cos) LANES_OF_1(VD, v_exp, std::exp)
LANES_OF_1(VD, v_tanh, std::tanh)
LANES_OF_1(V, v_tan, std::tan) LANES_OF_1(V, v_log, std::log) LANES_OF_1(V, v_atan, std::atan)
LANES_OF_1(V, v_asin, std::asin) LANES_OF_1(V, v_acos, std::acos)
LANES_OF_2(V, v_pow, std::pow) LANES_OF_2(V, v_atan2, std::atan2)
#endif
LANES_OF_1(V, v_sqrt, std::sqrt) LANES_OF_1(V, v_floor, std::floor) LANES_OF_1(V, v_ceil, std::ceil)
LANES_OF_1(V, v_trunc, std::trunc) LANES_OF_1(V, v_round, std::nearbyint)

static inline void v_sincos(VD a, VD& sine, VD& cosine) {
  sine = v_sin(a);
  cosine = v_cos(a);
}
// Sine and cosine together. |a| <= 8192: reduced by pi/2 in three parts, whose products with the quadrant are exact;
// polynomials are minimax fits on [-pi/4, pi/4] (relative error 4e-9 and 1e-10 before rounding). Beyond: the C library.
static inline void v_sincos(VF a, VF& sine, VF& cosine) {
  const VF k = (a * 0.63661977236758134f + 12582912.0f) - 12582912.0f;  // nearest whole number
  const VF r = ((a - k * 1.5703125f) - k * 4.837512969970703125e-4f) - k * 7.5497899548918821e-8f;
  const VF z = r * r;
  const VF s = r + r * z * (-0.16666655242443085f + z * (0.00833216030150652f + z * -0.00019515282474458218f));
  const VF c = 1.0f - 0.5f * z +
               z * z * (0.04166664555668831f + z * (-0.001388736767694354f + z * 2.443845005473122e-05f));
  const MF q = __builtin_convertvector(k, MF);
  const MF swap = (q & 1) != 0;
  sine = swap ? c : s;
  cosine = swap ? s : c;
  sine = (VF)((MF)sine ^ ((q & 2) << 30));
  cosine = (VF)((MF)cosine ^ (((q + 1) & 2) << 30));
  const MF far = ~((a < 0 ? -a : a) <= 8192.0f);
  if (__builtin_expect(any(far), 0))
    for (unsigned l = 0; l < sizeof(VF) / sizeof(float); l++)
      if (far[l]) sine[l] = std::sin(a[l]), cosine[l] = std::cos(a[l]);
}
static inline VF v_sin(VF a) { VF s, c; v_sincos(a, s, c); return s; }
static inline VF v_cos(VF a) { VF s, c; v_sincos(a, s, c); return c; }

// 2^n times a minimax polynomial on [-ln 2 / 2, ln 2 / 2] (relative error 3e-9 before rounding); the power of two in two
// factors, so that results below the normal numbers and overflow come out right.
static inline VF v_exp(VF a) {
  const VF high = VF{} + 130.0f, low = VF{} - 150.0f;
  VF x = high < a ? high : a;  // in this order a NaN stays
  x = low > x ? low : x;
  const VF k = (x * 1.4426950408889634f + 12582912.0f) - 12582912.0f;
  const VF r = (x - k * 0.693359375f) - k * -2.12194440054690583e-4f;
  const VF p = 0.4999999403953552f +
               r * (0.1666651964187622f + r * (0.04166839271783829f + r * (0.008368782699108124f + r * 0.0013814474223181605f)));
  const MF n = __builtin_convertvector(k, MF), half = n >> 1;
  const VF first = (VF)((half + 127) << 23), second = (VF)((n - half + 127) << 23);
  return (1.0f + (r + r * r * p)) * first * second;
}

// 1 / a for normal a: the processor's estimate of 14 bits and one Newton step, where it has one of 14 bits.
static inline VF v_inverse(VF a) {
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
  const VF estimate = (VF)__builtin_ia32_rcp14ps512_mask(a, VF{}, 0xffff);
  return estimate + estimate * (1.0f - a * estimate);
#else
  return 1.0f / a;
#endif
}

// A minimax rational function on [-9, 9] (relative error 2e-8 before rounding); 1 beyond.
static inline VF v_tanh(VF a) {
  const VF high = VF{} + 9.0f;
  VF x = high < a ? high : a;  // in this order a NaN stays
  x = -high > x ? -high : x;
  const VF z = x * x;
  const VF p = 1.0f + z * (0.13381017744541168f + z * (0.0034955779556185007f +
                                                       z * (2.0608913473552093e-05f + z * 1.3354429562184578e-08f)));
  const VF q = 1.0f + z * (0.46714332699775696f + z * (0.02587694302201271f +
                                                       z * (0.0003285618149675429f + z * 7.776462780384463e-07f)));
  return x * p * v_inverse(q);
}
