//! Commands, options and their help.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use mks2_coordinator::{Resume, Workers};
use mks2_proto::job::load::Overrides;
use mks2_proto::telemetry;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 internal fault; 2 usage; 3 job file or settings; 4 corpus or data; \
5 storage; 6 machine (libtorch, CUDA, port, missing binary, run directory in use); \
7 run failed, can be resumed; 8 checkpoint refused, or a proof failed (ledger, chaos); \
130 stopped on request, with a checkpoint.";

/// Where help lists the options of [`Common`], apart from a command's own.
const EVERYWHERE: &str = "Options of every command";

/// Trains language models that store what pictures show (MKS2).
#[derive(Debug, Parser)]
#[command(name = "mks2", version, propagate_version = true, after_long_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Form of logs, progress and errors
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_enum,
        default_value_t = LogFormat::Text,
        env = mks2_proto::env::LOG_FORMAT,
        value_name = "FORMAT"
    )]
    pub(crate) log_format: LogFormat,
    /// Show errors only
    #[arg(long, short, global = true, help_heading = EVERYWHERE, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Show more of what happens; twice: everything
    #[arg(long, short, global = true, help_heading = EVERYWHERE, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl Common {
    /// What counts when the command line itself cannot be read.
    pub(crate) fn usual(log_format: LogFormat) -> Self {
        Self {
            log_format,
            quiet: false,
            verbose: 0,
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.log_format == LogFormat::Json
    }

    pub(crate) fn telemetry(&self) -> telemetry::Options {
        // As text, progress tells what the logs would: they begin to speak with --verbose.
        let (log_format, usual) = match self.log_format {
            LogFormat::Text => (telemetry::LogFormat::Text, -1),
            LogFormat::Json => (telemetry::LogFormat::Json, 0),
        };
        let more = i8::try_from(self.verbose).unwrap_or(i8::MAX);
        let verbosity = if self.quiet {
            -1
        } else {
            more.saturating_add(usual)
        };
        telemetry::Options {
            service: "mks2",
            log_format,
            verbosity,
            no_color: false,
        }
    }
}

/// Forms of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train all stages of a job on this machine
    Train(TrainArgs),
    /// Import, inspect and verify corpora
    #[command(subcommand)]
    Data(crate::data::DataCommand),
    /// Show and check pretrained models
    #[command(subcommand)]
    Model(crate::model::ModelCommand),
    /// Export, import, show and compare memories, for other runs to attach
    #[command(subcommand)]
    Memory(crate::memory::MemoryCommand),
    /// Show what a job would do, without doing it
    Plan(PlanArgs),
    /// Show the state of a run
    Status(StatusArgs),
    /// Follow a run until it ends
    Watch(WatchArgs),
    /// Let a worker leave a live run at the next step boundary
    Drain(DrainArgs),
    /// Set how many workers a live run should have
    Scale(ScaleArgs),
    /// Join a run as a worker
    Worker(WorkerArgs),
    /// Ask a model that a run has trained, or one that was published
    Generate(crate::generate::GenerateArgs),
    /// Measure a model on tasks: choices, captions, retrieval, questions about pictures
    Eval(crate::eval::EvalArgs),
    /// Answer over HTTP, in the words of OpenAI's API
    Serve(crate::serve::ServeArgs),
    /// Write a model that a run has trained for transformers or PEFT
    #[command(subcommand)]
    Export(crate::export::ExportCommand),
    /// Write the report of a run again and print its numbers
    Report(ReportArgs),
    /// Prove what a run has done with every row, or look up a step or a row
    #[command(subcommand)]
    Ledger(crate::ledger::LedgerCommand),
    /// Kill, stop and cut off the processes of a job, and prove that nothing was lost
    Chaos(crate::chaos::ChaosArgs),
    /// Show, describe or check the settings of a job
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell
    #[command(after_long_help = "Example:\n  mks2 completions bash > \
        ~/.local/share/bash-completion/completions/mks2")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// The job and what overrides it.
