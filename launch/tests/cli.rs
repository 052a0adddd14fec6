//! The command line from outside: real binary, exit codes, three-line errors. Where a run needs
//! workers that do not train, small scripts and a pretender
//! take their place.

#[path = "cli/config.rs"]
mod config;
#[path = "cli/memory.rs"]
mod memory;
#[path = "cli/model.rs"]
mod model;
#[path = "cli/plan.rs"]
mod plan;
#[path = "cli/pretender.rs"]
mod pretender;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "support/rights.rs"]
mod rights;
#[path = "cli/runs.rs"]
mod runs;
#[path = "support/signals.rs"]
mod signals;
#[path = "cli/supervision.rs"]
mod supervision;
#[path = "cli/support.rs"]
mod support;
