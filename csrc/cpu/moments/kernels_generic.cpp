// The kernels for any processor (128-bit vectors).
#define CCAMERGE_ISA generic
#define CCAMERGE_ISA_NAME "generic"
#define CCAMERGE_VECTOR 16
#include "cpu/moments/kernels_impl.hpp"