#[derive(Clone, Debug, Args)]
pub(crate) struct JobArgs {
    /// The job file (TOML)
    pub(crate) job: PathBuf,
    /// Set a key of the job: --set stage.memory.steps=100
    ///
    /// Stages are addressed by their names. Wins over MKS2__KEY=value in the environment, which
    /// wins over the file, which wins over defaults. May be repeated; the last one wins.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
}

impl JobArgs {
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides::from_environment(self.sets.clone())
    }
}

const TRAIN_EXAMPLES: &str = "\
Examples:
  mks2 train examples/emoji/job.toml --workers 2
      Two workers on this machine, into runs/NAME-OF-THE-JOB.
  mks2 train job.toml --run runs/a --workers 4 --set stage.memory.steps=200
      Another run directory, one setting changed.
  mks2 train job.toml --run runs/a --workers 2
      Run again to continue from the latest checkpoint; the number of workers may differ.
  mks2 train job.toml --run runs/a --resume 300
      Continue from the checkpoint of step 300; later ones become void.

Ctrl-C finishes the step, writes a checkpoint and says how to resume; a second one stops at once.
Logs of the workers are in RUN/logs.";

/// Options of `train`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = TRAIN_EXAMPLES)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// The run directory: a path or any object store URL [default: runs/NAME-OF-THE-JOB]
    #[arg(long, value_name = "URL")]
    pub(crate) run: Option<String>,
    /// Workers on this machine: N, or MIN:MAX
    ///
    /// With N the run starts once all of them are here and continues while one is left. With MIN:MAX,
    /// MAX workers are started, and the run waits whenever there are fewer than MIN.
    #[arg(
        long,
        alias = "nproc-per-node",
        default_value = "1",
        value_name = "N|MIN:MAX"
    )]
    pub(crate) workers: Workers,
    /// How many times workers that failed are started again, in total
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) restarts: u32,
    /// The same for workers that were asked to end (SIGTERM), counted separately
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) preemptions: u32,
    /// What to do when the run directory holds a run: continue from the latest checkpoint (auto),
    /// refuse (never), or continue from a step
    #[arg(long, default_value = "auto", value_name = "auto|never|STEP")]
    pub(crate) resume: Resume,
    /// How long the others wait for a worker that is alive but makes no progress, before they
    /// continue without it; one that is writing a checkpoint is not given up
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub(crate) stall_limit: u32,
    /// Where the coordinator listens; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS", value_parser = address)]
    pub(crate) listen: SocketAddr,
}

/// A number of workers.
fn workers(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "it must be a whole number, 1 or larger".into())
}

/// Where to listen.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "it must be an IP address with a port, for example 127.0.0.1:7000".into())
}

/// Options of `plan`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Examples:\n  mks2 plan examples/emoji/job.toml --workers 2\n  \
    mks2 plan job.toml --json | jq '.stages[].parameters'\n\nNothing is trained, and neither a GPU \
    nor libtorch is needed. Corpora are looked at if they exist."
)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Workers that would share the lanes
    #[arg(
        long,
        alias = "nproc-per-node",
        default_value_t = 1,
        value_name = "N",
        value_parser = workers
    )]
    pub(crate) workers: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  mks2 status runs/emoji
      A run on this machine; its address and token are in runs/emoji/coordinator.json.
  MKS2_TOKEN=$(cat token) mks2 status 10.0.0.5:7000
      A coordinator elsewhere; its --token-file holds the token.";

const WATCH_EXAMPLES: &str = "\
Examples:
  mks2 watch runs/emoji
      Follow a run on this machine; its address and token are in runs/emoji/coordinator.json.
  MKS2_TOKEN=$(cat token) mks2 watch 10.0.0.5:7000
      Follow the run of a coordinator elsewhere; its --token-file holds the token.";

/// Options of `status`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = STATUS_EXAMPLES)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `watch`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = WATCH_EXAMPLES)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

