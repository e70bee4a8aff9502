// Moments on a device against plain float64 sums, over layouts, dtypes, masks and both routes.
#include <algorithm>
#include <cmath>

#include "cuda/half.hpp"
#include "cuda/moments/moments.hpp"
#include "cuda_testing.hpp"

using namespace ccamerge;
using namespace ccamerge::testing;

namespace {

enum class Layout { rows, first, last };  // (n, C), (B, C, H), (B, H, C) seen as (B, C, H)

// One model's features on the device, and their values (samples, features) on the host.
struct Model {
  cuda::Buffer memory;
  FeatureView view;
  std::vector<double> values;
};

template <class T>
T narrowed(double x) {
  if constexpr (std::is_same_v<T, Half>) return cuda::to_half(static_cast<float>(x));
  if constexpr (std::is_same_v<T, Bfloat>) return cuda::to_bfloat(static_cast<float>(x));
  if constexpr (std::is_floating_point_v<T>) return static_cast<T>(x);
}

template <class T>
double value_of(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return cuda::to_float(x);
  }
}

template <class T>
Model make(DType dtype, Layout layout, int batch, int height, int features, double mean) {
  Model model;
  const int samples = batch * height;
  std::vector<T> elements(static_cast<std::size_t>(samples) * static_cast<std::size_t>(features));
  std::normal_distribution<double> normal;
  const std::int64_t stride_b = static_cast<std::int64_t>(height) * features;
  const std::int64_t stride_h = layout == Layout::first ? 1 : features;
  const std::int64_t stride_c = layout == Layout::first ? height : 1;
  for (int s = 0; s < samples; ++s) {
    for (int f = 0; f < features; ++f) {
      // The first feature is constant.
      const T x = narrowed<T>(f == 0 ? mean + 0.3 : mean + normal(random_numbers));
      elements[static_cast<std::size_t>(s / height * stride_b + s % height * stride_h +
                                        f * stride_c)] = x;
      model.values.push_back(value_of(x));
    }
  }
  model.memory = on_device(elements);
  model.view.data = model.memory.data;
  model.view.dtype = dtype;
  model.view.feature_shape = {features};
  model.view.feature_strides = {stride_c};
  model.view.sample_shape = {batch, height};
  model.view.sample_strides = {stride_b, stride_h};
  return model;
}

struct Expected {
  double count = 0;
  std::vector<std::vector<double>> means;
  std::vector<std::vector<double>> samples;  // (count, d) of each model
};

void take(Expected& expected, const std::vector<Model>& models,
          const std::vector<std::uint8_t>& mask) {
  expected.samples.resize(models.size());
  const std::size_t samples = mask.size();
  for (std::size_t m = 0; m < models.size(); ++m) {
    const std::size_t d = models[m].values.size() / samples;
    for (std::size_t s = 0; s < samples; ++s) {
      if (!mask[s]) continue;
      const auto first = models[m].values.begin() + static_cast<std::ptrdiff_t>(s * d);
      expected.samples[m].insert(expected.samples[m].end(), first,
                                 first + static_cast<std::ptrdiff_t>(d));
    }
  }
  expected.count += static_cast<double>(std::count(mask.begin(), mask.end(), 1));
}

