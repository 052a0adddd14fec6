//! Texts and pictures in the space in which they are compared: the retrieval head of a memory stage.

use mks2_proto::failure::Failure;
use tch::Tensor;

use super::refused;
use super::speaker::Speaker;
use crate::model::{Pass, Read, RetrievalHead, SecondHalves};
use crate::objective::TokenBatch;

impl Speaker {
    /// The head of the last block.
    ///
    /// # Errors
    /// When the stage has none.
    pub(crate) fn head(&self) -> Result<&RetrievalHead, Failure> {
        match &self.heads {
            Some(heads) => Ok(heads.last()),
            None => Err(refused(
                "the model cannot search",
                "it has no retrieval head: only a memory stage trains one",
                "ask a memory stage, for example with --stage memory",
            )),
        }
    }

    /// Texts in the space of the head, unit rows `[n, s]`. One that is too long is cut.
    ///
    /// # Errors
    /// When there is no head, or the tokenizer refuses.
    pub(crate) fn texts(&self, texts: &[String]) -> Result<Tensor, Failure> {
        let head = self.head()?;
        Ok(head.text(&self.end_states(texts, self.halves())?))
    }

    /// States `[n, d]` at the end token of `<s> text </s>`.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub(crate) fn end_states(
        &self,
        texts: &[String],
        halves: SecondHalves<'_>,
    ) -> Result<Tensor, Failure> {
        let rows = texts.iter().map(|text| self.encoder.sentence(text));
        let batch = TokenBatch::new(&rows.collect::<Result<Vec<_>, Failure>>()?, self.device)?;
        let pass = Pass::new(halves).reading(Read::At(&batch.end_b1));
        let h_btd = self.decoder.embed(&batch.ids_bt)?;
        let states = self.decoder.forward(&h_btd, &pass)?;
        Ok(states.last_bnd.squeeze_dim(1))
    }
}
