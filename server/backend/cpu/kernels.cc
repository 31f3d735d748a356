// Compiled once per instruction set, each time into an object library of its own with
// GRADCLIP_KERNELS naming the table that it defines. That table must be the only symbol it exports:
// of an inline function that two variants emit the linker keeps one, and if that were the AVX-512
// one, other processors would meet its instructions. So all is in an anonymous namespace, and
// nothing of the standard library is called.
//
// The vectors are those of the GCC vector extensions; what they compile to is left to the compiler,
// but for two conversions.
#include "server/backend/cpu/kernels.h"

#if defined(__x86_64__)
#ifndef __clang__
// GCC 12 takes the undefined source registers of its own AVX-512 header for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#ifndef GRADCLIP_KERNELS
#error "GRADCLIP_KERNELS must name the table to define"
#endif

#define GRADCLIP_INLINE inline __attribute__((always_inline))

namespace gradclip {
namespace {

#if defined(__AVX512F__)
constexpr size_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr size_t kVectorBytes = 32;
#else
constexpr size_t kVectorBytes = 16;
#endif

constexpr size_t kGroup = 32;                       // elements, and lanes
constexpr size_t kWidth = kVectorBytes / 8;         // doubles in a vector
constexpr size_t kVectors = kGroup / kWidth;        // vectors of doubles for all lanes
constexpr size_t kPairVectors = 64 / kVectorBytes;  // vectors in a group of 16-bit elements

typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef int64_t Longs __attribute__((vector_size(kVectorBytes)));
typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));

template <typename Vector>
GRADCLIP_INLINE Vector Load(const void* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename Vector>
GRADCLIP_INLINE void Store(void* to, Vector vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

// Asks for the lines of a group that is read 4 KiB later. The hardware's own prefetching stops at
// pages and starts late: scaling BF16 went from 0.53 to 0.9 of a plain scale pass (AVX-512,
// Sapphire Rapids), a norm of F32 from 0.77 to 0.92 of a plain read pass (AVX2, Zen 3, 2 KiB).
// Addresses past the end do no harm.
template <size_t kGroupBytes>
GRADCLIP_INLINE void Prefetch(const std::byte* group) {
#pragma GCC unroll 4
  for (size_t line = 0; line < kGroupBytes; line += 64) __builtin_prefetch(group + 4096 + line);
}

// As many floats from memory as a vector holds doubles. (With __builtin_convertvector GCC 12
// converts two at a time whatever the width. From a register the conversion takes twice as long.)
GRADCLIP_INLINE Doubles WidenAt(const std::byte* from) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_cvtps_pd(_mm256_loadu_ps((const float*)from));
#elif defined(__AVX2__)
  return (Doubles)_mm256_cvtps_pd(_mm_loadu_ps((const float*)from));
#elif defined(__SSE2__)
  return (Doubles)_mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i*)from)));
#else
  float x[2];
  __builtin_memcpy(x, from, sizeof x);
  return Doubles{x[0], x[1]};
#endif
}

template <bool square>
GRADCLIP_INLINE Doubles Term(Doubles x) {
  if constexpr (square) {
    return x * x;
  } else {
    return (Doubles)((Longs)x & INT64_MAX);
  }
}

// ---- Sums -------------------------------------------------------------------------------------

struct Float32Vectors {
  static constexpr size_t kElementSize = 4;
  static GRADCLIP_INLINE Doubles At(const std::byte* from) { return WidenAt(from); }
};

struct Float64Vectors {
  static constexpr size_t kElementSize = 8;
  static GRADCLIP_INLINE Doubles At(const std::byte* from) { return Load<Doubles>(from); }
};

// Lanes that are summed at once: x86-64 has 16 registers before AVX-512, and half of them are for
// what is in flight. Where that isn't all lanes, a stretch of groups that stays in the first-level
// cache is read once per part of the lanes.
constexpr size_t kPartVectors = kVectors < 8 ? kVectors : 8;
constexpr size_t kStretch = 32;  // groups