// The largest error of a covariance beside the features' root mean squares about the shift that the
// route uses: the mean, but for numbers of 16 bits zero, unless they are all far from it.
double error_of(cuda::Moments& moments, const Expected& expected, bool about_zero) {
  const auto& dims = moments.table().dims();
  std::vector<std::vector<double>> centred = expected.samples, scale;
  const auto n = static_cast<std::size_t>(expected.count);
  for (std::size_t m = 0; m < dims.size(); ++m) {
    const auto d = static_cast<std::size_t>(dims[m]);
    std::vector<double> mean(d, 0.0), square(d, 0.0);
    for (std::size_t e = 0; e < n * d; ++e) mean[e % d] += centred[m][e];
    for (double& x : mean) x /= expected.count;
    for (std::size_t e = 0; e < n * d; ++e) {
      const double x = centred[m][e];
      centred[m][e] -= mean[e % d];
      square[e % d] += about_zero ? x * x : centred[m][e] * centred[m][e];
    }
    for (double& x : square) x = std::sqrt(x / expected.count);
    scale.push_back(square);
  }
  double worst = 0;
  for (const auto& [row, column] : moments.table().blocks()) {
    const auto r = static_cast<std::size_t>(row), c = static_cast<std::size_t>(column);
    const auto p = static_cast<std::size_t>(dims[r]), q = static_cast<std::size_t>(dims[c]);
    std::vector<double> found(p * q);
    moments.covariance(row, column, found.data(), allocate, nullptr);
    for (std::size_t i = 0; i < p; ++i) {
      for (std::size_t j = 0; j < q; ++j) {
        double sum = 0;
        for (std::size_t s = 0; s < n; ++s) sum += centred[r][s * p + i] * centred[c][s * q + j];
        const double error = std::abs(found[i * q + j] - sum / expected.count);
        // A constant feature has exactly no covariance beyond the batches' means' rounding.
        const double size = std::max(scale[r][i] * scale[c][j], 1e-12);
        worst = std::max(worst, error / size);
      }
    }
  }
  return worst;
}

template <class T>
void check_route(DType dtype, const std::vector<int>& dims, Layout layout, bool masked,
                 const cuda::Limits& limits, double mean = 0.5, bool sparse = false,
                 int multiple = 1, int times = 1) {
  const Pairs pairs = static_cast<Pairs>(pick(0, 2));
  const std::vector<std::int64_t> sizes(dims.begin(), dims.end());
  cuda::Moments moments(BlockTable(sizes, pairs, pick(0, static_cast<int>(dims.size()) - 1)),
                        allocate, 0, nullptr);
  Expected expected;
  for (int update = 0; update < 2; ++update) {
    const int batch = pick(1, 9) * times, height = pick(1, 60 / multiple) * multiple;
    std::vector<Model> models;
    cuda::Update given{&moments, {}, nullptr};
    for (const int d : dims) {
      models.push_back(make<T>(dtype, layout, batch, height, d, mean));
      given.features.push_back(models.back().view);
    }
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(batch * height), 1);
    if (masked) {
      const int rare = sparse ? 100 : 1;  // what shifts are chosen from may miss them all
      for (auto& selected : mask) selected = static_cast<std::uint8_t>(pick(0, rare) == 0);
      mask[static_cast<std::size_t>(pick(0, batch * height - 1))] = 1;
    }
    const cuda::Buffer device_mask = on_device(mask);
    if (masked) given.mask = device_mask.as<std::uint8_t>();
    cuda::update({given}, "", allocate, nullptr, limits);
    take(expected, models, mask);
  }
  EXPECT(static_cast<double>(moments.count(nullptr)) == expected.count);
  const bool narrow = dtype == DType::float16 || dtype == DType::bfloat16;
  // Sums of up to 540 products, each rounded to float32, by matrix units towards zero; or to
  // float64.
  const double allowed = dtype == DType::float64 ? 1e-13 : narrow ? 8e-6 : 4e-6;
  // Without a shift, errors are relative to the mean square about zero.
  const double error = error_of(moments, expected, (narrow || sparse) && std::abs(mean) < 30);
  if (!(error <= allowed)) {
    std::fprintf(stderr, "error %.3g, dtype %d, layout %d, masked %d, mean %g\n", error,
                 static_cast<int>(dtype), static_cast<int>(layout), masked, mean);
  }
  EXPECT(error <= allowed);
}

