//! What both runs have in common: the job, the programs, the token, the folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mks2_coordinator::Workers;
use mks2_coordinator::ledger::Course;
use mks2_proto::failure::Failure;
use mks2_proto::ids::Token;
use mks2_proto::job::load;

use super::ChaosArgs;
use crate::train::{open_inputs, program_beside, worker_program};

/// Fewest workers: one of them may always be lost.
const FEWEST: u32 = 2;

/// What both runs are made of.
#[derive(Debug)]
pub(super) struct Setup {
    job: PathBuf,
    sets: Vec<String>,
    pub(super) workers: u32,
    pub(super) course: Course,
    pub(super) token: Token,
    pub(super) mks2: PathBuf,
    pub(super) coordinator: PathBuf,
    pub(super) worker: PathBuf,
    /// The folder of both run directories; it is there and empty.
    pub(super) out: PathBuf,
}

impl Setup {
    /// Checks and makes everything that the runs need.
    ///
    /// # Errors
    /// Job (exit 3), corpora (4), the folder (2, 5), programs (6).
    pub(super) async fn prepare(args: &ChaosArgs) -> Result<Self, Failure> {
        let resolved = load::load(&args.job.job, &args.job.overrides())?;
        Workers::exactly(args.workers).check(resolved.job.lanes)?;
        if args.workers < FEWEST {
            return Err(Failure::usage(
                "chaos needs more workers",
                format!("{} cannot lose one and go on", args.workers),
                format!("use --workers {FEWEST} or more"),
            ));
        }
        if resolved.job.reduction != mks2_proto::job::Reduction::Exact {
            return Err(Failure::settings(
                "chaos compares bits, and this job promises none",
                "its reduction is \"fast\", whose sums depend on who adds what",
                "use --set reduction=exact",
            ));
        }
        open_inputs(&resolved.job).await?;
        let name = &resolved.job.name;
        let out = args.out.clone();
        let out = out.unwrap_or_else(|| format!("runs/chaos-{name}-{}", args.seed).into());
        let mks2 = std::env::current_exe().map_err(|error| {
            Failure::internal("this program does not know where it is", error.to_string())
        })?;
        let token = Token::random()
            .map_err(|error| Failure::internal("there is no randomness", error.to_string()))?;
        Ok(Self {
            job: args.job.job.clone(),
            sets: args.job.sets.clone(),
            workers: args.workers,
            course: Course::of(&resolved.job),
            token,
            mks2,
            coordinator: program_beside(
                "mks2-coordinator",
                "build it with `cargo build -p mks2-coordinator`",
            )?,
            worker: worker_program()?,
            out: empty_folder(&out)?,
        })
    }

    /// What a coordinator is started with.
    pub(super) fn coordinator_arguments(&self, run: &Path, listen: SocketAddr) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "--job",
            &self.job.display().to_string(),
            "--run",
            &run.display().to_string(),
            "--listen",
            &listen.to_string(),
            "--workers",
            &self.workers.to_string(),
        ]
        .iter()
        .map(|word| (*word).to_owned())
        .collect();
        for set in &self.sets {
            arguments.extend(["--set".to_owned(), set.clone()]);
        }
        arguments
    }
}

/// Both runs have to be new.
fn empty_folder(folder: &Path) -> Result<PathBuf, Failure> {
    let made = std::fs::create_dir_all(folder)
        .and_then(|()| folder.canonicalize())
        .and_then(|folder| Ok((std::fs::read_dir(&folder)?.next().is_none(), folder)));
    let shown = folder.display();
    match made {
        Ok((true, folder)) => Ok(folder),
        Ok((false, _)) => Err(Failure::usage(
            format!("the folder {shown} is not empty"),
            "both runs of a chaos have to begin at the beginning",
            "remove it, or name another one with --out",
        )),
        Err(error) => Err(Failure::io(
            format!("the folder {shown} cannot be made"),
            error,
        )),
    }
}
