//! The command line from outside: real binary, exit codes, three-line errors. Where a run needs
//! workers that do not train, small shell scripts take their place.

#[path = "cli/config.rs"]
mod config;
#[path = "cli/plan.rs"]
mod plan;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/supervision.rs"]
mod supervision;
