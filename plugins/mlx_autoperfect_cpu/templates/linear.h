// What matvec.h and matmul.h share: the jobs of a linear kernel and the entry point.
//
// A job multiplies the activation rows by one or several weight matrices of equal shape and writes one output:
//   using Format = Affine<4, 32, f16>;           weight format of all its matrices (quant.h)
//   using Out = f16;                             type of the output, row-contiguous [M, N]
//   static constexpr int kWeights[] = {2, 5};    index in c.in of each matrix (Affine: scales at + 1, biases at + 2)
//   static constexpr int kOut = 0;               index in c.out
//   static inline V elem(const ap_ctx& c, int64_t m, int64_t n, int64_t N, int valid, const V* acc);
//                                                what is stored for row m, columns n .. n + valid - 1 (valid <= V::W);
//                                                acc[i] is the product with matrix i
// A prologue makes one activation row:
//   static inline void row(const ap_ctx& c, int64_t m, int64_t K, float* dst);
//                                                writes K floats; dst has room for round_up(K, V::W)
// M, the number of rows, is c.symbols[0]; N and K are those of the weights.
#pragma once
#include "quant.h"
#include "vmath.h"

namespace ap {

template <class Job> inline constexpr int kMatrices = int(sizeof(Job::kWeights) / sizeof(int));

template <class Job> AP_INLINE typename Job::Format::Matrix open_matrix(const ap_ctx& c, int i) {
  return Job::Format::open(c, Job::kWeights[i]);
}

// The columns of all jobs, cut into blocks of Columns, as one range 0 .. total() - 1.
template <int Columns, class... Jobs> struct BlockSpace {
  int64_t end[sizeof...(Jobs)];

  explicit BlockSpace(const ap_ctx& c) {
    int64_t sum = 0;
    int i = 0;
    ((end[i++] = sum += ceil_div(open_matrix<Jobs>(c, 0).N, Columns)), ...);
  }
  int64_t total() const { return end[sizeof...(Jobs) - 1]; }

  // Calls f.template operator()<Job>(index of the job, first column) for the job that has the block.
  template <class F> void visit(int64_t block, F&& f) const {
    int i = 0;
    int64_t begin = 0;
    const auto try_job = [&]<class Job>() {
      if (block < end[i]) {
        f.template operator()<Job>(i, (block - begin) * Columns);
        return true;
      }
      begin = end[i++];
      return false;
    };
    (try_job.template operator()<Jobs>() || ...);
  }
};

}  // namespace ap
