// The kernels for processors with AVX-512 (x86-64-v4).
#define CCAMERGE_ISA avx512
#define CCAMERGE_ISA_NAME "avx512"
#define CCAMERGE_VECTOR 64
#include "cpu/moments/kernels_impl.hpp"