template <typename Vectors, bool square, bool prefetch>
GRADCLIP_INLINE void AddVectors(const std::byte* elements, size_t groups, double* lanes) {
  constexpr size_t kGroupBytes = kGroup * Vectors::kElementSize;
  while (groups != 0) {
    const size_t stretch = kPartVectors == kVectors || groups < kStretch ? groups : kStretch;
    for (size_t part = 0; part < kVectors; part += kPartVectors) {
      Doubles sums[kPartVectors];
#pragma GCC unroll 8
      for (size_t v = 0; v < kPartVectors; ++v) {
        sums[v] = Load<Doubles>(lanes + (part + v) * kWidth);
      }
      const std::byte* at = elements;
      for (size_t group = 0; group < stretch; ++group, at += kGroupBytes) {
        if (prefetch && part == 0) Prefetch<kGroupBytes>(at);
#pragma GCC unroll 8
        for (size_t v = 0; v < kPartVectors; ++v) {
          const size_t lane = (part + v) * kWidth;
          sums[v] += Term<square>(Vectors::At(at + lane * Vectors::kElementSize));
        }
      }
#pragma GCC unroll 8
      for (size_t v = 0; v < kPartVectors; ++v) Store(lanes + (part + v) * kWidth, sums[v]);
    }
    elements += stretch * kGroupBytes;
    groups -= stretch;
  }
}

template <bool square>
void AddFloat32(const std::byte* elements, size_t groups, double* lanes) {
  AddVectors<Float32Vectors, square, true>(elements, groups, lanes);
}

template <bool square>
void AddFloat64(const std::byte* elements, size_t groups, double* lanes) {
  // Four lines a group: 0.88 to 1.0 of a plain read pass with AVX-512 (Sapphire Rapids), but 0.92
  // to 0.75 with AVX2 (Zen 3).
  AddVectors<Float64Vectors, square, kVectorBytes == 64>(elements, groups, lanes);
}

// 16-bit elements are widened to floats on the stack, a few groups at a time, and summed from
// there (measured: 21 GB/s from the cache, where doubles made in registers give 15).
constexpr size_t kStagedGroups = 8;

// A 32-bit load holds a pair of elements. Shifting out one and masking out the other needs no
// shuffle, so the even lanes are staged before the odd ones.
template <typename Pairs, bool square>
void AddPairs(const std::byte* elements, size_t groups, double* lanes) {
  double apart[kGroup];
  for (size_t i = 0; i < kGroup / 2; ++i) {
    apart[i] = lanes[2 * i];
    apart[kGroup / 2 + i] = lanes[2 * i + 1];
  }
  alignas(64) float staged[kStagedGroups * kGroup];
  while (groups != 0) {
    const size_t now = groups < kStagedGroups ? groups : kStagedGroups;
    float* to = staged;
    for (size_t group = 0; group < now; ++group, elements += kGroup * 2, to += kGroup) {
      Prefetch<kGroup * 2>(elements);
#pragma GCC unroll 4
      for (size_t v = 0; v < kPairVectors; ++v) {
        const Words pairs = Load<Words>(elements + v * kVectorBytes);
        Store(to + v * 2 * kWidth, Pairs::EvenMagnitudes(pairs));
        Store(to + kGroup / 2 + v * 2 * kWidth, Pairs::OddMagnitudes(pairs));
      }
    }
    AddVectors<Float32Vectors, square, false>((const std::byte*)staged, now, apart);
    groups -= now;
  }
  for (size_t i = 0; i < kGroup / 2; ++i) {
    lanes[2 * i] = apart[i];
    lanes[2 * i + 1] = apart[kGroup / 2 + i];
  }
}

// BF16 is the upper half of a float.
struct BFloat16Pairs {
  static GRADCLIP_INLINE Floats Even(Words pairs) { return (Floats)(pairs << 16); }
  static GRADCLIP_INLINE Floats Odd(Words pairs) { return (Floats)(pairs & 0xffff0000u); }
  // With their signs, which no sum minds.
  static GRADCLIP_INLINE Floats EvenMagnitudes(Words pairs) { return Even(pairs); }
  static GRADCLIP_INLINE Floats OddMagnitudes(Words pairs) { return Odd(pairs); }

  static GRADCLIP_INLINE Words Join(Floats even, Floats odd) {
    return Round(even) >> 16 | (Round(odd) & 0xffff0000u);
  }

 private:
  // To nearest even, in the upper half; overflow carries into infinity by itself.
  static GRADCLIP_INLINE Words Round(Floats x) {
    const Words bits = (Words)x;
    const Words rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return x == x ? rounded : (bits | 0x00400000u);
  }
};

