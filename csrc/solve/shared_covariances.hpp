// The covariances of a batch of problems, each checked and factored once however many share it.
#pragma once

#include <cmath>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "solve/backend.hpp"
#include "solve/covariance.hpp"
#include "solve/operands.hpp"
#include "solve/triangular.hpp"

namespace ccamerge {

// Factors of one order as a stack, copied only where a problem's neighbours are not also its own.
template <Backend B>
class SharedFactors {
 public:
  SharedFactors(B& b, const std::vector<Triangular<B>>& members, std::vector<double> conditions,
                std::vector<double> deviations)
      : b_(&b),
        l_(b, views_of(members, &Triangular<B>::lower)),
        inverse_(b, views_of(members, &Triangular<B>::inverse)),
        conditions_(std::move(conditions)),
        deviations_(std::move(deviations)) {}

  Triangular<B> factor() const { return {*b_, l_.view(), inverse_.view()}; }
  const std::vector<double>& conditions() const { return conditions_; }
  // Of all features, one member after the other.
  const std::vector<double>& deviations() const { return deviations_; }

 private:
  static std::vector<ConstView> views_of(const std::vector<Triangular<B>>& members,
                                         ConstView (Triangular<B>::*get)() const) {
    std::vector<ConstView> out;
    for (const Triangular<B>& member : members) out.push_back((member.*get)());
    return out;
  }

  B* b_;
  Gathered<B> l_, inverse_;
  std::vector<double> conditions_, deviations_;
};

template <Backend B>
class SharedCovariances {
 public:
  struct Which {
    std::size_t covariance, regulariser;
  };

  // Index of a covariance; of an earlier one with the same address.
  std::size_t add(ConstView s, const std::string& name) {
    const auto [it, fresh] = index_.try_emplace({s.data, s.rows}, entries_.size());
    if (fresh) entries_.push_back({s, name, {}, {}});
    return it->second;
  }

  // Checks all and factors each with every regulariser; those of one order in lock-step.
  void factor(B& b, const std::vector<Regulariser>& regularisers);

  SharedFactors<B> gather(B& b, const std::vector<Which>& members) const {
    std::vector<Triangular<B>> factors;
    std::vector<double> conditions, deviations;
    for (const Which which : members) {
      const auto& [stack, member] = factors_[which.covariance * values_ + which.regulariser];
      factors.push_back(stack->cholesky.factor().member(static_cast<int>(member)));
      conditions.push_back(stack->conditions[member]);
      const std::vector<double>& own = stack->deviations[member];
      deviations.insert(deviations.end(), own.begin(), own.end());
    }
    return {b, factors, std::move(conditions), std::move(deviations)};
  }

  // Doubles of one factor.
  static std::size_t elements(int order) {
    return static_cast<std::size_t>(order) * static_cast<std::size_t>(order + B::block);
  }

 private:
  struct Entry {
    ConstView s;
    std::string name;
    typename B::Matrix checked;
    CovarianceSizes sizes;
  };
  struct Factor {
    std::shared_ptr<const FactoredCovariances<B>> stack;
    std::size_t member = 0;
  };

  static WorkItem item(ConstView s) {
    return {{s.rows, 0, 0}, std::pow(s.rows, 3), 3 * elements(s.rows)};
  }
  void check(B& b);

  std::map<std::pair<const double*, int>, std::size_t> index_;
  std::vector<Entry> entries_;
  std::vector<Factor> factors_;  // covariance-major
  std::size_t values_ = 0;
};

template <Backend B>
void SharedCovariances<B>::check(B& b) {
  std::vector<WorkItem> items;
  for (const Entry& entry : entries_) items.push_back(item(entry.s));
  b.groups(items, [&](const std::vector<std::size_t>& group) {
    std::vector<ConstView> members;
    std::vector<std::string> names;
    for (const std::size_t i : group) {
      members.push_back(entries_[i].s);
      names.push_back(entries_[i].name);
    }
    Covariances<B> found = checked_covariances(b, members, names);
    std::vector<typename B::Matrix> checked = b.split(std::move(found.s));
    for (std::size_t k = 0; k < group.size(); ++k) {
      entries_[group[k]].checked = std::move(checked[k]);
      entries_[group[k]].sizes = found.sizes[k];
    }
  });
}

template <Backend B>
void SharedCovariances<B>::factor(B& b, const std::vector<Regulariser>& regularisers) {
  check(b);
  values_ = regularisers.size();
  factors_.resize(entries_.size() * values_);
  std::vector<WorkItem> items;
  for (std::size_t i = 0; i < factors_.size(); ++i) items.push_back(item(entries_[i / values_].s));
  b.groups(items, [&](const std::vector<std::size_t>& group) {
    std::vector<CovarianceCase> cases;
    for (const std::size_t i : group) {
      const Entry& entry = entries_[i / values_];
      cases.push_back({entry.checked.view(), entry.sizes, regularisers[i % values_], entry.name});
    }
    const auto stack = std::make_shared<const FactoredCovariances<B>>(factor_covariances(b, cases));
    for (std::size_t k = 0; k < group.size(); ++k) factors_[group[k]] = {stack, k};
  });
  for (Entry& entry : entries_) entry.checked = {};  // as large as all that was given
}

}  // namespace ccamerge
