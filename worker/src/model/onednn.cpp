// A product that libtorch can differentiate, by oneDNN instead of MKL: see onednn.rs.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstring>
#include <exception>
#include <optional>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// a b^T (+ bias), [m, k] and [n, k] to [m, n].
Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias = std::nullopt) {
  using Scalars = c10::List<std::optional<at::Scalar>>;
  using Text = std::optional<c10::string_view>;
  static const auto linear =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, c10::string_view, Scalars, Text)>();
  return linear.call(a, b, bias, "none", Scalars(), std::nullopt);
}

// Rows of zeros behind those of x, up to one of eight sizes between two powers of two. oneDNN compiles code for each
// size, and keeps it and its memory: texts of every length would take gigabytes.
Tensor padded(const Tensor& x_mi) {
  const int64_t rows = x_mi.size(0);
  int64_t step = 1;
  while (step * 16 < rows) {
    step *= 2;
  }
  const int64_t missing = (step - rows % step) % step;
  return missing == 0 ? x_mi : at::constant_pad_nd(x_mi, {0, 0, 0, missing});
}

// x W^T (+ bias) over the last dimension of x, which has `sizes`; its rows are those of `x_mi`, which is padded.
Tensor linear(
    const Tensor& x_mi, const Tensor& weight_oi, at::IntArrayRef sizes, const std::optional<Tensor>& bias = std::nullopt) {
  // What is returned is no view of anything that the graph knows.
  const at::AutoDispatchBelowADInplaceOrView below;
  auto wanted = sizes.vec();
  wanted.back() = weight_oi.size(0);
  const int64_t rows = c10::multiply_integers(sizes.slice(0, sizes.size() - 1));
  return product(x_mi, weight_oi, bias).narrow(0, 0, rows).view(wanted);
}

// The rows of x, padded; oneDNN takes no rows that lie on each other, as those of an expanded tensor do.
Tensor padded_rows(const Tensor& x) {
  const Tensor x_mi = x.reshape({-1, x.size(-1)});
  return padded(x_mi.is_non_overlapping_and_dense() ? x_mi : x_mi.contiguous());
}

struct Linear : torch::autograd::Function<Linear> {
  // Of x and weight stays what the gradient of the other needs.
  static Tensor forward(
      AutogradContext* context, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    context->save_for_backward(
        {weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    context->saved_data["sizes"] = x.sizes();
    context->saved_data["is_biased"] = bias.has_value();
    return linear(padded_rows(x), weight, x.sizes(), bias);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto sizes = context->saved_data["sizes"].toIntVector();
    const Tensor dy_mo = padded_rows(gradients[0]);
    Tensor dx, dw, db;
    if (saved[1].defined()) {
      dx = linear(dy_mo, saved[1].t(), sizes);
    }
    if (saved[0].defined()) {
      const Tensor dy_om = dy_mo.t(), x_im = padded_rows(saved[0]).t();
      // The left factor is copied, so let it be the smaller. In bf16 libtorch's own product is oneDNN's too, and copies
      // none.
      dw = dy_om.scalar_type() != at::kFloat  ? dy_om.mm(x_im.t())
          : dy_om.size(0) <= x_im.size(0) ? product(dy_om, x_im)
                                          : product(x_im, dy_om).t();
    }
    if (context->saved_data["is_biased"].toBool() && context->needs_input_grad(2)) {
      db = dy_mo.sum(0);
    }
    return {dx, dw, db};
  }
};

}  // namespace

// A new tensor; null where libtorch refuses, whose words are then in `reason`, cut to its `length`.
extern "C" Tensor* mks2_linear(
    const Tensor* x, const Tensor* weight, const Tensor* bias, char* reason, size_t length) {
  try {
    return new Tensor(Linear::apply(*x, *weight, bias ? std::optional<Tensor>(*bias) : std::nullopt));
  } catch (const std::exception& error) {
    std::strncpy(reason, error.what(), length - 1);
    return nullptr;
  }
}
