#include "host/blas.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace ccamerge::blas {
namespace {

// Each routine with its Fortran parameter types; hidden string lengths are not passed, as in
// SciPy's own exported signatures.
#define CCAMERGE_BLAS_ROUTINES(X)                                                               \
  X(sgemm,                                                                                      \
    (char*, char*, int*, int*, int*, float*, float*, int*, float*, int*, float*, float*, int*)) \
  X(dgemm, (char*, char*, int*, int*, int*, double*, double*, int*, double*, int*, double*,     \
            double*, int*))                                                                     \
  X(dsyrk, (char*, char*, int*, int*, double*, double*, int*, double*, double*, int*))          \
  X(dsyevd, (char*, char*, int*, double*, int*, double*, double*, int*, int*, int*, int*))      \
  X(dsyevr, (char*, char*, char*, int*, double*, int*, double*, double*, int*, int*, double*,   \
             int*, double*, double*, int*, int*, double*, int*, int*, int*, int*))              \
  X(dgesdd, (char*, int*, int*, double*, int*, double*, double*, int*, double*, int*, double*,  \
             int*, int*, int*))                                                                 \
  X(dgesvd, (char*, char*, int*, int*, double*, int*, double*, double*, int*, double*, int*,    \
             double*, int*, int*))                                                              \
  X(dgeqrf, (int*, int*, double*, int*, double*, double*, int*, int*))                          \
  X(dorgqr, (int*, int*, int*, double*, int*, double*, double*, int*, int*))

struct Table {
#define CCAMERGE_MEMBER(name, params) void(*name) params = nullptr;
  CCAMERGE_BLAS_ROUTINES(CCAMERGE_MEMBER)
#undef CCAMERGE_MEMBER
} table;

// Fortran takes everything by non-const pointer; the routines do not write to inputs.
template <class T>
T* mut(const T* p) {
  return const_cast<T*>(p);
}

char op(bool trans) { return trans ? 'T' : 'N'; }

// Both leave nothing of a.
int gesdd(int m, int n, double* a, int lda, double* s, double* u, int ldu, double* vt, int ldvt) {
  char job = 'S';
  int info = 0, lwork = -1;
  double work_size = 0;
  std::vector<int> iwork(static_cast<std::size_t>(8 * std::max(1, std::min(m, n))));
  table.dgesdd(&job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, &work_size, &lwork, iwork.data(),
               &info);
  lwork = static_cast<int>(work_size);
  std::vector<double> work(static_cast<std::size_t>(std::max(1, lwork)));
  table.dgesdd(&job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work.data(), &lwork, iwork.data(),
               &info);
  return info;
}

int gesvd(int m, int n, double* a, int lda, double* s, double* u, int ldu, double* vt, int ldvt) {
  char job = 'S';
  int info = 0, lwork = -1;
  double work_size = 0;
  table.dgesvd(&job, &job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, &work_size, &lwork, &info);
  lwork = static_cast<int>(work_size);
  std::vector<double> work(static_cast<std::size_t>(std::max(1, lwork)));
  table.dgesvd(&job, &job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work.data(), &lwork, &info);
  return info;
}

}  // namespace

