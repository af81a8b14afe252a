// A block of ROLLOUTS rollouts and THREADS threads, at least as many: on a CUDA device, or on a CPU that executes the threads in
// turn.
//
// Code of a block is written once, as a sequence of phases. `PHASE` begins a statement that every thread executes, its number
// is `c`; a barrier follows, so a phase may read what others wrote in the phases before it, and nothing of its own phase.
// `EACH` is a phase of the first ROLLOUTS threads, one rollout to a thread; the products of layers keep the others busy.
// Variables outside of phases have the same value in all threads. What such a thread keeps from phase to phase is an entry of
// an array of PRIVATE, which it finds at MINE.
//
// With REVERSED a CPU executes the threads in the other order: results that differ then tell of a missing barrier.

#if ON_DEVICE
#define PHASE for (int c = threadIdx.x, once = 1; once; once = 0, __syncthreads())
#define PRIVATE 1
#define MINE 0
#else
#if REVERSED
#define PHASE for (int c = THREADS - 1; c >= 0; c--)
#else
#define PHASE for (int c = 0; c < THREADS; c++)
#endif
#define PRIVATE ROLLOUTS
#define MINE c
#endif
#define EACH PHASE if (c < ROLLOUTS)

// Floating-point operations that are rounded one by one, never contracted.
#if ON_DEVICE
#define AS_WRITTEN static
#define MUL(a, b) __fmul_rn(a, b)
#define ADD(a, b) __fadd_rn(a, b)
#define SUB(a, b) __fsub_rn(a, b)
#define DIV(a, b) __fdiv_rn(a, b)
#define ROOT(a) __fsqrt_rn(a)
INLINE int32_t bits_of(float a) { return __float_as_int(a); }
INLINE float float_of(int32_t bits) { return __int_as_float(bits); }
INLINE uint32_t high_word(uint32_t a, uint32_t b) { return __umulhi(a, b); }
#else
#if defined(__clang__)
#define AS_WRITTEN static
#pragma STDC FP_CONTRACT OFF
#else
#define AS_WRITTEN __attribute__((noinline, optimize("fp-contract=off"))) static
#endif
#define MUL(a, b) ((a) * (b))
#define ADD(a, b) ((a) + (b))
#define SUB(a, b) ((a) - (b))
#define DIV(a, b) ((a) / (b))
#define ROOT(a) std::sqrt(a)
#include <cstring>
INLINE int32_t bits_of(float a) { int32_t bits; std::memcpy(&bits, &a, 4); return bits; }
INLINE float float_of(int32_t bits) { float a; std::memcpy(&a, &bits, 4); return a; }
INLINE uint32_t high_word(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
#endif

// COUNT neighbours; four of them begin at a multiple of 16 bytes.
template <int COUNT>
INLINE void copy(const T* from, T* to) {
#if ON_DEVICE
  if constexpr (COUNT == 4 && sizeof(T) == 4) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    return;
  } else if constexpr (COUNT == 4 && sizeof(T) == 8) {
    const double2 low = *reinterpret_cast<const double2*>(from), high = *reinterpret_cast<const double2*>(from + 2);
    to[0] = low.x, to[1] = low.y, to[2] = high.x, to[3] = high.y;
    return;
  }
#endif
  UNROLL_ALL for (int i = 0; i < COUNT; i++) to[i] = from[i];
}
template <int COUNT>
INLINE void put(const T* from, T* to) {
#if ON_DEVICE
  if constexpr (COUNT == 4 && sizeof(T) == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
    return;
  } else if constexpr (COUNT == 4 && sizeof(T) == 8) {
    *reinterpret_cast<double2*>(to) = make_double2(from[0], from[1]);
    *reinterpret_cast<double2*>(to + 2) = make_double2(from[2], from[3]);
    return;
  }
#endif
  UNROLL_ALL for (int i = 0; i < COUNT; i++) to[i] = from[i];
}
