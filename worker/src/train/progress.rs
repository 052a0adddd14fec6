//! How far a stage is.

/// Progress of a stage: what a checkpoint must know to go on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Steps that are committed.
    pub step: u64,
    /// Samples of these steps.
    pub samples: u64,
    /// Tokens with a loss in these steps.
    pub tokens: u64,
    /// Seconds spent in these steps.
    pub seconds: f64,
    /// Loss of the last step.
    pub loss: Option<f64>,
}

impl Progress {
    /// For a newcomer: step, samples and tokens u64, seconds f64, whether there is a loss u8, the
    /// loss f64; little endian.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(41);
        for number in [self.step, self.samples, self.tokens] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.seconds.to_le_bytes());
        bytes.push(u8::from(self.loss.is_some()));
        bytes.extend(self.loss.unwrap_or(0.0).to_le_bytes());
        bytes
    }

    /// What [`Progress::encode`] gave, and the rest.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (step, rest) = bytes.split_first_chunk()?;
        let (samples, rest) = rest.split_first_chunk()?;
        let (tokens, rest) = rest.split_first_chunk()?;
        let (seconds, rest) = rest.split_first_chunk()?;
        let (has_loss, rest) = rest.split_first()?;
        let (loss, rest) = rest.split_first_chunk()?;
        let progress = Self {
            step: u64::from_le_bytes(*step),
            samples: u64::from_le_bytes(*samples),
            tokens: u64::from_le_bytes(*tokens),
            seconds: f64::from_le_bytes(*seconds),
            loss: (*has_loss == 1).then(|| f64::from_le_bytes(*loss)),
        };
        Some((progress, rest))
    }
}
