//! Whole runs with real processes on the sample corpus: the number of workers, deaths and requests
//! to stop change no bit, and what cannot be right is refused. The runs share one folder of
//! imported corpora and take place one after the other.

#[path = "worker/bits.rs"]
mod bits;
#[path = "worker/chance.rs"]
mod chance;
#[path = "worker/cluster.rs"]
mod cluster;
#[path = "worker/goodput.rs"]
mod goodput;
#[path = "worker/interruptions.rs"]
mod interruptions;
#[path = "worker/joining.rs"]
mod joining;
#[path = "worker/lab.rs"]
mod lab;
#[path = "worker/ledger.rs"]
mod ledger;
#[path = "worker/object_stores.rs"]
mod object_stores;
#[path = "worker/outputs.rs"]
mod outputs;
#[path = "worker/recovery.rs"]
mod recovery;
#[path = "worker/refusals.rs"]
mod refusals;
#[path = "worker/servers.rs"]
mod servers;
#[path = "worker/succession.rs"]
mod succession;
