//! The method's claim: questions asked in text alone whose answers only pictures ever showed.

use std::collections::BTreeMap;

use mks2_dataset::row::{Row, render};
use mks2_dataset::task::Choice;
use mks2_proto::failure::Failure;
use mks2_proto::job::{self, MKS2};
use serde::Serialize;
use tch::{Kind, Tensor};

use super::Evaluator;
use crate::collectives::Collective;
use crate::model::{Decoder, Experts, Pass, Read, SecondHalves};
use crate::objective::experts::experts;
use crate::objective::{Share, TokenBatch, to_floats};
use crate::team::Setback;
use crate::text::{IGNORE, TextEncoder, Tokens};

/// Share of right answers per model, and the floor.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Questions {
    /// Share of the commonest answer: what always giving it would score.
    pub majority: f64,
    /// Share of right answers by the names of the stage's `compare`: `mks2`, `lora`, `shuffled`.
    #[serde(flatten)]
    pub accuracy: BTreeMap<String, f64>,
    /// How many questions.
    pub n: u64,
    /// Each question with all answers.
    pub details: Vec<Answered>,
}

/// One question and what each model answered.
#[derive(Clone, Debug, Serialize)]
pub struct Answered {
    /// Key of the row.
    pub key: String,
    /// The question.
    pub question: String,
    /// The right answer.
    pub answer: String,
    /// The models' answers.
    pub given: BTreeMap<String, String>,
}

/// How much of one block's mixture the memories have, by kind of token; shares between 0 and 1.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BlockUse {
    /// The block, from 1.
    pub block: u32,
    /// At the begin token.
    pub begin: f64,
    /// At the question's tokens.
    pub question: f64,
    /// At the end token behind the question; absent if the job has none there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<f64>,
    /// At the answer's tokens.
    pub answer: f64,
}

/// A multiple-choice question.
pub(super) struct Question {
    pub(super) row: Row,
    pub(super) question: String,
    pub(super) choices: Vec<String>,
    pub(super) right: usize,
}

/// Reads the questions of a corpus: rows with `choices` in their metadata.
pub(super) fn read(evaluator: &Evaluator, corpus: &str) -> Result<Vec<Question>, Failure> {
    evaluator.rows(corpus)?.into_iter().map(question).collect()
}

fn question(row: Row) -> Result<Question, Failure> {
    let (index, key) = (row.index, row.key.clone());
    let unfit = |why: String| {
        Failure::data(
            format!("row {index} ({key}) is not a multiple-choice question"),
            why,
            "give each row a question, an answer, and a list `choices` that holds the answer",
        )
    };
    let Choice {
        row,
        choices,
        right,
    } = Choice::of(row, "choices", "answer").map_err(&unfit)?;
    let question = row.question.clone();
    let question = question.ok_or_else(|| unfit("it has no question".into()))?;
    Ok(Question {
        row,
        question,
        choices,
        right,
    })
}

/// Accuracy of every model that the stage compares, and the router's use of memory.
pub(super) fn measure(
    evaluator: &Evaluator,
    corpus: &str,
    collective: &mut dyn Collective,
) -> Result<(Questions, Vec<BlockUse>), Setback> {
    let questions = read(evaluator, corpus)?;
    let mut found = Questions {
        majority: majority(&questions),
        n: questions.len() as u64,
        ..Questions::default()
    };
    found.details = questions.iter().map(answered).collect();
    let mut router = Vec::new();
    for (name, stage) in &evaluator.settings.compare {
        let model = Model::new(evaluator, stage)?;
        let shares = evaluator.in_blocks(&questions, collective, |block| model.guesses(block))?;
        let guesses: Vec<usize> = shares
            .iter()
            .flat_map(|share| share.counts.iter().map(|&guess| guess as usize))
            .collect();
        let right = questions
            .iter()
            .zip(&guesses)
            .filter(|(question, guess)| question.right == **guess);
        found.accuracy.insert(
            name.clone(),
            right.count() as f64 / questions.len().max(1) as f64,
        );
        for ((detail, question), guess) in found.details.iter_mut().zip(&questions).zip(&guesses) {
            detail
                .given
                .insert(name.clone(), question.choices[*guess].clone());
        }
        if name == MKS2 {
            router = model.router_use(&questions)?;
        }
    }
    Ok((found, router))
}

fn answered(question: &Question) -> Answered {
    Answered {
        key: question.row.key.clone(),
        question: question.question.clone(),
        answer: question.choices[question.right].clone(),
        given: BTreeMap::new(),
    }
}

fn majority(questions: &[Question]) -> f64 {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for question in questions {
        *counts.entry(&question.choices[question.right]).or_default() += 1;
    }
    counts.values().max().copied().unwrap_or(0) as f64 / questions.len().max(1) as f64
}

/// The model of one `experts` stage.
struct Model {
    settings: job::Experts,
    encoder: std::sync::Arc<TextEncoder>,
    decoder: Decoder,
    experts: Experts,
    device: tch::Device,
}

