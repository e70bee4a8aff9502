// The moments without Python, for the sanitizers: every kernel, layout and dtype against a plain
// float64 sum, many chunks, bad input, and several threads at once.
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/parallel.hpp"
#include "cpu/moments/kernels.hpp"
#include "cpu/moments/moments.hpp"
#include "testing.hpp"

using namespace ccamerge;

namespace {

// A small generator of its own: the same numbers on every platform.
struct Random {
  std::uint64_t state = 1;
  double operator()() {  // uniform on [-1, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 11) * 0x1p-52 - 1.0;
  }
};

void encode(double value, DType dtype, std::byte* at) {
  const auto single = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  if (dtype == DType::float64) std::memcpy(at, &value, sizeof value);
  if (dtype == DType::float32) std::memcpy(at, &single, sizeof single);
  if (dtype == DType::bfloat16) {
    const auto top = static_cast<std::uint16_t>(bits >> 16);
    std::memcpy(at, &top, sizeof top);
  }
  if (dtype == DType::float16) {  // truncated; the values here need no subnormals
    const std::uint32_t exponent = (bits >> 23 & 0xff) - 112;
    const auto half =
        static_cast<std::uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
    std::memcpy(at, &half, sizeof half);
  }
}

// Values that all dtypes hold exactly: multiples of 1/16 in [-1, 1] but 0, plus 3.
double coarse(Random& random) { return 3.0 + std::ceil(random() * 8.0) / 16.0; }

struct Features {
  std::vector<std::byte> memory;
  std::vector<double> values;  // (samples, features)
  FeatureView view;
};

// (batch, inner) sample axes; features either between them (images) or last (channels last). The
// memory has exactly the elements of the view, so that reading past either end is caught.
Features make(DType dtype, std::int64_t batch, std::int64_t inner, std::int64_t d, bool last,
              Random& random) {
  Features f;
  f.memory.resize(static_cast<std::size_t>(batch * inner * d) * item_size(dtype));
  f.view.dtype = dtype;
  f.view.feature_shape = {d};
  f.view.feature_strides = {last ? 1 : inner};
  f.view.sample_shape = {batch, inner};
  f.view.sample_strides = {inner * d, last ? d : 1};
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t k = 0; k < inner; ++k) {
      for (std::int64_t i = 0; i < d; ++i) {
        const double value = coarse(random);
        const std::int64_t at = b * inner * d + (last ? k * d + i : i * inner + k);
        encode(value, dtype, f.memory.data() + static_cast<std::size_t>(at) * item_size(dtype));
        f.values.push_back(value);
      }
    }
  }
  f.view.data = f.memory.data();
  return f;
}

// What a window of width taps reads along a row, stride apart: features overlap between samples.
// Channels between the axes or last, as above; features counted with the channels first or last.
Features windows(DType dtype, std::int64_t batch, std::int64_t length, std::int64_t channels,
                 std::int64_t width, std::int64_t stride, bool last, bool channels_first,
                 Random& random) {
  Features f = make(dtype, batch, length, channels, last, random);
  const std::int64_t positions = (length - width) / stride + 1, step = last ? channels : 1;
  std::vector<double> values;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t p = 0; p < positions; ++p) {
      for (std::int64_t i = 0; i < channels * width; ++i) {
        const std::int64_t c = channels_first ? i / width : i % channels;
        const std::int64_t t = channels_first ? i % width : i / channels;
        values.push_back(f.values[((b * length + p * stride + t) * channels) + c]);
      }
    }
  }
  f.values = std::move(values);
  f.view.sample_shape = {batch, positions};
  f.view.sample_strides = {length * channels, stride * step};
  f.view.feature_shape = {channels, width};
  f.view.feature_strides = {last ? 1 : length, step};
  if (!channels_first) {
    std::swap(f.view.feature_shape[0], f.view.feature_shape[1]);
    std::swap(f.view.feature_strides[0], f.view.feature_strides[1]);
  }
  return f;
}

double covariance(const Features& a, std::int64_t i, const Features& b, std::int64_t j) {
  const std::int64_t n = a.view.samples();
  double sum_a = 0, sum_b = 0, product = 0;
  for (std::int64_t k = 0; k < n; ++k) {
    const double x = a.values[k * a.view.features() + i] - 3.0;
    const double y = b.values[k * b.view.features() + j] - 3.0;
    sum_a += x;
    sum_b += y;
    product += x * y;
  }
  return product / n - sum_a / n * (sum_b / n);
}

