// CUDA's small vector types, dim3 and their makers, aligned as on the device.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_VECTOR_TYPES_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_VECTOR_TYPES_H_

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

#define EMULATED_CUDA_VECTOR2(type, element, alignment) \
  struct alignas(alignment) type {                      \
    element x, y;                                       \
  };                                                    \
  constexpr type make_##type(element x, element y) {    \
    return {x, y};                                      \
  }
#define EMULATED_CUDA_VECTOR4(type, element, alignment)                    \
  struct alignas(alignment) type {                                         \
    element x, y, z, w;                                                    \
  };                                                                       \
  constexpr type make_##type(element x, element y, element z, element w) { \
    return {x, y, z, w};                                                   \
  }

EMULATED_CUDA_VECTOR2(ushort2, unsigned short, 4)
EMULATED_CUDA_VECTOR4(ushort4, unsigned short, 8)
EMULATED_CUDA_VECTOR2(int2, int, 8)
EMULATED_CUDA_VECTOR4(int4, int, 16)
EMULATED_CUDA_VECTOR2(uint2, unsigned, 8)
EMULATED_CUDA_VECTOR4(uint4, unsigned, 16)
EMULATED_CUDA_VECTOR2(float2, float, 8)
EMULATED_CUDA_VECTOR4(float4, float, 16)
EMULATED_CUDA_VECTOR2(double2, double, 16)
EMULATED_CUDA_VECTOR2(longlong2, long long, 16)
EMULATED_CUDA_VECTOR2(ulonglong2, unsigned long long, 16)

#undef EMULATED_CUDA_VECTOR2
#undef EMULATED_CUDA_VECTOR4

constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
  return {x, y, z};
}

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_VECTOR_TYPES_H_
