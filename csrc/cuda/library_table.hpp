// The functions of cuBLAS and cuSOLVER that are used, once loaded; all null before that.
#pragma once

#include "cuda/prototypes.hpp"

namespace ccamerge::cuda {

struct LibraryTable {
#define CCAMERGE_MEMBER(result, name, parameters) result(*name) parameters = nullptr;
  CCAMERGE_CUBLAS(CCAMERGE_MEMBER)
  CCAMERGE_CUSOLVER(CCAMERGE_MEMBER)
#undef CCAMERGE_MEMBER
};

const LibraryTable& library_table();

}  // namespace ccamerge::cuda