void check_all(const Moments& moments, const std::vector<Features>& xs) {
  EXPECT(moments.count() == xs[0].view.samples());
  for (int i = 0; i < moments.table().models(); ++i) {
    for (int j = 0; j < moments.table().models(); ++j) {
      const std::int64_t rows = moments.table().dims()[i], columns = moments.table().dims()[j];
      std::vector<double> got(static_cast<std::size_t>(rows * columns));
      moments.covariance(i, j, got.data());
      double worst = 0;
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < columns; ++c) {
          const double want = covariance(xs[i], r, xs[j], c);
          worst = std::max(worst, std::abs(got[r * columns + c] - want));
        }
      }
      EXPECT(worst < 1e-6);  // variances are about 0.1
    }
  }
}

void layouts_and_dtypes() {
  std::size_t count = 0;
  const char* const* names = kernel_names(&count);
  for (std::size_t kernel = 0; kernel < count; ++kernel) {
    EXPECT(select_kernels(names[kernel]));
    for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32, DType::float64}) {
      for (const bool last : {false, true}) {
        Random random;
        std::vector<Features> xs;
        for (const std::int64_t d : {1, 19, 133}) xs.push_back(make(dtype, 6, 49, d, last, random));
        Moments moments({1, 19, 133}, Pairs::all, 0);
        Update one{&moments, {xs[0].view, xs[1].view, xs[2].view}};
        update({one});
        check_all(moments, xs);
      }
    }
  }
  EXPECT(!select_kernels("none such"));
  select_kernels(names[0]);
}

void several_feature_axes() {
  std::size_t count = 0;
  const char* const* names = kernel_names(&count);
  for (std::size_t kernel = 0; kernel < count; ++kernel) {
    EXPECT(select_kernels(names[kernel]));
    for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32, DType::float64}) {
      for (const int form : {0, 1, 2, 3, 4, 5, 6, 7}) {
        Random random;
        const bool last = form & 1, first = form & 2;
        const std::int64_t stride = form & 4 ? 2 : 1;
        std::vector<Features> xs;  // moved, not copied: the views point into the memory
        for (const std::int64_t channels : {7, 16}) {
          xs.push_back(windows(dtype, 5, 41, channels, 3, stride, last, first, random));
        }
        Moments moments({21, 48}, Pairs::all, 0);
        update({{&moments, {xs[0].view, xs[1].view}}});
        check_all(moments, xs);
      }
    }
  }
  select_kernels(names[0]);
}

void masks_and_merges() {
  Random random;
  std::vector<Features> xs;
  for (const std::int64_t d : {5, 17}) xs.push_back(make(DType::float32, 30, 31, d, false, random));
  std::vector<std::uint8_t> odd, even;
  for (int k = 0; k < 30 * 31; ++k) {
    odd.push_back(random() > 0);
    even.push_back(!odd.back());
  }
  Moments first({5, 17}, Pairs::all, 0), second({5, 17}, Pairs::all, 0);
  update({{&first, {xs[0].view, xs[1].view}, odd.data()}});
  update({{&second, {xs[0].view, xs[1].view}, even.data()}});
  first.merge(second);
  check_all(first, xs);
}

void bad_input_changes_nothing() {
  Random random;
  for (const std::int64_t d : {8, 300}) {  // totals copied; input looked through first
    Features x = make(DType::float32, 4000, 16, d, true, random);
    Moments moments({d}, Pairs::none, 0);
    update({{&moments, {x.view}}});
    std::vector<double> before(static_cast<std::size_t>(d * d)), after(before);
    moments.covariance(0, 0, before.data());
    const float nan = std::nanf("");
    std::memcpy(x.memory.data() + x.memory.size() - sizeof nan, &nan, sizeof nan);
    bool thrown = false;
    try {
      update({{&moments, {x.view}}});
    } catch (const std::invalid_argument& error) {
      thrown = std::string(error.what()).find("sample 63999") != std::string::npos;
    }
    EXPECT(thrown);
    EXPECT(moments.count() == 64000);
    moments.covariance(0, 0, after.data());
    EXPECT(before == after);
  }
}

void threads_at_once() {
  Random random;
  const Features x = make(DType::float32, 40, 64, 40, false, random);
  Moments shared({40}, Pairs::none, 0), apart({40}, Pairs::none, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5; ++i) {
        update({{&shared, {x.view}}});
        if (t == 0) update({{&apart, {x.view}}});
        if (t == 1) shared.merge(apart);
        if (t == 2) apart.merge(shared);
        shared.count();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT(shared.count() >= 20 * x.view.samples());
  std::vector<double> got(40 * 40);
  shared.covariance(0, 0, got.data());
  EXPECT(std::abs(got[41] - covariance(x, 1, x, 1)) < 1e-6);
}

}  // namespace

int main() {
  set_num_threads(3);
  layouts_and_dtypes();
  several_feature_axes();
  masks_and_merges();
  bad_input_changes_nothing();
  threads_at_once();
  return testing::result();
}
