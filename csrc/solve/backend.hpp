// What the solving algorithms are written over. An algorithm is a template over a backend B and
// works on stacks (see stack.hpp): all members take every step together, so that a backend on a
// device runs a whole batch with few launches. On the CPU a stack is one matrix, and problems run
// beside each other.
//
// A backend owns memory and implements the primitives below. Each acts on every member of its
// operands; all operands of a call have one count (an input may repeat one matrix: stride 0). Views
// are of the backend's memory, outputs overlap no other operand unless said otherwise, and a view's
// leading dimension may exceed its rows. A primitive that returns host values waits for the device;
// all others may return before their work is done, and run in the order of the calls. Sizes may be
// 0: then there is nothing to do, but a product over an empty inner dimension is zero. Values that
// are not finite must do no harm beyond their own member.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "common/stack.hpp"

namespace ccamerge {

// What an element-wise primitive reads and writes; `lower` is of square matrices, with the
// diagonal.
enum class Part { full, lower };

// A factor: one for all members, or one for each.
class Coefficients {
 public:
  Coefficients(double all) : all_(all) {}
  Coefficients(std::vector<double> each) : each_(std::move(each)) {}
  double operator[](int member) const {
    return each_.empty() ? all_ : each_[static_cast<std::size_t>(member)];
  }
  bool uniform() const { return each_.empty(); }
  const std::vector<double>& each() const { return each_; }  // empty if uniform

