// Every solver, and how they are instantiated for a backend: `extern` in its header, nothing in one
// source file.
#pragma once

#include "solve/cca.hpp"
#include "solve/gevp.hpp"
#include "solve/polar.hpp"
#include "solve/universe.hpp"
#include "solve/whitening.hpp"

#define CCAMERGE_SOLVERS(PREFIX, B)                                                              \
  PREFIX template class Triangular<B>;                                                           \
  PREFIX template class Cholesky<B>;                                                             \
  PREFIX template Qdwh<B> qdwh<B>(B&, ConstView);                                                \
  PREFIX template Polar<B> polar<B>(B&, ConstView, const Coefficients&);                         \
  PREFIX template ThinSvd<B> svd_from_polar<B>(B&, ConstView, ConstView, bool, double);          \
  PREFIX template std::vector<PolarFactor<B>> solve_polar<B>(B&, const std::vector<ConstView>&,  \
                                                             const std::vector<std::string>&);   \
  PREFIX template Whitening<B> whiten<B>(B&, const std::vector<ConstView>&, const Regulariser&,  \
                                         WhiteningKind, const std::vector<std::string>&);        \
  PREFIX template std::vector<CcaSolution<B>> solve_cca<B>(                                      \
      B&, const std::vector<CcaProblem>&, const std::vector<std::string>&,                       \
      const std::vector<Regulariser>&, const CcaOptions&);                                       \
  PREFIX template std::vector<GevpSolution<B>> solve_gevp<B>(                                    \
      B&, const std::vector<GevpProblem>&, const std::vector<std::string>&, const Regulariser&); \
  PREFIX template std::vector<UniverseSolution<B>> solve_universe<B>(                            \
      B&, const std::vector<UniverseProblem>&, const std::vector<std::string>&,                  \
      const UniverseOptions&);
