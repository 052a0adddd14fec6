//! The reducer's replicated state in checkpoints: magic, eight bytes of the layout's digest, then an
//! exponent (i16, little endian) per tensor in layout order.

use super::exponents::NONE;
use super::{ReduceError, Reducer};

/// First bytes of the saved state.
const STATE_MAGIC: &[u8; 8] = b"mks2exp1";
/// Largest exponent that can arise, either sign.
const LARGEST: u16 = 400;

impl Reducer {
    /// The replicated state, to be saved with a checkpoint taken at a step border: the exponents.
    #[must_use]
    pub fn state_bytes(&self) -> Vec<u8> {
        let mut bytes = STATE_MAGIC.to_vec();
        bytes.extend(&self.layout.digest().as_bytes()[..8]);
        bytes.extend(
            self.exponents
                .iter()
                .flat_map(|exponent| exponent.to_le_bytes()),
        );
        bytes
    }

    /// The exponents, for tests that damage them.
    pub(crate) fn exponents_mut(&mut self) -> &mut [i16] {
        &mut self.exponents
    }

    /// Takes the state that [`Reducer::state_bytes`] gave, for the same layout.
    ///
    /// # Errors
    /// [`ReduceError::State`] when it belongs to another layout or is damaged.
    pub fn load_state(&mut self, bytes: &[u8]) -> Result<(), ReduceError> {
        let refuse = |why: &str| Err(ReduceError::State(why.into()));
        let Some(rest) = bytes.strip_prefix(STATE_MAGIC) else {
            return refuse("does not begin like one");
        };
        let Some((layout, values)) = rest.split_at_checked(8) else {
            return refuse("is cut short");
        };
        if layout != &self.layout.digest().as_bytes()[..8]
            || values.len() != 2 * self.exponents.len()
        {
            return refuse("belongs to other parameters");
        }
        let exponents: Vec<i16> = values
            .as_chunks()
            .0
            .iter()
            .map(|pair| i16::from_le_bytes(*pair))
            .collect();
        if exponents
            .iter()
            .any(|&exponent| exponent != NONE && exponent.unsigned_abs() > LARGEST)
        {
            return refuse("holds exponents that can not arise");
        }
        self.exponents = exponents;
        self.begin_step();
        Ok(())
    }
}