impl Model {
    fn new(evaluator: &Evaluator, stage: &str) -> Result<Self, Failure> {
        let settings = evaluator
            .job
            .stages
            .iter()
            .find(|other| other.name == stage);
        let settings = settings
            .and_then(|stage| stage.experts.clone())
            .unwrap_or_default();
        let encoder = evaluator.encoder(stage)?;
        let weights = evaluator.weights(stage)?;
        let decoder = Decoder::new(&evaluator.job.model.decoder, encoder.vocab_size(), &weights)?;
        let experts = experts(evaluator.job, &settings, &weights)?;
        Ok(Self {
            settings,
            encoder,
            decoder,
            experts,
            device: evaluator.device,
        })
    }

    fn dialogue(&self, question: &Question, choice: usize) -> Result<Tokens, Failure> {
        let mut row = question.row.clone();
        row.answer = Some(question.choices[choice].clone());
        let asked = render(&self.settings.question, &row)?;
        let answer = render(&self.settings.answer, &row)?;
        self.encoder
            .dialogue(&asked, &answer, self.settings.answer_after_end)
    }

    /// The likeliest choice of each question, by the probability of the whole answer.
    fn guesses(&self, questions: &[Question]) -> Result<Share, Failure> {
        let mut counts = Vec::with_capacity(questions.len());
        for question in questions {
            let choices = (0..question.choices.len()).map(|choice| self.dialogue(question, choice));
            let batch =
                TokenBatch::new(&choices.collect::<Result<Vec<_>, Failure>>()?, self.device)?;
            let scores = to_floats(&self.log_probabilities(&batch)?)?;
            let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            counts.push(best.unwrap_or(0) as f64);
        }
        Ok(Share {
            counts,
            features: Vec::new(),
        })
    }

    /// Log-probability of each row's targets, `[b]`.
    fn log_probabilities(&self, batch: &TokenBatch) -> Result<Tensor, Failure> {
        let pass =
            Pass::new(SecondHalves::Experts(&self.experts)).reading(Read::At(&batch.positions_bn));
        let states = self
            .decoder
            .forward(&self.decoder.embed(&batch.ids_bt)?, &pass)?;
        let logits = self.decoder.logits(&states.last_bnd);
        let vocab = logits.size()[2];
        let losses = logits.view([-1, vocab]).cross_entropy_loss(
            &batch.labels_bn.view([-1]),
            None::<Tensor>,
            tch::Reduction::None,
            IGNORE,
            0.0,
        );
        Ok(losses
            .view_as(&batch.labels_bn)
            .sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
            .neg())
    }

    /// Mean share of the memories per block and kind of token, over the questions with their
    /// right answers.
    fn router_use(&self, questions: &[Question]) -> Result<Vec<BlockUse>, Failure> {
        if self.settings.memories.is_empty() {
            return Ok(Vec::new());
        }
        let rows = questions
            .iter()
            .map(|question| self.dialogue(question, question.right));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let batch = TokenBatch::new(&rows, self.device)?;
        let pass = Pass::new(SecondHalves::Experts(&self.experts)).recording_scores();
        let states = self
            .decoder
            .forward(&self.decoder.embed(&batch.ids_bt)?, &pass)?;
        let kinds: Vec<Vec<Token>> = rows.iter().map(kinds).collect();
        let blocks = states.scores.iter().enumerate().map(|(block, scores_btx)| {
            // The MLP is the first expert; all others are memories.
            let memory_bt = 1.0 - scores_btx.select(2, 0);
            let values = to_floats(&memory_bt)?;
            let width = memory_bt.size()[1] as usize;
            let mean = |kind: Token| mean_where(&values, width, &kinds, kind);
            Ok(BlockUse {
                block: block as u32 + 1,
                begin: mean(Token::Begin).unwrap_or(0.0),
                question: mean(Token::Question).unwrap_or(0.0),
                end: mean(Token::End),
                answer: mean(Token::Answer).unwrap_or(0.0),
            })
        });
        blocks.collect()
    }
}

/// What a token of a dialogue is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Begin,
    Question,
    End,
    Answer,
    Padding,
}

fn kinds(row: &Tokens) -> Vec<Token> {
    let first_label = row
        .labels
        .iter()
        .position(|&label| label != IGNORE)
        .unwrap_or(row.end);
    (0..row.ids.len())
        .map(|at| match at {
            at if at < row.opening => Token::Begin,
            at if at > row.end => Token::Padding,
            at if at > first_label => Token::Answer,
            // All rows close with it.
            at if row.ids[at] == row.ids[row.end] => Token::End,
            _ => Token::Question,
        })
        .collect()
}

fn mean_where(values: &[f32], width: usize, kinds: &[Vec<Token>], wanted: Token) -> Option<f64> {
    let rows = values.chunks_exact(width).zip(kinds);
    let chosen = rows.flat_map(|(row, kinds)| {
        row.iter()
            .zip(kinds)
            .filter(move |(_, kind)| **kind == wanted)
    });
    let (sum, n) = chosen.fold((0.0, 0u64), |(sum, n), (value, _)| {
        (sum + f64::from(*value), n + 1)
    });
    (n > 0).then(|| sum / n as f64)
}
