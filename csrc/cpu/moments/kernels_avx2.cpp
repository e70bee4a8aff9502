// The kernels for processors with AVX2 and FMA (x86-64-v3).
#define CCAMERGE_ISA avx2
#define CCAMERGE_ISA_NAME "avx2"
#define CCAMERGE_VECTOR 32
#include "cpu/moments/kernels_impl.hpp"
