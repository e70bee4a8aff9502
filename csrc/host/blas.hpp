// BLAS and LAPACK by function pointers, so that nothing has to be found or linked at build time:
// the bindings take them from SciPy, the native tests from a shared library. Column-major,
// 32-bit integers (LP64), as Fortran has it. The only file that names BLAS or LAPACK routines.
#pragma once

#include <functional>

namespace ccamerge::blas {

// Fills the table; lookup("dgemm") returns the routine's address. Throws std::runtime_error naming
// the first routine that lookup does not know (nullptr).
void bind(const std::function<void*(const char*)>& lookup);

// The largest orders whose workspace LAPACK's integers can count: 1 + 6 n + 2 n^2 elements of
// syevd with vectors, and of gesdd 4 n^2 and multiples of n that depend on its block.
inline constexpr int kMostEigenvectors = 32766, kMostSingular = 23000;

// c = alpha op(a) op(b) + beta c, c of shape (m, n), inner dimension k.
template <class T>
void gemm(bool trans_a, bool trans_b, int m, int n, int k, T alpha, const T* a, int lda, const T* b,
          int ldb, T beta, T* c, int ldc);

// Lower triangle of c = alpha a a^T + beta c (or a^T a when trans), c of order n.
void syrk(bool trans, int n, int k, double alpha, const double* a, int lda, double beta, double* c,
          int ldc);

// All eigenvalues (ascending) and, with vectors, eigenvectors in a, from its lower triangle.
// Allocates its workspace. info > 0: no convergence.
int syevd(bool vectors, int n, double* a, int lda, double* w);

// Eigenpairs il..iu (1-based, ascending) of a (lower triangle, destroyed): w of length n,
// z of shape (n, iu - il + 1). info as LAPACK's.
int syevr(int n, double* a, int lda, int il, int iu, double* w, double* z, int ldz);

// Thin SVD of a (m, n): s of length k = min(m, n), u (m, k), vt (k, n). By divide and conquer,
// which is several times faster than QR iteration, but fails now and then where many singular
// values are next to nothing: then by QR iteration. info > 0: no convergence by either.
int svd(int m, int n, const double* a, int lda, double* s, double* u, int ldu, double* vt,
        int ldvt);

// Thin QR of a (m, n), m >= n: a becomes Q (m, n), r its upper triangle (n, n), zero below.
int qr(int m, int n, double* a, int lda, double* r, int ldr);

}  // namespace ccamerge::blas
