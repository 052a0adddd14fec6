//! Activations that are computed again instead of kept (Chen et al. 2016, "Training deep nets with
//! sublinear memory cost").
//!
//! ```text
//! forward    of a segment (a block of the decoder) only the input stays; its outputs begin the graph anew
//! backward   the loss back to the outputs of the last segment; then segment by segment, from the last
//!            to the first: forward once more, and back from sum(outputs * their gradients)
//! ```
//!
//! The product with ones changes no bit, and a weight that is read in one segment alone has the gradient
//! that it would have without.

use std::cell::RefCell;
use std::fmt;

use tch::{Kind, Tensor};

/// One part of a forward pass.
type Run<'m> = Box<dyn Fn(&Tensor) -> Vec<Tensor> + 'm>;

/// The segments of the passes that lead to a loss.
#[derive(Default)]
pub struct Tape<'m> {
    segments: RefCell<Vec<Segment<'m>>>,
}

struct Segment<'m> {
    run: Run<'m>,
    input: Tensor,
    /// Where the graph begins anew.
    outputs: Vec<Tensor>,
}

impl fmt::Debug for Tape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments = self.segments.borrow().len();
        f.debug_struct("Tape").field("segments", &segments).finish()
    }
}

impl<'m> Tape<'m> {
    /// The outputs of `run`, which computes the same whenever it is given `input`, cut off from what they
    /// were computed from.
    pub(super) fn cut(
        &self,
        input: &Tensor,
        run: impl Fn(&Tensor) -> Vec<Tensor> + 'm,
    ) -> Vec<Tensor> {
        let outputs: Vec<Tensor> = run(input).iter().map(anew).collect();
        if outputs.iter().any(Tensor::requires_grad) {
            self.segments.borrow_mut().push(Segment {
                run: Box::new(run),
                input: input.shallow_clone(),
                outputs: outputs.iter().map(Tensor::shallow_clone).collect(),
            });
        }
        outputs
    }

    /// The gradients of `loss` at `leaves`; undefined where a leaf has no part in it. A backward pass
    /// needs no more of the graph than one segment at a time.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn gradients(self, loss: &Tensor, leaves: &[Tensor]) -> Result<Vec<Tensor>, tch::TchError> {
        let mut segments = self.segments.take();
        let mut wanted: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
        for segment in &segments {
            wanted.extend(segment.outputs.iter().map(Tensor::shallow_clone));
        }
        let mut sums = Sums::new(wanted);
        sums.add(loss)?;
        while let Some(segment) = segments.pop() {
            let of_outputs = sums.take_last(segment.outputs.len());
            let input = anew(&segment.input);
            let outputs = (segment.run)(&input);
            let Some(onward) = product(&outputs, &of_outputs) else {
                continue;
            };
            if let Some(of_input) = sums.add_with(&onward, &input)? {
                drop((onward, outputs));
                sums.add(&(&segment.input * of_input).sum(Kind::Float))?;
            }
        }
        Ok(sums.found)
    }
}

/// A leaf of the same values.
fn anew(tensor: &Tensor) -> Tensor {
    let requires = tensor.requires_grad();
    tensor.detach().set_requires_grad(requires)
}

/// `sum(outputs * gradients)` over those that have one.
fn product(outputs: &[Tensor], gradients: &[Tensor]) -> Option<Tensor> {
    let pairs = outputs.iter().zip(gradients);
    let pairs = pairs.filter(|(output, gradient)| output.requires_grad() && gradient.defined());
    let products = pairs.map(|(output, gradient)| (output * gradient).sum(Kind::Float));
    products.reduce(|sum, product| sum + product)
}

/// Gradients that come in parts.
struct Sums {
    wanted: Vec<Tensor>,
    found: Vec<Tensor>,
}

impl Sums {
    fn new(wanted: Vec<Tensor>) -> Self {
        Self {
            found: wanted.iter().map(|_| Tensor::new()).collect(),
            wanted,
        }
    }

    /// Adds the gradients of `scalar` at all that is wanted.
    fn add(&mut self, scalar: &Tensor) -> Result<(), tch::TchError> {
        if !scalar.requires_grad() {
            return Ok(());
        }
        let new = Tensor::f_run_backward(&[scalar], &self.wanted, false, false)?;
        self.take_in(new);
        Ok(())
    }

    /// The same; gives that at `input`, if it has one.
    fn add_with(
        &mut self,
        scalar: &Tensor,
        input: &Tensor,
    ) -> Result<Option<Tensor>, tch::TchError> {
        if !input.requires_grad() {
            self.add(scalar)?;
            return Ok(None);
        }
        self.wanted.push(input.shallow_clone());
        let new = Tensor::f_run_backward(&[scalar], &self.wanted, false, false);
        self.wanted.pop();
        let mut new = new?;
        let of_input = new.pop();
        self.take_in(new);
        Ok(of_input.filter(Tensor::defined))
    }

    fn take_in(&mut self, new: Vec<Tensor>) {
        for (sum, new) in self.found.iter_mut().zip(new) {
            match (sum.defined(), new.defined()) {
                (false, true) => *sum = new,
                (true, true) => *sum += new,
                (_, false) => {}
            }
        }
    }

    /// The last so many, which are wanted no longer.
    fn take_last(&mut self, count: usize) -> Vec<Tensor> {
        let from = self.wanted.len() - count;
        self.wanted.truncate(from);
        self.found.split_off(from)
    }
}

#[cfg(test)]
mod tests;