void check_all() {
  const std::vector<int> few{pick(1, 40), pick(1, 40), pick(1, 40)},
      many{pick(120, 170), pick(150, 200)};
  const cuda::Limits roomy, tight{1, 1};
  for (const Layout layout : {Layout::rows, Layout::first, Layout::last}) {
    for (const bool masked : {false, true}) {
      check_route<float>(DType::float32, few, layout, masked, roomy);
      check_route<Half>(DType::float16, few, layout, masked, roomy);
      check_route<Bfloat>(DType::bfloat16, few, layout, masked, roomy);
      check_route<double>(DType::float64, few, layout, masked, roomy);
      check_route<float>(DType::float32, many, layout, masked, masked ? tight : roomy);
      check_route<Half>(DType::float16, many, layout, masked, masked ? roomy : tight);
      check_route<Bfloat>(DType::bfloat16, many, layout, masked, roomy);
    }
  }
  check_route<double>(DType::float64, many, Layout::first, true, tight);
  check_route<float>(DType::float32, few, Layout::first, false, roomy, 1e5);
  for (const Layout layout : {Layout::rows, Layout::first, Layout::last}) {
    check_route<float>(DType::float32, many, layout, layout != Layout::last, roomy, 1e5);
  }
  for (int i = 0; i < 8; ++i) {
    check_route<float>(DType::float32, few, Layout::first, true, roomy, 0.5, true);
    check_route<float>(DType::float32, many, Layout::first, true, roomy, 0.5, true);
    check_route<Half>(DType::float16, few, Layout::rows, true, roomy, 0.5, true);
    check_route<Bfloat>(DType::bfloat16, many, Layout::rows, true, roomy, 0.5, true);
  }
  // Where elements are read as vectors, and products are batched over models or come in bands.
  const std::vector<std::vector<int>> aligned{{16, 16},      {64, 64, 64, 64},
                                              {128, 128},    {272, 272, 272},
                                              {600, 8, 520}, {24, 16, 8, 8, 8, 8, 8, 8, 8}};
  for (const auto& dims : aligned) {
    for (const Layout layout : {Layout::rows, Layout::first, Layout::last}) {
      const bool masked = pick(0, 3) == 0;
      check_route<float>(DType::float32, dims, layout, masked, roomy, 0.5, false, 8);
      check_route<Bfloat>(DType::bfloat16, dims, layout, masked, roomy, 0.5, false, 8);
    }
    check_route<double>(DType::float64, dims, Layout::first, false, roomy, 0.5, false, 8);
    check_route<Half>(DType::float16, dims, Layout::last, false, tight, 0.5, false, 8);
  }
  for (const double mean : {40.0, -40.0}) {
    check_route<Half>(DType::float16, few, Layout::first, true, roomy, mean);
    check_route<Bfloat>(DType::bfloat16, many, Layout::last, false, roomy, mean);
  }
}

// So many samples that blocks of threads go round more than once, and sums have many parts.
void check_long() {
  const cuda::Limits roomy;
  for (const Layout layout : {Layout::rows, Layout::first}) {
    check_route<float>(DType::float32, {130, 136}, layout, false, roomy, 0.5, false, 8, 12);
  }
  check_route<float>(DType::float32, {40, 30, 20}, Layout::first, false, roomy, 0.5, false, 8, 40);
}

// Features of which a look at some samples tells nothing: constant but for a few.
void check_rare() {
  constexpr int features = 8, samples = 4000;
  constexpr double usual = 64, rare = 1.3671875;
  std::vector<Bfloat> elements(samples * features, cuda::to_bfloat(static_cast<float>(usual)));
  double count = 0;
  for (int s = pick(0, 999); s < samples; s += 1000) {
    for (int f = 0; f < features; ++f) {
      elements[static_cast<std::size_t>(s * features + f)] =
          cuda::to_bfloat(static_cast<float>(rare));
    }
    ++count;
  }
  const cuda::Buffer memory = on_device(elements);
  FeatureView view;
  view.data = memory.data;
  view.dtype = DType::bfloat16;
  view.feature_shape = {features};
  view.feature_strides = {1};
  view.sample_shape = {samples};
  view.sample_strides = {features};
  cuda::Moments moments(BlockTable({features}, Pairs::none, 0), allocate, 0, nullptr);
  cuda::update({{&moments, {view}, nullptr}}, "", allocate, nullptr);
  std::vector<double> found(features * features);
  moments.covariance(0, 0, found.data(), allocate, nullptr);
  const double share = count / samples, step = usual - rare;
  for (const double x : found) EXPECT(std::abs(x / (share * (1 - share) * step * step) - 1) < 1e-5);
}