/// Options of `drain`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Example:\n  mks2 drain runs/emoji worker-1\n\nThe others take over \
    its lanes. It is not replaced; `mks2 scale` makes room again."
)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// The worker, as `mks2 status` names it
    pub(crate) worker: String,
}

/// Options of `scale`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Example:\n  mks2 scale runs/emoji 4\n\nWhoever started the run starts \
    the missing ones; others can join with `mks2 worker --join`. Surplus workers leave at the next \
    step boundary. Weights and order of samples stay the same."
)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// How many workers the run should have
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers: u32,
}

const WORKER_EXAMPLES: &str = "\
Examples:
  mks2 worker --join runs/emoji
      One more worker for a run on this machine, if the run wants one (see `mks2 scale`).
  MKS2_TOKEN=$(cat token) mks2 worker --join 10.0.0.5:7000 --listen 10.0.0.6:0
      One on another machine; the others must be able to reach the --listen address.

The worker prepares while the run continues, receives the training state from the others and enters at
a step boundary. On SIGTERM it leaves at the next one.";

/// Options of `worker`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = WORKER_EXAMPLES)]
pub(crate) struct WorkerArgs {
    /// A run directory, or the address of a coordinator (HOST:PORT or http://HOST:PORT) and those of its
    /// possible successors, separated by commas
    #[arg(long, value_name = "RUN_DIR|ADDRESS[,ADDRESS]")]
    pub(crate) join: String,
    /// The run's token, for an address
    #[arg(long, env = mks2_proto::env::TOKEN, hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Its name, unique in the run [default: worker-HOST-PROCESS]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where the other workers reach it; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS", value_parser = address)]
    pub(crate) listen: SocketAddr,
}

/// Options of `report`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Example:\n  mks2 report runs/emoji\n\nWrites report.json and \
    report.html into the run directory, from what is there. A finished run already has them."
)]
pub(crate) struct ReportArgs {
    /// The run directory: a path or any object store URL
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which run.
#[derive(Clone, Debug, Args)]
pub(crate) struct TargetArgs {
    /// A run directory, or the address of a coordinator (HOST:PORT or http://HOST:PORT)
    #[arg(value_name = "RUN_DIR|ADDRESS")]
    pub(crate) target: String,
    /// The run's token, for an address
    #[arg(long, env = mks2_proto::env::TOKEN, hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
}

/// What `config` can do.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Every setting of a job with its value and where it came from
    #[command(after_long_help = "Example:\n  mks2 config show job.toml --set seed=3")]
    Show {
        #[command(flatten)]
        job: JobArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print the resolved job file instead of a table
        #[arg(long, conflicts_with = "json")]
        toml: bool,
    },
    /// The JSON schema of the job file, for editors
    Schema,
    /// Every key of the job file with its meaning and default, as Markdown
    Reference,
    /// Look for mistakes in a job, all at once
    #[command(after_long_help = "Example:\n  mks2 config check job.toml && mks2 train job.toml")]
    Check {
        #[command(flatten)]
        job: JobArgs,
    },
}

/// The completion script of a shell.
pub(crate) fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mks2", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn resume_takes_auto_never_or_a_step() {
        let parsed = |resume: &str| {
            let cli = Cli::try_parse_from(["mks2", "train", "job.toml", "--resume", resume]);
            cli.map(|cli| match cli.command {
                Command::Train(options) => options.resume,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(parsed("auto").expect("good"), Resume::Auto);
        assert_eq!(parsed("never").expect("good"), Resume::Never);
        assert_eq!(parsed("300").expect("good"), Resume::Step(300));
        assert!(parsed("sometimes").is_err());
    }

    #[test]
    fn the_words_of_torchrun_are_understood() {
        let words = ["mks2", "train", "job.toml", "--nproc-per-node", "3"];
        match Cli::try_parse_from(words).expect("good").command {
            Command::Train(options) => assert_eq!(options.workers, Workers::exactly(3)),
            other => panic!("{other:?}"),
        }
    }
}