 private:
  double all_ = 0;
  std::vector<double> each_;
};

// Of one column. Norms, traces, bounds and what is dead or not finite follow on the host, by the
// same code for every backend (norms.hpp).
struct ColumnSums {
  double absolute = 0;     // sum of |x|; NaN exactly if an entry is NaN
  double off_squares = 0;  // sum of x^2 off the main diagonal; may overflow
  double diagonal = 0;     // the entry on the main diagonal; 0 where that has ended
  double largest = 0;      // largest |x|, NaN left out
};

struct Symmetry {
  double largest = 0;  // largest |x|
  double apart = 0;    // largest |x - y| of entries across the diagonal
};

// A unit of work for `groups`. Only items of equal keys are stacked, so the key holds every shape.
struct WorkItem {
  std::array<int, 3> key{};
  double cost = 0;           // relative
  std::size_t elements = 0;  // of doubles that the task holds for the item, about
};

using Task = std::function<void(std::size_t)>;
using GroupTask = std::function<void(const std::vector<std::size_t>& items)>;

// The contract. An owning B::Matrix is a stack: movable, default-constructed empty, with rows(),
// cols(), count(), empty(), and view(), contiguous: column after column, member after member.
template <class B>
concept Backend =
    requires(B b, typename B::Matrix matrix, const typename B::Matrix& constant, View c,
             ConstView a, double* to_host, const double* from_host, typename B::Info info,
             const Coefficients& alpha, const std::vector<int>& indices) {
      { constant.view() } -> std::same_as<ConstView>;
      { matrix.view() } -> std::same_as<View>;

      // Memory. `matrix(rows, cols, count = 1)` is uninitialised. `stack` copies equal-shaped
      // matrices (views of one member each) side by side. `split` makes a stack's members matrices
      // of their own.
      { b.matrix(1, 1) } -> std::same_as<typename B::Matrix>;
      { b.matrix(1, 1, 1) } -> std::same_as<typename B::Matrix>;
      { b.stack(std::vector<ConstView>{}) } -> std::same_as<typename B::Matrix>;
      { b.split(std::move(matrix)) } -> std::same_as<std::vector<typename B::Matrix>>;
      // Host memory is contiguous, as an owning matrix is, and may be reused when the call returns.
      b.upload(from_host, c);
      b.download(a, to_host);

      // c = alpha op(a) op(b) + beta c; with beta = 0, c is not read. op transposes if told to.
      b.multiply(false, a, false, a, c);
      b.multiply(false, a, false, a, c, 1.0, 0.0);
      // Lower triangle of c = alpha a^T a, and of c = c - a a^T. The strict upper one is undefined.
      b.gram_lower(1.0, a, c);
      b.downdate_lower(a, c);

      // Cholesky's diagonal blocks: a of order <= B::block, in its lower triangle, becomes the
      // lower factor, `inverse` that factor's inverse, both with zeros above. Where a member is not
      // positive definite, Info keeps at + the order of the leading minor, of the member's first
      // failure; what is left of it is undefined. A fresh Info is 0 for each member. `failed_all`
      // may answer true when every member has failed, to end a recursion early, and false always.
      // `read` returns the values.
      { B::block } -> std::convertible_to<int>;
      { b.info(1) } -> std::same_as<typename B::Info>;
      b.factor_block(c, c, 0, info);
      { b.failed_all(info) } -> std::same_as<bool>;
      { b.read(info) } -> std::same_as<std::vector<int>>;

      // c = alpha a + beta b + diagonal I on the part; I also of a rectangle. `diagonal` defaults
      // to 0 and the part to Part::full. c may be a or b themselves. A coefficient of 0 leaves its
      // operand out, whatever it holds; alpha = 1 alone copies to the bit.
      b.combine(c, alpha, a, alpha, a);
      b.combine(c, alpha, a, alpha, a, alpha, Part::lower);
      b.combine(c, alpha, a);
      b.combine(c, alpha, a, alpha, Part::lower);
      b.combine(c, alpha);
      b.combine(c, alpha, Part::lower);
      b.transpose(a, c);
      b.mirror_lower(c);                          // copies the lower triangle over the upper one
      b.reverse_columns(a, c);                    // c's first column is a's last
      b.scale_columns(c, std::vector<double>{});  // count * cols factors, member after member
      // Flips columns so that the entry of largest magnitude, the first of equals, is positive.
      b.fix_signs(c);
      // Of one member: c(i, j) = a(rows[i], cols[j]), and c(rows[i], cols[j]) = a(i, j), which
      // leaves the rest of c. Indices ascend.
      b.gather(a, indices, indices, c);
      b.scatter(a, indices, indices, c);

      // Reductions, for each member in turn. Of Part::lower: of the symmetric matrix whose lower
      // triangle that is, every column in full.
      { b.column_sums(a) } -> std::same_as<std::vector<ColumnSums>>;  // Part::full
      { b.column_sums(a, Part::lower) } -> std::same_as<std::vector<ColumnSums>>;
      { b.inner(a, a) } -> std::same_as<std::vector<double>>;  // tr(a^T b)
      // Replaces a square matrix by its symmetric part (x/2 + y/2, so that nothing overflows);
      // returns the sizes of what it was, of use where all entries are finite.
      { b.symmetrise(c) } -> std::same_as<std::vector<Symmetry>>;

      // Eigenvalues ascending in w (n, 1), with vectors in the columns of the first argument, from
      // its lower triangle; without vectors that is destroyed. Returns LAPACK's info of each
      // member.
      { b.eigh(true, c, c) } -> std::same_as<std::vector<int>>;
      // The largest order for vectors.
      { B::most_eigenvectors } -> std::convertible_to<int>;
      // The same of the k largest: w (k, 1), z (n, k), both ascending; destroys the first.
      { b.eigh_top(c, 1, c, c) } -> std::same_as<std::vector<int>>;

      // Runs the task on groups that together hold every item once, each of equal keys. The CPU
      // makes every item a group and runs them in parallel, costly ones first; a device runs groups
      // as large as its memory allows one after the other. The first exception ends it and is
      // rethrown.
      b.groups(std::vector<WorkItem>{}, GroupTask{});
      // Runs task(i) for i below the count, threads() at once; a device's threads() is 1. Inside
      // another task they run one after the other.
      b.each(std::size_t{}, Task{});
      { b.threads() } -> std::same_as<int>;
      // Columns of a product worth a task of their own; a device has no need to cut products up.
      { B::panel } -> std::convertible_to<int>;
      b.poll();  // throws Interrupted if the caller wants to stop
    };

}  // namespace ccamerge