template <bool square>
void AddBFloat16(const std::byte* elements, size_t groups, double* lanes) {
  AddPairs<BFloat16Pairs, square>(elements, groups, lanes);
}

// ---- Scaling of 16-bit elements, and F16 ------------------------------------------------------

template <typename Pairs>
void ScalePairs(std::byte* elements, size_t groups, double coefficient) {
  const float factor = (float)coefficient;
  for (; groups != 0; --groups) {
    Prefetch<kGroup * 2>(elements);
#pragma GCC unroll 4
    for (size_t v = 0; v < kPairVectors; ++v, elements += kVectorBytes) {
      const Words pairs = Load<Words>(elements);
      Store(elements, Pairs::Join(Pairs::Even(pairs) * factor, Pairs::Odd(pairs) * factor));
    }
  }
}

#if defined(__F16C__)
// Neither conversion looks at FTZ or DAZ.
#if defined(__AVX512F__)
GRADCLIP_INLINE Floats LoadFloat16(const std::byte* from) {
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}
GRADCLIP_INLINE void StoreFloat16(std::byte* to, Floats x) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}
#else
GRADCLIP_INLINE Floats LoadFloat16(const std::byte* from) {
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}
GRADCLIP_INLINE void StoreFloat16(std::byte* to, Floats x) {
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}
#endif

template <bool square>
void AddFloat16(const std::byte* elements, size_t groups, double* lanes) {
  alignas(64) float staged[kStagedGroups * kGroup];
  while (groups != 0) {
    const size_t now = groups < kStagedGroups ? groups : kStagedGroups;
    float* to = staged;
    for (size_t group = 0; group < now; ++group, elements += kGroup * 2, to += kGroup) {
      Prefetch<kGroup * 2>(elements);
#pragma GCC unroll 4
      for (size_t v = 0; v < 2 * kPairVectors; ++v) {
        Store(to + v * 2 * kWidth, LoadFloat16(elements + v * kVectorBytes / 2));
      }
    }
    AddVectors<Float32Vectors, square, false>((const std::byte*)staged, now, lanes);
    groups -= now;
  }
}

void ScaleFloat16(std::byte* elements, size_t groups, double coefficient) {
  const float factor = (float)coefficient;
  for (; groups != 0; --groups) {
    Prefetch<kGroup * 2>(elements);
#pragma GCC unroll 4
    for (size_t v = 0; v < 2 * kPairVectors; ++v, elements += kVectorBytes / 2) {
      StoreFloat16(elements, LoadFloat16(elements) * factor);
    }
  }
}
#else
// F16 by integer arithmetic.
struct Float16Pairs {
  static GRADCLIP_INLINE Floats Even(Words pairs) { return WithSign(pairs << 16); }
  static GRADCLIP_INLINE Floats Odd(Words pairs) { return WithSign(pairs & 0xffff0000u); }
  static GRADCLIP_INLINE Floats EvenMagnitudes(Words pairs) {
    return Magnitudes(pairs << 13 & (0x7fffu << 13));
  }
  static GRADCLIP_INLINE Floats OddMagnitudes(Words pairs) {
    return Magnitudes(pairs >> 3 & (0x7fffu << 13));
  }
  static GRADCLIP_INLINE Words Join(Floats even, Floats odd) {
    return Round(even) | Round(odd) << 16;
  }

 private:
  // From the F16's exponent and fraction, standing where a float has its own. An exponent of 15
  // there means what 127 means here, and 31 what 255 does.
  static GRADCLIP_INLINE Floats Magnitudes(Words bits) {
    const Words rebiased = bits + (112u << 23) + ((Words)((Ints)bits >= 31 << 23) & (112u << 23));
    // A subnormal: its fraction behind 2^-14, less 2^-14.
    const Floats subnormal = (Floats)(bits + (113u << 23)) - 0x1p-14f;
    return (Floats)((Ints)bits < 1 << 23 ? (Words)subnormal : rebiased);
  }

  static GRADCLIP_INLINE Floats WithSign(Words upper) {
    const Words sign = upper & 0x80000000u;
    return (Floats)((Words)Magnitudes((upper ^ sign) >> 3) | sign);
  }

