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

struct Linear : torch::autograd::Function<Linear> {
  // Of x and weight stays what the gradient of the other needs.
  static Tensor forward(
      AutogradContext* context, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    context->save_for_backward(
        {weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    context->saved_data["sizes"] = x.sizes();
    context->saved_data["is_biased"] = bias.has_value();
    return product(x, weight, bias);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto sizes = context->saved_data["sizes"].toIntVector();
    const Tensor dy_mo = gradients[0].reshape({-1, gradients[0].size(-1)});
    Tensor dx, dw, db;
    if (saved[1].defined()) {
      dx = product(dy_mo, saved[1].t()).view(sizes);
    }
    if (saved[0].defined()) {
      const Tensor x_mi = saved[0].reshape({-1, saved[0].size(-1)});
      // oneDNN reads the right factor as it lies; the left one is copied, so let it be the smaller.
      dw = dy_mo.size(1) <= x_mi.size(1) ? product(dy_mo.t(), x_mi.t()) : product(x_mi.t(), dy_mo.t()).t();
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