// A value that is not finite stops that update and later ones, until it has been reported.
void check_bad_values() {
  for (const int features : {7, 300}) {
    cuda::Moments moments(BlockTable({features, features}, Pairs::all, 0), allocate, 0, nullptr);
    std::vector<double> before(static_cast<std::size_t>(features * features)), after = before;
    for (int update = 0; update < 3; ++update) {
      std::vector<Model> models;
      cuda::Update given{&moments, {}, nullptr};
      for (int m = 0; m < 2; ++m) {
        models.push_back(make<float>(DType::float32, Layout::rows, 11, 3, features, 0));
        given.features.push_back(models.back().view);
      }
      if (update == 1) {
        const float bad = std::nanf("");
        cuda::to_device(models[1].memory.as<float>() + 5 * features + 2, &bad, sizeof(bad),
                        nullptr);
      }
      cuda::update({given}, "batch " + std::to_string(update), allocate, nullptr);
      if (update == 0) moments.covariance(0, 1, before.data(), allocate, nullptr);
    }
    std::string message;
    try {
      check_all({&moments}, allocate, nullptr);
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    EXPECT(message.rfind("batch 1: features of model 1", 0) == 0);
    EXPECT(message.find("sample 5, feature 2") != std::string::npos);
    EXPECT(moments.count(nullptr) == 33);
    moments.covariance(0, 1, after.data(), allocate, nullptr);
    EXPECT(before == after);
  }
}

void check_merge_and_subset() {
  cuda::Moments whole(BlockTable({5, 9, 4}, Pairs::all, 0), allocate, 0, nullptr),
      first(whole.table(), allocate, 0, nullptr), second(whole.table(), allocate, 0, nullptr);
  for (int update = 0; update < 4; ++update) {
    std::vector<Model> models;
    cuda::Update given{&whole, {}, nullptr};
    for (const int d : {5, 9, 4}) {
      models.push_back(make<double>(DType::float64, Layout::first, pick(1, 5), 7, d, update));
      models.back().view.sample_shape[0] = 1;  // as many samples in each model
      given.features.push_back(models.back().view);
    }
    cuda::update({given}, "", allocate, nullptr);
    given.moments = update % 2 ? &second : &first;
    cuda::update({given}, "", allocate, nullptr);
  }
  first.merge(second, allocate, nullptr);
  EXPECT(first.count(nullptr) == whole.count(nullptr));
  std::vector<double> a(5 * 9), b(5 * 9), c(9 * 5);
  whole.covariance(0, 1, a.data(), allocate, nullptr);
  first.covariance(0, 1, b.data(), allocate, nullptr);
  first.subset({1, 0}, Pairs::all, 0, allocate, nullptr)
      ->covariance(0, 1, c.data(), allocate, nullptr);
  for (int i = 0; i < 5; ++i) {
    for (int j = 0; j < 9; ++j) {
      const auto at = static_cast<std::size_t>(i * 9 + j),
                 turned = static_cast<std::size_t>(j * 5 + i);
      EXPECT(std::abs(a[at] - b[at]) < 1e-12);
      EXPECT(b[at] == c[turned]);
    }
  }
  const std::vector<double> mean = whole.mean(2, nullptr), merged = first.mean(2, nullptr);
  for (std::size_t f = 0; f < mean.size(); ++f) EXPECT(std::abs(mean[f] - merged[f]) < 1e-13);
}

}  // namespace

int main(int argc, char** argv) {
  start(argc, argv);
  check_all();
  check_long();
  check_rare();
  check_bad_values();
  check_merge_and_subset();
  return result();
}