  // To nearest even, in the lower half.
  static GRADCLIP_INLINE Words Round(Floats x) {
    const Words sign = (Words)x & 0x80000000u;
    const Words magnitude = (Words)x ^ sign;
    const Words normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    // Below 2^-14: the last place of 0.5 is worth the smallest F16.
    const Words subnormal = (Words)((Floats)magnitude + 0.5f) - 0x3f000000u;
    const Words nan = (Words)((Ints)magnitude > 0x7f800000) & 0x0200u;
    const Words nonfinite = nan | 0x7c00u;
    Words rounded = (Ints)magnitude < 0x38800000 ? subnormal : normal;
    rounded = (Ints)magnitude >= 0x477ff000 ? nonfinite : rounded;  // from 65520 on
    return rounded | sign >> 16;
  }
};

template <bool square>
void AddFloat16(const std::byte* elements, size_t groups, double* lanes) {
  AddPairs<Float16Pairs, square>(elements, groups, lanes);
}

void ScaleFloat16(std::byte* elements, size_t groups, double coefficient) {
  ScalePairs<Float16Pairs>(elements, groups, coefficient);
}
#endif

// ---- Scaling where elements need no conversion ------------------------------------------------

template <typename Vector, typename Element>
void ScaleInOwnType(std::byte* elements, size_t groups, double coefficient) {
  const Element factor = (Element)coefficient;
  const size_t vectors = groups * (kGroup * sizeof(Element) / kVectorBytes);
  for (size_t v = 0; v < vectors; ++v, elements += kVectorBytes) {
    Store(elements, Load<Vector>(elements) * factor);
  }
}

// ---- Bit patterns -----------------------------------------------------------------------------

template <typename Vector, typename Element, Element kMagnitude>
uint64_t LargestBits(const std::byte* elements, size_t groups) {
  constexpr size_t kPerGroup = kGroup * sizeof(Element) / kVectorBytes;
  Vector largest[kPerGroup] = {};
  for (; groups != 0; --groups, elements += kPerGroup * kVectorBytes) {
#pragma GCC unroll 16
    for (size_t v = 0; v < kPerGroup; ++v) {
      const Vector bits = Load<Vector>(elements + v * kVectorBytes) & kMagnitude;
      largest[v] = bits > largest[v] ? bits : largest[v];
    }
  }
  Element all[kGroup];
  __builtin_memcpy(all, largest, sizeof all);
  Element result = 0;
  for (size_t i = 0; i < kGroup; ++i) result = all[i] > result ? all[i] : result;
  return (uint64_t)result;
}

template <typename Vector, typename Element, Element kMagnitude, Element kInfinity>
void CountElements(const std::byte* elements, size_t groups, uint64_t* nonfinite, uint64_t* zeros) {
  const size_t vectors = groups * (kGroup * sizeof(Element) / kVectorBytes);
  Vector nonfinite_counts = {}, zero_counts = {};
  for (size_t v = 0; v < vectors; ++v, elements += kVectorBytes) {
    const Vector bits = Load<Vector>(elements) & kMagnitude;
    nonfinite_counts -= bits >= kInfinity;  // a comparison that holds is -1
    zero_counts -= bits == 0;
  }
  for (size_t i = 0; i < kVectorBytes / sizeof(Element); ++i) {
    *nonfinite += (uint64_t)nonfinite_counts[i];
    *zeros += (uint64_t)zero_counts[i];
  }
}

}  // namespace

const Kernels GRADCLIP_KERNELS = {
    .float32 = {AddFloat32<false>, AddFloat32<true>, LargestBits<Ints, int32_t, 0x7fffffff>,
                CountElements<Ints, int32_t, 0x7fffffff, 0x7f800000>,
                ScaleInOwnType<Floats, float>},
    .float16 = {AddFloat16<false>, AddFloat16<true>, LargestBits<Shorts, int16_t, 0x7fff>,
                CountElements<Shorts, int16_t, 0x7fff, 0x7c00>, ScaleFloat16},
    .bfloat16 = {AddBFloat16<false>, AddBFloat16<true>, LargestBits<Shorts, int16_t, 0x7fff>,
                 CountElements<Shorts, int16_t, 0x7fff, 0x7f80>, ScalePairs<BFloat16Pairs>},
    .float64 = {AddFloat64<false>, AddFloat64<true>, LargestBits<Longs, int64_t, INT64_MAX>,
                CountElements<Longs, int64_t, INT64_MAX, 0x7ff0000000000000>,
                ScaleInOwnType<Doubles, double>},
};

}  // namespace gradclip
