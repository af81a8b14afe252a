// One number of type T where solvers/native/vectors.h has a vector: what emitted expressions are made of on a CUDA device.
//
// T is defined above this text. A rollout is a thread, so V is T and a mask is a bool. The text also compiles for a CPU, whose
// results agree to rounding; products and sums may be contracted to fused multiply-adds on both. float: sine, cosine and
// hyperbolic tangent are the polynomials of vectors.h; everything else is the library's.

#if defined(__CUDACC_RTC__)
#define ON_DEVICE 1
#pragma nv_diag_suppress 177, 128  // what a kernel does not use
typedef signed char int8_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
#define UNROLL_4 _Pragma("unroll 4")
#define UNROLL_16 _Pragma("unroll 16")
#define UNROLL_ALL _Pragma("unroll")
#define UNROLL_NONE _Pragma("unroll 1")
#define INLINE static __forceinline__
#define INLINE_METHOD __forceinline__
namespace std {
template <class Q> struct numeric_limits;
template <> struct numeric_limits<float> {
  static float infinity() { return __int_as_float(0x7f800000); }
  static float quiet_NaN() { return __int_as_float(0x7fffffff); }
};
template <> struct numeric_limits<double> {
  static double infinity() { return __longlong_as_double(0x7ff0000000000000); }
  static double quiet_NaN() { return __longlong_as_double(0x7fffffffffffffff); }
};
}  // namespace std
#else
#define ON_DEVICE 0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#define __noinline__ __attribute__((noinline))
#define UNROLL_4
#define UNROLL_16
#define UNROLL_ALL
#define UNROLL_NONE
#define INLINE static inline
#define INLINE_METHOD inline
#define __forceinline__ inline
#endif

typedef T V;
typedef bool M;

INLINE V splat(T value) { return value; }
INLINE bool any(bool mask) { return mask; }

// The library's functions by names of their own for each type.
#if ON_DEVICE
#define ALONE(name, function)                                          \
  INLINE float v_##name(float a) { return function##f(a); }            \
  INLINE double v_##name(double a) { return function(a); }
#define PAIR(name, function)                                           \
  INLINE float v_##name(float a, float b) { return function##f(a, b); } \
  INLINE double v_##name(double a, double b) { return function(a, b); }
#else
#define ALONE(name, function)                                          \
  INLINE float v_##name(float a) { return std::function(a); }          \
  INLINE double v_##name(double a) { return std::function(a); }
#define PAIR(name, function)                                           \
  INLINE float v_##name(float a, float b) { return std::function(a, b); } \
  INLINE double v_##name(double a, double b) { return std::function(a, b); }
#endif
ALONE(exp, exp) ALONE(tan, tan) ALONE(log, log) ALONE(atan, atan) ALONE(asin, asin) ALONE(acos, acos)
ALONE(sqrt, sqrt) ALONE(floor, floor) ALONE(ceil, ceil) ALONE(trunc, trunc) ALONE(round, nearbyint)
PAIR(pow, pow) PAIR(atan2, atan2)

INLINE V v_abs(V a) { return a < 0 ? -a : a; }
INLINE V v_min(V a, V b) { return a < b ? a : b; }
INLINE V v_max(V a, V b) { return a > b ? a : b; }
// As torch's minimum and maximum: a NaN on either side stays one.
INLINE V v_minimum(V a, V b) { return a < b || a != a ? a : b; }
INLINE V v_maximum(V a, V b) { return a > b || a != a ? a : b; }
INLINE V v_sign(V a) { return T(a > 0) - T(a < 0); }

INLINE void v_sincos(double a, double& sine, double& cosine) {
#if ON_DEVICE
  sincos(a, &sine, &cosine);
#else
  sine = std::sin(a);
  cosine = std::cos(a);
#endif
}
// Up to 8192 as in vectors.h, beyond by the library.
INLINE void v_sincos(float a, float& sine, float& cosine) {
  if (!((a < 0 ? -a : a) <= 8192.0f)) {
#if ON_DEVICE
    sincosf(a, &sine, &cosine);
#else
    sine = std::sin(a);
    cosine = std::cos(a);
#endif
    return;
  }
#if ON_DEVICE
  const float k = rintf(a * 0.63661977236758134f);
#else
  const float k = std::nearbyint(a * 0.63661977236758134f);
#endif
  const float r = ((a - k * 1.5703125f) - k * 4.837512969970703125e-4f) - k * 7.5497899548918821e-8f;
  const float z = r * r;
  const float s = r + r * z * (-0.16666655242443085f + z * (0.00833216030150652f + z * -0.00019515282474458218f));
  const float c = 1.0f - 0.5f * z +
                  z * z * (0.04166664555668831f + z * (-0.001388736767694354f + z * 2.443845005473122e-05f));
  const int quadrant = int(k);
  const float first = quadrant & 1 ? c : s, second = quadrant & 1 ? s : c;
  sine = quadrant & 2 ? -first : first;
  cosine = (quadrant + 1) & 2 ? -second : second;
}
template <class Q> INLINE Q v_sin(Q a) { Q s, c; v_sincos(a, s, c); return s; }
template <class Q> INLINE Q v_cos(Q a) { Q s, c; v_sincos(a, s, c); return c; }

INLINE double v_tanh(double a) {
#if ON_DEVICE
  return tanh(a);
#else
  return std::tanh(a);
#endif
}
// The rational function of vectors.h.
INLINE float v_tanh(float a) {
  float x = 9.0f < a ? 9.0f : a;  // in this order a NaN stays
  x = -9.0f > x ? -9.0f : x;
  const float z = x * x;
  const float p = 1.0f + z * (0.13381017744541168f + z * (0.0034955779556185007f +
                                                          z * (2.0608913473552093e-05f + z * 1.3354429562184578e-08f)));
  const float q = 1.0f + z * (0.46714332699775696f + z * (0.02587694302201271f +
                                                          z * (0.0003285618149675429f + z * 7.776462780384463e-07f)));
#if ON_DEVICE
  return __fdividef(x * p, q);  // 2 units in the last place; q is from 1 to 200
#else
  return x * p / q;
#endif
}