void bind(const std::function<void*(const char*)>& lookup) {
#define CCAMERGE_BIND(name, params)                             \
  table.name = reinterpret_cast<void(*) params>(lookup(#name)); \
  if (!table.name) throw std::runtime_error("no BLAS or LAPACK routine named " #name);
  CCAMERGE_BLAS_ROUTINES(CCAMERGE_BIND)
#undef CCAMERGE_BIND
}

template <class T>
void gemm(bool trans_a, bool trans_b, int m, int n, int k, T alpha, const T* a, int lda, const T* b,
          int ldb, T beta, T* c, int ldc) {
  char ta = op(trans_a), tb = op(trans_b);
  if constexpr (sizeof(T) == sizeof(float)) {
    table.sgemm(&ta, &tb, &m, &n, &k, &alpha, mut(a), &lda, mut(b), &ldb, &beta, c, &ldc);
  } else {
    table.dgemm(&ta, &tb, &m, &n, &k, &alpha, mut(a), &lda, mut(b), &ldb, &beta, c, &ldc);
  }
}

template void gemm<float>(bool, bool, int, int, int, float, const float*, int, const float*, int,
                          float, float*, int);
template void gemm<double>(bool, bool, int, int, int, double, const double*, int, const double*,
                           int, double, double*, int);

void syrk(bool trans, int n, int k, double alpha, const double* a, int lda, double beta, double* c,
          int ldc) {
  char uplo = 'L', t = op(trans);
  table.dsyrk(&uplo, &t, &n, &k, &alpha, mut(a), &lda, &beta, c, &ldc);
}

int syevd(bool vectors, int n, double* a, int lda, double* w) {
  char jobz = vectors ? 'V' : 'N', uplo = 'L';
  int info = 0, lwork = -1, liwork = -1, iwork_size = 0;
  double work_size = 0;
  table.dsyevd(&jobz, &uplo, &n, a, &lda, w, &work_size, &lwork, &iwork_size, &liwork, &info);
  lwork = static_cast<int>(work_size);
  liwork = iwork_size;
  std::vector<double> work(static_cast<std::size_t>(std::max(1, lwork)));
  std::vector<int> iwork(static_cast<std::size_t>(std::max(1, liwork)));
  table.dsyevd(&jobz, &uplo, &n, a, &lda, w, work.data(), &lwork, iwork.data(), &liwork, &info);
  return info;
}

int syevr(int n, double* a, int lda, int il, int iu, double* w, double* z, int ldz) {
  char jobz = 'V', range = 'I', uplo = 'L';
  double lower = 0, upper = 0, abstol = 0, work_size = 0;
  int info = 0, lwork = -1, liwork = -1, iwork_size = 0, found = 0;
  std::vector<int> support(static_cast<std::size_t>(2 * std::max(1, iu - il + 1)));
  auto call = [&](double* work, int* iwork) {
    table.dsyevr(&jobz, &range, &uplo, &n, a, &lda, &lower, &upper, &il, &iu, &abstol, &found, w, z,
                 &ldz, support.data(), work, &lwork, iwork, &liwork, &info);
  };
  call(&work_size, &iwork_size);
  lwork = static_cast<int>(work_size);
  liwork = iwork_size;
  std::vector<double> work(static_cast<std::size_t>(std::max(1, lwork)));
  std::vector<int> iwork(static_cast<std::size_t>(std::max(1, liwork)));
  call(work.data(), iwork.data());
  if (info == 0 && found != iu - il + 1) return n + 1;
  return info;
}

int svd(int m, int n, const double* a, int lda, double* s, double* u, int ldu, double* vt,
        int ldvt) {
  std::vector<double> copy(static_cast<std::size_t>(m) * static_cast<std::size_t>(n));
  const auto fill = [&] {
    for (std::ptrdiff_t j = 0; j < n; ++j) std::copy_n(a + j * lda, m, copy.data() + j * m);
  };
  fill();
  int info = gesdd(m, n, copy.data(), m, s, u, ldu, vt, ldvt);
  if (info > 0) {
    fill();
    info = gesvd(m, n, copy.data(), m, s, u, ldu, vt, ldvt);
  }
  return info;
}

int qr(int m, int n, double* a, int lda, double* r, int ldr) {
  int info = 0, lwork = -1;
  double sizes[2] = {0, 0};
  std::vector<double> tau(static_cast<std::size_t>(std::max(1, n)));
  table.dgeqrf(&m, &n, a, &lda, tau.data(), &sizes[0], &lwork, &info);
  table.dorgqr(&m, &n, &n, a, &lda, tau.data(), &sizes[1], &lwork, &info);
  lwork = static_cast<int>(std::max({1.0, sizes[0], sizes[1]}));
  std::vector<double> work(static_cast<std::size_t>(lwork));
  table.dgeqrf(&m, &n, a, &lda, tau.data(), work.data(), &lwork, &info);
  if (info != 0) return info;
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < n; ++i) {
      r[i + static_cast<std::ptrdiff_t>(j) * ldr] =
          i <= j ? a[i + static_cast<std::ptrdiff_t>(j) * lda] : 0.0;
    }
  }
  table.dorgqr(&m, &n, &n, a, &lda, tau.data(), work.data(), &lwork, &info);
  return info;
}

}  // namespace ccamerge::blas
